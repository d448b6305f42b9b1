"""timm's BEiT on tokens."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from models.adapt.harness import Case
from models.adapt.timm_cases import case, checked, features


def _resized(name: str, options: dict[str, Any], model: Any, image: Tensor) -> Tensor:
    """As timm's own way to another grid, which resizes the tables of bias."""
    copy = deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm indexes by lists
        copy.set_input_size(tuple(image.shape[2:]))
    return features(copy, image)


CASES = (
    case("beit_base_patch16_224", resized=_resized),
    case("beitv2_base_patch16_224", resized=_resized),
    case("beit_base_patch16_224", "shared", resized=_resized, use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
    case("beit_base_patch16_224", "both", resized=_resized, use_abs_pos_emb=True, use_shared_rel_pos_bias=True),
    case("beit_base_patch16_224", "absolute", resized=_resized, use_abs_pos_emb=True, use_rel_pos_bias=False),
)


@pytest.mark.parametrize(("case", "check"), checked(CASES))
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)
