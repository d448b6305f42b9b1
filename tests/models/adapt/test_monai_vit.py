"""MONAI's ViT, UNETR and ViTAutoEnc on tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import UNETR, ViT, ViTAutoEnc
from torch import Tensor, nn

import patchtree as pt
from models.adapt.harness import CHECKS, Case, adaptive, close, uniform
from patchtree.models.adapt import adapt

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # MONAI's sincos positions

_TINY: dict[str, Any] = {"hidden_size": 48, "mlp_dim": 96, "num_heads": 3}


def _features(model: Any, image: Tensor) -> Tensor:
    """The tokens after the last norm, from what the library's own forward gives."""
    vit = getattr(model, "vit", model)
    last = vit(image)[1][-1]
    return vit.norm(last)[:, int(hasattr(vit, "cls_token")) :]


def _pooled(model: Any, image: Tensor) -> Tensor:
    return model.norm(model(image)[1][-1])[:, 0]


def _vit(name: str, shape: tuple[int, ...], patch: int = 4, **options: Any) -> Case:
    options = {**_TINY, "in_channels": 3, "num_layers": 2, "img_size": shape, "patch_size": patch, **options}
    build = partial(ViT, spatial_dims=len(shape), **options)
    pooled = _pooled if options.get("classification") else None
    return Case(name, build, _features, native=shape, channels=options["in_channels"], pooled=pooled)


def _kept(img_size: tuple[int, ...], **options: Any) -> nn.Module:
    """A ViT whose grid is no square, with the image size set as its user must."""
    model = ViT(3, img_size, spatial_dims=len(img_size), num_layers=2, **_TINY, **options)
    model.img_size = img_size
    return model


def _unetr(name: str, shape: tuple[int, ...], **options: Any) -> Case:
    build = partial(UNETR, 1, 2, shape, feature_size=4, spatial_dims=len(shape), **_TINY, **options)
    return Case(name, build, _features, native=shape, channels=1)


def _autoencoder(name: str, shape: tuple[int, ...], **options: Any) -> Case:
    build = partial(ViTAutoEnc, 2, shape, 4, num_layers=2, deconv_chns=4, spatial_dims=len(shape), **_TINY, **options)
    return Case(name, build, _features, native=shape, channels=2)


CASES = (
    _vit("vit_2d", (64, 64), patch=16),
    _vit("vit_2d_perceptron", (64, 64), patch=16, proj_type="perceptron"),
    _vit("vit_2d_sincos_class", (32, 32), pos_embed_type="sincos", classification=True, num_classes=5),
    _vit("vit_2d_fourier_bias", (32, 32), pos_embed_type="fourier", qkv_bias=True),
    _vit("vit_2d_none", (24, 24), pos_embed_type="none"),
    _vit("vit_2d_save_attn", (24, 24), save_attn=True),
    _vit("vit_3d", (16, 16, 16), in_channels=1),
    _vit("vit_3d_perceptron_class", (12, 12, 12), proj_type="perceptron", classification=True),
    _vit("vit_3d_sincos", (16, 16, 16), in_channels=2, pos_embed_type="sincos"),
    Case("vit_2d_oblong", partial(_kept, (24, 40), patch_size=4), _features, native=(24, 40)),
    Case("vit_3d_oblong", partial(_kept, (8, 24, 16), patch_size=4), _features, native=(8, 24, 16)),
    _unetr("unetr_2d", (64, 96)),
    _unetr("unetr_3d", (32, 48, 32), proj_type="perceptron"),
    _autoencoder("autoencoder_2d", (24, 40)),
    _autoencoder("autoencoder_3d", (16, 16, 16), proj_type="perceptron"),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)


@torch.no_grad()
def test_the_class_token_feeds_the_head() -> None:
    model, adapted = next(case for case in CASES if case.name == "vit_3d_perceptron_class").make()
    image = torch.randn(2, 3, 12, 12, 12)
    close(model.classification_head(adapted.encode(uniform(image, 4)).pooled), model(image)[0], 1e-5)


