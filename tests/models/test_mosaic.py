"""Models of images on tokens, through the mosaic."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import segmentation_models_pytorch
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from monai.networks.nets import UNETR, SwinUNETR, UNet
from torch import Tensor, nn

import patchtree as pt
from models.adapt.harness import adaptive, close, uniform
from patchtree.tokens import mosaic, unmosaic


@dataclass(frozen=True)
class Case:
    """One model of images, small and with random weights.

    Attributes:
        name: as the test is called.
        build: makes the original.
        maps: original and images ``(B, C, S, S)`` -> the logits or features ``(B, K, h, w)`` that it stands for.
        size: side of the images, where the model takes no other.
        side: of the test's images; None: `size`, or 64.
        classes: K.
    """

    name: str
    build: Callable[[], nn.Module]
    maps: Callable[[Any, Tensor], Tensor]
    classes: int
    size: int | None = None
    side: int = 64

    def make(self) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        model = self.build().eval()
        return model, pt.through_mosaic(model, size=self.size)


def _itself(model: Any, images: Tensor) -> Tensor:
    return model(images)


def _logits(model: Any, images: Tensor) -> Tensor:
    return model(images).logits


def _out(model: Any, images: Tensor) -> Tensor:
    return model(images)["out"]


def _last(model: Any, images: Tensor) -> Tensor:
    return model(images).last_hidden_state


def _swin_last(model: Any, images: Tensor) -> Tensor:
    """As transformers lays the grid itself, where the last norm is missing."""
    grid = model(images, output_hidden_states=True).reshaped_hidden_states[-1]
    return model.layernorm(grid.movedim(1, -1)).movedim(-1, 1)


def _finest(model: Any, images: Tensor) -> Tensor:
    return model(images).feature_maps[0]


def _queries(model: Any, images: Tensor) -> Tensor:
    """MaskFormer's own post-processing; Mask2Former's differs in a detour over 384 x 384 pixels."""
    processor = transformers.MaskFormerImageProcessor()
    given = processor.post_process_semantic_segmentation(
        model(images), target_sizes=[tuple(images.shape[2:])] * len(images), return_segmentation_scores=True
    )
    return torch.stack([one["segmentation_scores"] for one in given])


def _segformer() -> nn.Module:
    return transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            depths=[1] * 4,
            hidden_sizes=[8, 8, 16, 16],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
            num_labels=5,
        )
    )


_SWIN: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 12,
    "depths": [1] * 4,
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def _upernet() -> nn.Module:
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=transformers.SwinConfig(**_SWIN, out_features=_STAGES),
            hidden_size=16,
            auxiliary_in_channels=48,
            auxiliary_channels=8,
            num_labels=5,
        )
    )


def _mask2former() -> nn.Module:
    return transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=transformers.SwinConfig(**_SWIN, out_features=_STAGES),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=16,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=7,
            num_labels=5,
        )
    )


def _maskformer() -> nn.Module:
    return transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            backbone_config=transformers.SwinConfig(**_SWIN, out_features=_STAGES),
            decoder_config=transformers.DetrConfig(
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                num_queries=7,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
            ),
            fpn_feature_size=32,
            mask_feature_size=32,
            num_labels=5,
        )
    )


def _sam() -> nn.Module:
    return transformers.SamVisionModel(
        transformers.SamVisionConfig(
            hidden_size=24,
            output_channels=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=128,
            patch_size=16,
            window_size=3,
            global_attn_indexes=[1],
            mlp_dim=32,
        )
    )


CASES = (
    Case("monai UNETR", partial(UNETR, 3, 5, 64, 4, 24, 32, 2, spatial_dims=2), _itself, 5, size=64),
    Case("monai SwinUNETR", partial(SwinUNETR, 3, 5, feature_size=12, spatial_dims=2), _itself, 5),
    Case("monai UNet", partial(UNet, 2, 3, 5, (4, 8, 16), (2, 2)), _itself, 5),
    Case("transformers SegFormer", _segformer, _logits, 5),
    Case("transformers UperNet", _upernet, _logits, 5),
    Case("transformers Mask2Former", _mask2former, _queries, 5),
    Case("transformers MaskFormer", _maskformer, _queries, 5),
    Case("transformers Swin", lambda: transformers.SwinModel(transformers.SwinConfig(**_SWIN)), _swin_last, 96),
    Case(
        "transformers Swin backbone",
        lambda: transformers.SwinBackbone(transformers.SwinConfig(**_SWIN, out_features=_STAGES[:2])),
        _finest,
        12,
    ),
    Case("transformers SAM", _sam, _last, 8, size=128, side=128),
    Case(
        "smp Unet",
        partial(segmentation_models_pytorch.Unet, "resnet18", encoder_weights=None, classes=5),
        _itself,
        5,
    ),
    Case(
        "torchvision DeepLabV3",
        partial(
            torchvision.models.segmentation.deeplabv3_mobilenet_v3_large,
            weights_backbone=None,
            num_classes=5,
            aux_loss=True,
        ),
        _out,
        5,
    ),
    Case(
        "timm Swin",
        partial(
            timm.create_model,
            "swin_tiny_patch4_window7_224",
            img_size=128,
            embed_dim=12,
            depths=(1, 1, 1, 1),
            num_heads=(1, 1, 2, 2),
            window_size=4,
            num_classes=0,
            global_pool="",
        ),
        lambda model, images: model(images).permute(0, 3, 1, 2),
        96,
        size=128,
        side=128,
    ),
)
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each
@torch.no_grad()
def test_on_a_uniform_tree_it_is_the_model_on_the_image(case: Case) -> None:
    model, door = case.make()
    images = torch.randn(2, 3, case.side, case.side)
    tokens = uniform(images, 16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model gives maps")
        values = door(tokens)
    assert values.shape == (2, (case.side // 16) ** 2, 16, 16, case.classes)
    expected = F.interpolate(case.maps(model, images), size=images.shape[2:], mode="bilinear")
    for i, tree in enumerate(tokens.trees):
        close(torch.from_numpy(tree.paint(values[i].numpy())), expected[i].movedim(0, -1), 1e-5)


@each
@pytest.mark.filterwarnings("ignore:the model gives maps")
def test_any_number_of_tokens_and_gradients(case: Case) -> None:
    model, door = case.make()
    for count in (1, 7, 16):
        items = [adaptive(n, 16, 3, seed=n) for n in (count, max(1, count - 3))]
        tokens = pt.collate(items)
        tokens.pixels.requires_grad_()
        values = door(tokens)
        assert values.shape == (*tokens.valid.shape, 16, 16, case.classes)
        assert bool(values.isfinite().all())
    values.square().sum().backward()
    assert tokens.pixels.grad is not None
    assert bool(tokens.pixels.grad.flatten(2).any(-1)[tokens.valid].all())
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters())


@each
def test_the_weights_are_the_original_s(case: Case) -> None:
    model, door = case.make()
    state = door.state_dict()
    assert set(state) == {f"model.{name}" for name in model.state_dict()}
    other = pt.through_mosaic(case.build(), size=case.size)
    other.load_state_dict(state)
    assert door.model is model


# What a model may give


class _Gives(nn.Module):
    """A model that gives something made of its image."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor) -> Any:
        return self.make(images)


