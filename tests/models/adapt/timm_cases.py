"""Cases of timm's models: built small by name, held to the features of the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import timm
from torch import Tensor

from models.adapt.harness import CHECKS, Case, check_counts

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}


def features(model: Any, image: Tensor) -> Tensor:
    return model.forward_features(image)[:, model.num_prefix_tokens :]


def pooled(model: Any, image: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(image), pre_logits=True)


def dynamic(name: str, options: dict[str, Any], model: Any, image: Tensor) -> Tensor:
    """As a copy of the model built with dynamic_img_size, which resamples positions itself."""
    copy = timm.create_model(name, **options, dynamic_img_size=True).eval()
    copy.load_state_dict(model.state_dict())
    return features(copy, image)


def as_built(name: str, options: dict[str, Any], model: Any, image: Tensor) -> Tensor:
    return features(model, image)


def case(
    name: str,
    label: str = "",
    resized: Callable[[str, dict[str, Any], Any, Tensor], Tensor] | None = dynamic,
    **options: Any,
) -> Case:
    """Build a case of 4 x 4 patches, and of 3 x 7 where timm has a path for other grids (`resized`)."""
    patch = 14 if "patch14" in name else 32 if "patch32" in name else 16
    options = {**SMALL, "img_size": 4 * patch, **options}
    return Case(
        f"{name}-{label}" if label else name,
        partial(timm.create_model, name, **options),
        features,
        native=(options["img_size"],) * 2,
        other=None if resized is None else (patch * 3, patch * 7),
        resized=None if resized is None else partial(resized, name, options),
        pooled=pooled if options.get("global_pool") != "" else None,
    )


def checked(cases: Sequence[Case]) -> list[Any]:
    """Pair every case with every check; with 4096 tokens the first always, the others among the slow tests."""
    return [
        pytest.param(
            case,
            check,
            id=f"{case.name}-{check.__name__}",
            marks=pytest.mark.slow if check is check_counts and case is not cases[0] else (),
        )
        for case in cases
        for check in CHECKS
    ]