@torch.no_grad()
def test_unetr_decodes_what_its_adapted_encoder_gives() -> None:
    """The blocks after which UNETR branches off are those that `encode` gives."""
    model, adapted = next(case for case in CASES if case.name == "unetr_2d").make()
    image = torch.randn(1, 1, 64, 96)
    encoded = adapted.encode(uniform(image, 16), depths=(3, 6, 9))
    seen = []
    handles = [
        block.register_forward_hook(lambda block, inputs, output: seen.append(inputs[0]))
        for block in (model.encoder2, model.encoder3, model.encoder4)
    ]
    model(image)
    for handle in handles:
        handle.remove()
    index = torch.from_numpy(np.array(uniform(image, 16).trees[0].index, np.int64)).T
    for own, features in zip(encoded.depths, seen, strict=True):
        close(own[0], features[0].permute(1, 2, 0)[tuple(index)], 1e-5)


@torch.no_grad()
def test_attention_is_kept_where_it_was_asked_for() -> None:
    _, adapted = next(case for case in CASES if case.name == "vit_2d_save_attn").make()
    tokens = pt.collate([adaptive(20, 4, 3)], length=25)
    adapted(tokens)
    kept = adapted.model.blocks[1].attn.att_mat
    assert kept.shape == (1, 3, 25, 25)
    assert not kept[..., len(tokens.trees[0]) :].any()


@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
@pytest.mark.parametrize("shape", [(32, 32), (16, 16, 16)])
def test_patches_of_another_size(proj_type: str, shape: tuple[int, ...]) -> None:
    """A patch enlarged twice gives what the patch itself does."""
    case = _vit("", shape, proj_type=proj_type)
    _, adapted = case.make()
    flat = torch.ones(1, 3, *(2 * length for length in shape))
    with pytest.warns(UserWarning, match="its patch embedding is resized"):
        larger = adapted(uniform(flat, 8))
    close(larger, adapted(uniform(torch.ones(1, 3, *shape), 4)), 1e-4)


def test_dropout_acts_in_training() -> None:
    adapted = adapt(ViT(3, 32, 4, num_layers=2, spatial_dims=2, dropout_rate=0.5, **_TINY))
    tokens = pt.collate([adaptive(20, 4, 3)])
    assert not torch.equal(adapted(tokens), adapted(tokens))
    assert torch.equal(adapted.eval()(tokens), adapted(tokens))


@pytest.mark.parametrize(
    ("img_size", "patch_size", "given", "message"),
    [
        ((16, 24, 8), (4, 4, 2), None, "patches are 4 x 4 x 2 pixels and leaves have equal sides"),
        ((16, 24, 8), 4, None, "48 positions, which make no cube, .* set model.img_size = \\(D, H, W\\)"),
        ((16, 24), 4, None, "24 positions, which make no square, .* set model.img_size = \\(H, W\\)"),
        ((16, 24), 4, (16, 16), "img_size is \\(16, 16\\), which makes 16 positions, and the model has 24"),
    ],
)
@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_grids_and_patches_that_are_refused(
    img_size: tuple[int, ...], patch_size: Any, given: Any, message: str, proj_type: str
) -> None:
    model = ViT(1, img_size, patch_size, num_layers=1, spatial_dims=len(img_size), proj_type=proj_type, **_TINY)
    if given is not None:
        model.img_size = given
    with pytest.raises(pt.InputError, match=message):
        adapt(model)


@pytest.mark.parametrize(("shape", "grid"), [((16, 64), "8 x 8"), ((8, 64, 32), "4 x 4 x 4")])
@torch.no_grad()
def test_a_grid_that_is_guessed_is_said_once_where_images_are_oblong(shape: tuple[int, ...], grid: str) -> None:
    sides = (32, 32) if len(shape) == 2 else (16, 16, 16)
    adapted = adapt(ViT(1, sides, 4, num_layers=1, spatial_dims=len(shape), **_TINY))
    tokens = uniform(torch.randn(1, 1, *shape), 4)
    adapted(uniform(torch.randn(1, 1, *sides), 4))
    with pytest.warns(UserWarning, match=rf"taken for a grid of {grid}, .* set model.img_size = \((D, )?H, W\)"):
        adapted(tokens)
    adapted(tokens)  # a second warning would be an error
    model = ViT(1, sides, 4, num_layers=1, spatial_dims=len(shape), **_TINY)
    model.img_size = sides
    adapt(model)(tokens)
