"""timm's NaFlexVit on tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.adapt.harness import CHECKS, Case
from models.adapt.timm_cases import as_built, case

_GRID = {"resized": as_built, "pos_embed_grid_size": (4, 4)}

CASES = (
    case("naflexvit_base_patch16_gap", **_GRID),
    case("naflexvit_base_patch16_map", **_GRID),
    case("naflexvit_base_patch16_par_gap", **_GRID),
    case("naflexvit_base_patch16_parfac_gap", **_GRID),
    case("naflexvit_base_patch16_gap", "factorized", pos_embed="factorized", **_GRID),
    case("naflexvit_base_patch16_siglip", **_GRID),
    case("naflexvit_so150m2_patch16_reg1_gap", **_GRID),
    case("naflexvit_base_patch16_radio_v3", resized=as_built, pos_embed_grid_size=(6, 6)),
    case("naflexvit_base_patch16_gap", "axial", rope_type="axial", rope_ref_feat_shape=(5, 5), **_GRID),
    case("naflexvit_base_patch16_gap", "mixed", rope_type="mixed", **_GRID),
    case("naflexvit_base_patch16_gap", "dinov3", pos_embed="none", rope_type="dinov3", rope_rotate_half=True, **_GRID),
    case("naflexvit_base_patch16_gap", "conv", embed_proj_type="conv", **_GRID),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)