def _tokens() -> pt.Tokens:
    return pt.collate([adaptive(16, 16, 3)])


def test_a_map_of_the_mosaic_s_resolution_is_not_resized() -> None:
    tokens = _tokens()
    door = pt.through_mosaic(_Gives(lambda images: images))
    assert torch.equal(door(tokens), tokens.pixels.movedim(2, -1))


@pytest.mark.parametrize("factor", [0.25, 2])
def test_other_resolutions_are_resized_with_their_corners_in_place(factor: float) -> None:
    tokens = _tokens()
    door = pt.through_mosaic(_Gives(lambda images: F.interpolate(images, scale_factor=factor, mode="area")))
    small = F.interpolate(mosaic(tokens), scale_factor=factor, mode="area")
    assert torch.equal(door(tokens), unmosaic(F.interpolate(small, size=(64, 64), mode="bilinear"), tokens))


@pytest.mark.parametrize(
    "give",
    [
        lambda images: {"aux": -images, "out": images},
        lambda images: {"last_hidden_state": -images, "logits": images},
        lambda images: {"feature_maps": (images,), "hidden_states": (-images,)},
        lambda images: {"last_hidden_state": images.flatten(2).transpose(1, 2)},
        lambda images: images.movedim(1, -1),
        lambda images: [images.mean((2, 3)), images],
        lambda images: (images.movedim(1, -1), [images]),
    ],
)
def test_where_the_maps_are(give: Callable[[Tensor], Any]) -> None:
    tokens = _tokens()
    assert torch.equal(pt.through_mosaic(_Gives(give))(tokens), tokens.pixels.movedim(2, -1))


