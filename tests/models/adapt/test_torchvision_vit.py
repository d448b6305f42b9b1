"""torchvision's VisionTransformer on tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer, interpolate_embeddings

import patchtree as pt
from models.adapt.harness import CHECKS, Case, adaptive, close, uniform
from patchtree.models.adapt import adapt

_TINY: dict[str, Any] = {"num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 96, "num_classes": 5}


def _encode(model: Any, image: Tensor) -> Tensor:
    x = model._process_input(image)
    return model.encoder(torch.cat([model.class_token.expand(len(x), -1, -1), x], dim=1))


def _features(model: Any, image: Tensor) -> Tensor:
    return _encode(model, image)[:, 1:]


def _pooled(model: Any, image: Tensor) -> Tensor:
    return _encode(model, image)[:, 0]


def _resized(options: dict[str, Any], model: Any, image: Tensor) -> Tensor:
    """As a copy of the model for another image size, its positions interpolated by torchvision."""
    copy = VisionTransformer(**{**options, "image_size": image.shape[-1]}).eval()
    copy.load_state_dict(interpolate_embeddings(image.shape[-1], options["patch_size"], model.state_dict()))
    return _features(copy, image)


def _case(name: str, patch: int, cells: int, other: int, **options: Any) -> Case:
    options = {**_TINY, "patch_size": patch, "image_size": patch * cells, **options}
    return Case(
        name,
        partial(VisionTransformer, **options),
        _features,
        native=(patch * cells, patch * cells),
        other=(patch * other, patch * other),
        resized=partial(_resized, options),
        pooled=_pooled,
    )


CASES = (
    _case("vit_b_16", 16, cells=4, other=7),
    _case("vit_b_32", 32, cells=7, other=3),
    _case("vit_h_14", 14, cells=5, other=8, num_heads=4),
    _case("representation", 16, cells=3, other=1, representation_size=32),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)


@torch.no_grad()
def test_uniform_coarse_leaves_are_the_model_on_the_halved_image() -> None:
    case = CASES[0]
    model, adapted = case.make()
    image = torch.randn(1, 3, 128, 128)
    tree = pt.Tree.uniform((128, 128), 16, level=1)
    halved = torch.nn.functional.avg_pool2d(image, 2)
    coarse = pt.collate([pt.Patches(pt.cut(image[0].movedim(0, -1).numpy(), tree), tree)], length=20)
    fine = uniform(halved, 16)
    close(adapted(coarse)[:, :16], adapted(fine), case.tolerance)
    close(adapted.encode(fine).pooled, _pooled(model, halved), case.tolerance)


@torch.no_grad()
def test_the_class_token_feeds_the_heads() -> None:
    case = CASES[3]
    model, adapted = case.make()
    torch.nn.init.normal_(model.heads.head.weight)
    image = torch.randn(2, 3, 48, 48)
    close(model.heads(adapted.encode(uniform(image, 16)).pooled), model(image), case.tolerance)


def test_dropout_acts_in_training() -> None:
    adapted = adapt(VisionTransformer(patch_size=16, image_size=64, **_TINY, attention_dropout=0.5))
    tokens = pt.collate([adaptive(20, 16, 3)])
    assert not torch.equal(adapted(tokens), adapted(tokens))
    assert torch.equal(adapted.eval()(tokens), adapted(tokens))


def test_a_convolutional_stem_is_refused() -> None:
    stem = [ConvStemConfig(8, 3, 2), ConvStemConfig(8, 3, 8)]
    with pytest.raises(pt.InputError, match="convolutional stem looks beyond the patch"):
        adapt(VisionTransformer(patch_size=16, image_size=64, **_TINY, conv_stem_configs=stem))
