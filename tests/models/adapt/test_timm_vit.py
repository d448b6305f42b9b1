"""timm's VisionTransformer on tokens."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

import patchtree as pt
from models.adapt.harness import Case, adaptive, close, in_tree_order, uniform
from models.adapt.timm_cases import SMALL, case, checked, features
from patchtree.errors import InputError
from patchtree.models.adapt import adapt
from patchtree.patcher import Patches

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


@pytest.mark.parametrize(("case", "check"), checked(CASES))
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)


def test_attention_that_is_not_fused_is_not_packed() -> None:
    model, fused = case("vit_tiny_patch16_224").make()
    assert fused.packs
    tokens = pt.collate([adaptive(n, 16, 3) for n in (20, 61)])
    with torch.no_grad():
        expected = fused(tokens)
        for block in model.blocks:
            block.attn.fused_attn = False
        plain = adapt(model)
        assert not plain.packs
        close(plain(tokens)[tokens.valid], expected[tokens.valid], 1e-5)
        with pytest.raises(RuntimeError, match=r"block 0 .* set packs = False"):
            fused(tokens)


def test_positions_of_half_the_image_are_those_of_the_whole() -> None:
    """Leaves of the next level on an image twice as large stand where its half's patches do."""
    whole, half = (pt.Tree.uniform((side, side), 16, level=level) for side, level in ((128, 1), (64, 0)))
    _, adapted = case("vit_tiny_patch16_224").make()
    pixels = np.random.default_rng(0).normal(size=(16, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        first, second = (adapted(pt.collate([Patches(pixels, tree)])) for tree in (whole, half))
    close(first, second, 1e-6)


def test_positions_are_not_rounded_under_autocast() -> None:
    _, adapted = case("vit_tiny_patch16_224").make()
    tokens = pt.collate([adaptive(40, 16, 3)])
    tokens = dataclasses.replace(tokens, pixels=torch.zeros_like(tokens.pixels))  # patches are rounded
    with torch.no_grad():
        expected, _ = adapted.embed(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, _ = adapted.embed(tokens)
    close(rounded[:, 1:] - rounded[:, 1:2], expected[:, 1:] - expected[:, 1:2], 1e-5)


@pytest.mark.parametrize("side", [8, 24])
def test_patches_of_another_size(side: int) -> None:
    """The kernel is resized as timm does, and one word is said."""
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, img_size=64).eval()
    adapted = adapt(model)
    image = torch.randn(1, 3, 4 * side, 4 * side)
    tokens = uniform(image, side)
    with pytest.warns(UserWarning, match=f"patches are 16 x 16, the tokens' {side} x {side}"):
        out = adapted(tokens)
    close(adapted(tokens), out, 0)  # a second warning would be an error
    copy = timm.create_model("vit_tiny_patch16_224", **SMALL, img_size=4 * side, patch_size=side).eval()
    state = model.state_dict()
    kernel = resample_patch_embed(state["patch_embed.proj.weight"], [side, side])
    copy.load_state_dict({**state, "patch_embed.proj.weight": kernel})
    close(out, in_tree_order(features(copy, image), tokens), 1e-5)


def test_recomputes_activations_if_the_original_does() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, img_size=64)
    model.set_grad_checkpointing()
    assert adapt(model).checkpointing


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(nn.Linear, 2, 2), r"Linear is of no family .* use through_mosaic\(model\)"),
        (
            partial(timm.create_model, "swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1), num_heads=(2, 2)),
            r"SwinTransformer is of no family .* use through_mosaic\(model\)",
        ),
        (
            partial(timm.create_model, "vit_small_r26_s32_224", embed_dim=48, depth=1, num_heads=3),
            r"patch embedding HybridEmbed looks beyond the patch; use through_mosaic\(model\)",
        ),
        (partial(timm.create_model, "vit_tiny_patch16_224", patch_drop_rate=0.1, depth=1), "patch_drop_rate=0"),
        (partial(timm.create_model, "vit_tiny_patch16_224", patch_size=(16, 8), depth=1), "16 x 8; leaves are square"),
    ],
    ids=["linear", "swin", "hybrid", "drop", "oblong"],
)
def test_what_it_cannot_take(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        adapt(build())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", list(CheckpointImpl))
def test_wrapped_blocks_change_no_gradient(kind: CheckpointImpl) -> None:
    model, adapted = case("vit_tiny_patch16_224").make()
    tokens = pt.collate([adaptive(n, 16, 3) for n in (20, 61)])

    def gradients(adapted: nn.Module) -> list[torch.Tensor]:
        adapted.train().zero_grad()
        adapted(tokens)[tokens.valid].square().mean().backward()
        return [weight.grad.clone() for weight in adapted.parameters() if weight.grad is not None]

    expected = gradients(adapted)
    model.blocks = nn.Sequential(*[checkpoint_wrapper(block, checkpoint_impl=kind) for block in model.blocks])
    for own, wanted in zip(gradients(adapt(model)), expected, strict=True):
        close(own, wanted, 1e-4)


def test_checkpoints_inside_a_block_are_refused_where_they_would_mix_images() -> None:
    model, adapted = case("vit_tiny_patch16_224").make()
    tokens = pt.collate([adaptive(n, 16, 3) for n in (20, 61)])
    attend = model.blocks[0].attn.forward
    model.blocks[0].attn.forward = lambda x, *rest, **_: checkpoint(attend, x, use_reentrant=True)
    with pytest.raises(ValueError, match="set checkpointing = True, or packs = False"):
        adapted.train()(tokens)


def test_what_is_adapted_stays_so() -> None:
    _, adapted = case("vit_tiny_patch16_224").make()
    assert adapt(adapted) is adapted
