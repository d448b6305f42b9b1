"""transformers' ViT and its like on tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from models.adapt.harness import CHECKS, Case, close, in_tree_order, uniform
from patchtree.models.adapt import adapt

_TINY: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
}


def _case(
    kind: str,
    model: str = "Model",
    inner: str | None = None,
    prefix: int = 1,
    pooled: bool = True,
    resizes: bool = True,
    run: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    """A model of one family: its classes are `kind` + "Config" and `kind` + `model`, its backbone the part `inner`."""
    values = {**_TINY, **options}
    config = getattr(transformers, f"{kind}Config")

    def build() -> Any:
        return getattr(transformers, f"{kind}{model}")(config(**values), **(run or {}))

    def encode(original: Any, image: Tensor, **how: Any) -> Any:
        return (getattr(original, inner) if inner else original)(image, **how)

    def features(original: Any, image: Tensor) -> Tensor:
        return encode(original, image).last_hidden_state[:, prefix:]

    def resized(original: Any, image: Tensor) -> Tensor:
        return encode(original, image, interpolate_pos_encoding=True).last_hidden_state[:, prefix:]

    size, patch = values["image_size"], values["patch_size"]
    return Case(
        "-".join([kind + model, *(f"{name}={value}" for name, value in options.items())]),
        build,
        features,
        native=(size, size) if isinstance(size, int) else size,
        other=(patch * 3, patch * 7) if isinstance(size, int) else None,
        resized=resized if resizes else None,
        pooled=(lambda original, image: encode(original, image).pooler_output) if pooled else None,
        channels=values.get("num_channels", 3),
    )


def _unmasked(original: Any, image: Tensor, **how: Any) -> Tensor:
    """The encoder of ViT-MAE with nothing masked and nothing shuffled."""
    encoder = getattr(original, "vit", original)
    count = image.shape[2] * image.shape[3] // encoder.config.patch_size**2
    return encoder(image, noise=torch.arange(count).expand(len(image), -1), **how).last_hidden_state[:, 1:]


def _mae(model: str) -> Case:
    config = transformers.ViTMAEConfig(
        **_TINY,
        mask_ratio=0.0,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    return Case(
        model,
        lambda: getattr(transformers, model)(config),
        _unmasked,
        native=(64, 64),
        other=(48, 112),
        resized=lambda original, image: _unmasked(original, image, interpolate_pos_encoding=True),
    )


CASES = (
    _case("ViT"),
    _case("ViT", image_size=(32, 96)),
    _case("ViT", attn_implementation="eager", num_hidden_layers=1),
    _case("ViT", num_channels=5, patch_size=8, image_size=32, qkv_bias=False),
    _case("ViT", "ForImageClassification", inner="vit", pooled=False),
    _case("DeiT", prefix=2),
    _case("DeiT", "ForImageClassificationWithTeacher", inner="deit", prefix=2, pooled=False),
    _case("ViTMSN", pooled=False),
    _case("IJepa", prefix=0, pooled=False),
    _mae("ViTMAEModel"),
    _mae("ViTMAEForPreTraining"),
    _case("Dinov2", resizes=False, patch_size=14, image_size=56),
    _case("Dinov2", resizes=False, use_swiglu_ffn=True),
    _case("Dinov2", "ForImageClassification", inner="dinov2", resizes=False),
    _case("Dinov2WithRegisters", prefix=5, resizes=False, num_register_tokens=4),
    _case("Pixio", prefix=8, resizes=False),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)


@pytest.mark.parametrize("apply", [True, False])
@torch.no_grad()
def test_a_backbone_is_normed_as_it_is_told(apply: bool) -> None:
    torch.manual_seed(0)
    model = transformers.Dinov2Backbone(transformers.Dinov2Config(**_TINY, apply_layernorm=apply)).eval()
    model.layernorm.weight.normal_()
    image = torch.randn(1, 3, 64, 64)
    tokens = uniform(image, 16)
    expected = model(image).feature_maps[-1].flatten(2).mT
    close(adapt(model)(tokens), in_tree_order(expected, tokens), 1e-5)
