"""timm's Eva on tokens: EVA, EVA02, DINOv3, Perception Encoder, rotary ViTs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import patchtree as pt
from models.adapt.harness import Case, adaptive, close, in_tree_order, uniform
from models.adapt.timm_cases import SMALL, case, checked, features
from patchtree.errors import InputError
from patchtree.models.adapt import adapt
from patchtree.patcher import Patches

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


@pytest.mark.parametrize(("case", "check"), checked(CASES))
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_rope_224", "vit_small_patch16_rope_mixed_224", "vit_small_patch16_dinov3"]
)
def test_positions_of_half_the_image_are_those_of_the_whole(name: str) -> None:
    """Leaves of the next level on an image twice as large stand where its half's patches do."""
    whole, half = (pt.Tree.uniform((side, side), 16, level=level) for side, level in ((128, 1), (64, 0)))
    _, adapted = case(name).make()
    pixels = np.random.default_rng(0).normal(size=(16, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        first, second = (adapted(pt.collate([Patches(pixels, tree)])) for tree in (whole, half))
    close(first, second, 1e-6)


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_rope_224", "vit_small_patch16_rope_mixed_224", "vit_small_patch16_dinov3"]
)
def test_places_are_disturbed_in_training_as_the_original_does(name: str) -> None:
    augment = {"rope_shift_coords": 0.5, "rope_jitter_coords": 1.5, "rope_rescale_coords": 2.0}
    model, adapted = case(name, **augment).make()
    adapted.train()
    image = torch.randn(2, 3, 64, 64)
    tokens = uniform(image, 16)
    with torch.no_grad():
        torch.manual_seed(7)
        expected = in_tree_order(features(model, image), tokens)
        torch.manual_seed(7)
        close(adapted(tokens), expected, 1e-5)
        assert (adapted(tokens) - expected).abs().max() > 1e-3  # another draw


def test_positions_on_adaptive_trees() -> None:
    """Leaves turn by their centres in cells of the uniform grid with as many leaves, padding or not."""
    model, adapted = case("vit_small_patch16_rope_224").make()
    items = [adaptive(n, 16, 3, seed=n) for n in (30, 61)]
    _, places = adapted.embed(pt.collate(items, length=70))
    for own, item in zip(places, items, strict=True):
        cell = (item.tree.shape[0] * item.tree.shape[1] / len(item.tree)) ** 0.5
        place = torch.from_numpy(item.tree.centres() / cell - 0.5)  # this model's x comes first
        angle = (place.flip(1)[..., None] * model.rope.bands).flatten(1)
        expected = torch.cat([angle.sin(), angle.cos()], dim=-1).repeat_interleave(2, -1)
        close(own[1 : 1 + len(item.tree)], expected.float(), 1e-5)
        assert own[0].tolist() == [0.0] * model.rope.dim + [1.0] * model.rope.dim  # the class token is not turned


def test_rotary_positions_of_another_kind_are_refused() -> None:
    model = timm.create_model("vit_small_patch16_rope_224", **SMALL, img_size=64)
    model.rope = nn.Identity()
    with pytest.raises(InputError, match=r"Identity are not known; use through_mosaic"):
        adapt(model)
