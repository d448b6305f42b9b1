"""timm's VisionTransformer on tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
from torch import Tensor

from models.adapt.harness import CHECKS, Case

_TINY: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}


def _features(model: Any, image: Tensor) -> Tensor:
    return model.forward_features(image)[:, model.num_prefix_tokens :]


def _pooled(model: Any, image: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(image), pre_logits=True)


def _resized(name: str, options: dict[str, Any], model: Any, image: Tensor) -> Tensor:
    """As a copy of the model built with dynamic_img_size, which resamples positions itself."""
    copy = timm.create_model(name, **options, dynamic_img_size=True).eval()
    copy.load_state_dict(model.state_dict())
    return _features(copy, image)


def _case(name: str, **options: Any) -> Case:
    options = {**_TINY, "img_size": 64, **options}
    patch = 14 if "patch14" in name else 16
    side = options["img_size"]
    return Case(
        name,
        partial(timm.create_model, name, **options),
        _features,
        native=(side, side),
        other=(patch * 3, patch * 7),
        resized=partial(_resized, name, options),
        pooled=_pooled,
    )


CASES = (
    _case("vit_tiny_patch16_224"),
    _case("vit_base_patch16_clip_224"),
    _case("vit_base_patch16_siglip_224"),
    _case("vit_small_patch14_reg4_dinov2", img_size=56),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)