def test_the_highest_resolution_is_taken_and_said_once() -> None:
    tokens = _tokens()
    door = pt.through_mosaic(_Gives(lambda images: [F.avg_pool2d(images, 2), images, -images]))
    with pytest.warns(UserWarning, match=r"maps \(3, 32, 32\), \(3, 64, 64\), \(3, 64, 64\); \(3, 64, 64\) is taken"):
        values = door(tokens)
    assert torch.equal(values, tokens.pixels.movedim(2, -1))
    assert torch.equal(door(tokens), values)  # a second warning would be an error


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda images: images.mean((2, 3)), r"the model gives \(1, 3\), no square map; wrap it in a module"),
        (lambda images: {"logits": images.mean((2, 3))}, r"the model gives \(1, 3\), no square map"),
        (lambda images: images[..., 1:, :, None], r"the model gives \(1, 3, 63, 64, 1\), no square map"),
        (lambda images: images[..., 1:, :], r"the model gives \(1, 3, 63, 64\), no square map"),
        (lambda images: {"boxes": images, "scores": images}, "a dict of boxes, scores; wrap it in a module"),
        (lambda images: [{"boxes": images}], "a list of dict, no maps"),
        (lambda images: (), "a tuple of nothing, no maps"),
        (lambda images: None, "gives NoneType, no square map"),
        (
            lambda images: {"last_hidden_state": images.flatten(2).mT[:, 1:]},
            "sequence of 4095 features, no square grid",
        ),
    ],
)
def test_what_is_no_map(give: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(pt.InputError, match=message):
        pt.through_mosaic(_Gives(give))(_tokens())


# The image that the model is given


@pytest.mark.parametrize(
    ("count", "patch_size", "size", "tiles", "side"),
    [
        (1, 16, None, 1, 64),
        (16, 4, None, 4, 64),
        (17, 12, None, 8, 96),
        (64, 14, None, 8, 128),
        (256, 14, None, 16, 224),
        (3, 8, 40, 2, 40),
        (16, 10, 40, 4, 40),
    ],
)
def test_padding(count: int, patch_size: int, size: int | None, tiles: int, side: int) -> None:
    seen = []
    door = pt.through_mosaic(_Gives(lambda images: seen.append(images) or images), size=size)
    tokens = _row(count, patch_size)
    assert torch.equal(door(tokens), tokens.pixels.movedim(2, -1))
    assert seen[0].shape == (1, 3, side, side)
    laid = tiles * patch_size
    assert torch.equal(seen[0][..., :laid, :laid], mosaic(tokens))
    assert not seen[0][..., laid:, :].any()
    assert not seen[0][..., laid:].any()


@pytest.mark.parametrize(("size", "limit"), [(64, 16), (100, 16), (127, 16), (128, 64), (16, 1), (15, 0)])
def test_more_tokens_than_fit(size: int, limit: int) -> None:
    door = pt.through_mosaic(_Gives(lambda images: images), size=size)
    message = rf"and the model takes {size} x {size}; at most {limit} tokens of 16 x 16 fit"
    with pytest.raises(pt.InputError, match=message):
        door(_row(limit + 1))
    if limit:
        assert door(_row(limit)).shape[1] == limit


def _row(count: int, patch_size: int = 16) -> pt.Tokens:
    """So many leaves in one row, noise."""
    tree = pt.Tree.uniform((patch_size, patch_size * count), patch_size)
    pixels = torch.randn(count, patch_size, patch_size, 3, generator=torch.Generator().manual_seed(0))
    return pt.collate([pt.Patches(pixels.numpy(), tree)])


def test_sizes_and_volumes_that_are_refused() -> None:
    with pytest.raises(pt.InputError, match="size is 0; give the side"):
        pt.through_mosaic(nn.Identity(), size=0)
    with pytest.raises(pt.InputError, match="patches are 3-D; use them as a sequence"):
        pt.through_mosaic(nn.Identity())(pt.collate([adaptive(9, 4, 1, ndim=3)]))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_model_in_half_precision_runs(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 3, padding=1)
    expected = pt.through_mosaic(model)(_tokens())
    values = pt.through_mosaic(model.to(kind))(_tokens())
    assert values.dtype == torch.float32
    close(values, expected, 0.05)


def test_what_is_no_batch_of_tokens() -> None:
    door = pt.through_mosaic(nn.Identity())
    for given in (torch.zeros(1, 3, 64, 64), adaptive(16, 16, 3)):
        with pytest.raises(pt.InputError, match=r"given (Tensor|Patches); make a batch with pt.collate\(\[patches\]\)"):
            door(given)


@torch.no_grad()
def test_a_model_of_another_size_is_told_how_to_say_it() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=1, num_heads=2)
    with pytest.raises(
        pt.InputError, match=r"mosaic of 64 x 64 pixels \(Input height .*224.*\); give size=\.\.\., the"
    ):
        pt.through_mosaic(vit)(_tokens())
    with pytest.raises(pt.InputError, match=r"\(The size of tensor a .*\); give size="):
        pt.through_mosaic(_Gives(lambda images: images + torch.zeros(3, 224, 224)))(_tokens())
    with pytest.raises(RuntimeError, match="to have 5 channels"):
        pt.through_mosaic(nn.Conv2d(5, 2, 1))(_tokens())
