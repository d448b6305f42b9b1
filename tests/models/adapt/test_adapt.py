"""What `adapt` itself does, whatever the family: what is read, refused and warned of."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import patchtree as pt
from models.adapt.harness import adaptive
from patchtree.models.adapt import adapt


def _vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    size = {"embed_dim": 48, "depth": 3, "num_heads": 2, "img_size": 64}
    return timm.create_model("vit_tiny_patch16_224", **{**size, **options}).eval()


def test_what_is_no_batch_of_tokens() -> None:
    adapted = adapt(_vit())
    for given in (torch.zeros(1, 3, 64, 64), adaptive(16, 16, 3)):
        with pytest.raises(pt.InputError, match=r"given (Tensor|Patches); make a batch with pt.collate\(\[patches\]\)"):
            adapted(given)


@torch.no_grad()
def test_depths_count_from_the_end_too() -> None:
    adapted, tokens = adapt(_vit()), pt.collate([adaptive(16, 16, 3)])
    first, last = adapted.encode(tokens, depths=(0, 2)).depths
    assert not torch.equal(first, last)
    again, begin = adapted.encode(tokens, depths=(-1, -3)).depths
    assert torch.equal(again, last)
    assert torch.equal(begin, first)


@pytest.mark.parametrize("number", [99, 3, -4])
def test_depths_that_the_model_has_not(number: int) -> None:
    adapted, tokens = adapt(_vit()), pt.collate([adaptive(16, 16, 3)])
    with pytest.raises(
        pt.InputError, match=f"depths has {number} and the model has 3 blocks; give numbers from 0 to 2"
    ):
        adapted.encode(tokens, depths=(number,))


# Classes of one's own

_SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 1, "num_heads": 2, "img_size": 32, "num_classes": 0}


class _Positions(VisionTransformer):
    def _pos_embed(self, x: Tensor) -> Tensor:
        return -super()._pos_embed(x)


class _Below(_Positions):
    def forward_features(self, x: Tensor) -> Tensor:
        return -super().forward_features(x)


class _Same(VisionTransformer):
    def describe(self) -> str:
        return "runs as the library's"


@pytest.mark.parametrize(("kind", "names"), [(_Positions, "_pos_embed"), (_Below, "forward_features and _pos_embed")])
def test_a_class_that_runs_otherwise_is_warned_of(kind: type[nn.Module], names: str) -> None:
    with pytest.warns(UserWarning, match=f"{kind.__name__} overrides {names}, which adapt does not run") as seen:
        adapt(kind(**_SMALL))
    assert len(seen) == 1


def test_a_class_that_runs_as_the_library_s_is_not() -> None:
    class Labels(transformers.ViTPreTrainedModel):
        """A head of one's own on the library's backbone, whose base runs nothing by itself."""

        def __init__(self, config: transformers.ViTConfig) -> None:
            super().__init__(config)
            self.vit = transformers.ViTModel(config)
            self.post_init()

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.vit(pixel_values).last_hidden_state

    adapt(_Same(**_SMALL))
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96, image_size=64
    )
    adapt(Labels(config))
    adapt(timm.create_model("deit_tiny_distilled_patch16_224", embed_dim=48, depth=1, num_heads=2))


# What is given instead of a model


def test_compiled_and_parallel_models_are_unwrapped() -> None:
    model = _vit()
    for wrapped in (torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model))):
        assert adapt(wrapped).model is model
        assert pt.through_mosaic(wrapped).model is model


@pytest.mark.parametrize("door", [adapt, pt.through_mosaic])
def test_what_is_no_model(door: Any) -> None:
    with pytest.raises(pt.InputError, match=r"'timm:resnet18' is a name and no model; build_model\(name, labels\)"):
        door("timm:resnet18")
    with pytest.raises(pt.InputError, match="a model is wanted and dict is none"):
        door({})


def test_a_family_that_is_not_known_is_told_what_the_other_door_takes() -> None:
    with pytest.raises(
        pt.InputError, match=r"no family that adapt knows; use through_mosaic\(model\), which takes 2-D models"
    ):
        adapt(nn.Conv3d(1, 1, 3))
