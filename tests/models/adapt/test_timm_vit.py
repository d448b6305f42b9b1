"""timm's VisionTransformer on tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.adapt.harness import CHECKS, Case
from models.adapt.timm_cases import case

CASES = (
    case("vit_tiny_patch16_224"),
    case("vit_base_patch16_224.augreg_in21k"),
    case("vit_base_patch16_224.mae", global_pool="avg"),
    case("vit_base_patch32_clip_224"),
    case("vit_base_patch16_siglip_224"),
    case("vit_so150m_patch16_reg4_map_256"),
    case("vit_small_patch14_dinov2"),
    case("vit_small_patch14_reg4_dinov2"),
    case("deit_tiny_patch16_224", "avgmax", global_pool="avgmax"),
    case("deit_tiny_distilled_patch16_224"),
    case("deit3_small_patch16_224"),
    case("vit_medium_patch16_gap_240", "max", global_pool="max"),
    case("vit_medium_patch16_reg4_gap_256"),
    case("vit_betwixt_patch16_reg4_gap_256", "prefix", pool_include_prefix=True),
    case("vit_base_patch16_rpn_224"),
    case("vit_base_patch16_xp_224"),
    case("vit_small_patch16_18x2_224"),
    case("vit_dlittle_patch16_reg1_gap_256", num_heads=2),
    case("beit3_base_patch16_224"),
    case("aimv2_large_patch14_224"),
    case("vit_tiny_patch16_224", "prr", global_pool="prr"),
    case("vit_tiny_patch16_224", "unpooled", global_pool="", qk_norm=True, pos_embed="none"),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)
