"""timm's Eva on tokens: EVA, EVA02, DINOv3, Perception Encoder, rotary ViTs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.adapt.harness import CHECKS, Case
from models.adapt.timm_cases import case

CASES = (
    case("eva_giant_patch14_224"),
    case("eva02_tiny_patch14_224"),
    case("eva02_base_patch16_clip_224"),
    case("vit_small_patch16_dinov3"),
    case("vit_small_patch16_dinov3_qkvb", "avg", global_pool="avg"),
    case("vit_small_patch16_rope_224"),
    case("vit_small_patch16_rope_ape_224"),
    case("vit_small_patch16_rope_mixed_ape_224", num_heads=2),
    case("vit_medium_patch16_rope_reg1_gap_256"),
    case("vit_pe_core_tiny_patch16_384"),
    case("vit_pe_spatial_tiny_patch16_512"),
    case("vit_base_patch16_sapiens2", num_kv_heads=1),
    case(
        "vit_small_patch16_rope_224", "mrope", rope_type="mrope", rope_grid_indexing="ij", rope_mrope_section=(2, 3, 3)
    ),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)
