"""timm's NaFlexVit on tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.naflexvit import batch_patchify
from torch import Tensor, nn

from models.adapt.harness import Case, check_equal, close, in_tree_order, uniform
from models.adapt.timm_cases import SMALL, as_built, case, checked
from patchtree.errors import InputError
from patchtree.models.adapt import adapt

_GRID = {"resized": as_built, "pos_embed_grid_size": (4, 4)}
_build: Any = partial(timm.create_model, "naflexvit_base_patch16_gap", **SMALL, pos_embed_grid_size=(4, 4))

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


@pytest.mark.parametrize(("case", "check"), checked(CASES))
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)


def _flexible(model: Any, image: Tensor, **options: Any) -> Tensor:
    """As the original's own path for sequences of patches."""
    side = model.embeds.patch_size[0]
    patches, (rows, columns) = batch_patchify(image, (side, side), channels_last=model.embeds.channels_last)
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).view(1, -1, 2)
    place = place.expand(len(image), -1, -1)
    out = model.forward_features(patches, patch_coord=place, patch_valid=torch.ones(place.shape[:2], dtype=torch.bool))
    return out["patches"][:, model.num_prefix_tokens :]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "options",
    [
        {"pos_embed_use_grid_sample": True},
        {"pos_embed_use_grid_sample": True, "pos_embed_ar_preserving": True},
        {"pos_embed_use_grid_sample": True, "pos_embed": "factorized"},
        {"patchify_channels_last": False},
        {"class_token": True, "reg_tokens": 2, "pre_norm": True},
    ],
    ids=["sampled", "sampled-aspect", "sampled-factorized", "channels-first", "prefix"],
)
def test_equals_its_own_path_for_patches(options: dict[str, Any]) -> None:
    made = Case("naflex", partial(_build, **options), _flexible, native=(64, 64), other=(48, 112))
    check_equal(made)


@pytest.mark.parametrize("last", [True, False])
def test_patches_of_another_size(last: bool) -> None:
    """The projection is resized as the model's own interpolator of patches does."""
    model = _build(enable_patch_interpolator=True, patchify_channels_last=last).eval()
    adapted = adapt(model)
    image = torch.randn(1, 3, 32, 32)
    tokens = uniform(image, 8)
    patches, _ = batch_patchify(image, (8, 8), channels_last=last)
    patches = patches.unflatten(-1, (8, 8, 3) if last else (3, 8, 8))
    place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), -1).view(1, -1, 2)
    with pytest.warns(UserWarning, match="16 x 16, the tokens' 8 x 8"):
        out = adapted(tokens)
    expected = model.forward_features(patches, patch_coord=place)["patches"][:, model.num_prefix_tokens :]
    close(out, in_tree_order(expected, tokens), 1e-5)


def test_normalised_patches_keep_their_size() -> None:
    model = _build()
    model.embeds.norm_input = nn.LayerNorm(16 * 16 * 3)
    adapted = adapt(model)
    with pytest.raises(InputError, match="takes no others; the tokens' are 8 x 8"):
        adapted(uniform(torch.randn(1, 3, 32, 32), 8))


def test_smooth_positions_aligned_at_corners_are_refused() -> None:
    with pytest.raises(InputError, match="pos_embed_antialias"):
        adapt(_build(pos_embed_align_corners=True))
