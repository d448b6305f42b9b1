"""The reference model: a U-Net on the mesh with a transformer at the bottom."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.losses import cross_entropy
from patchtree.models.adapt.base import sizes
from patchtree.models.choose import build, build_model
from patchtree.models.ghosts import ghost_batch
from patchtree.models.layers import standardise
from patchtree.models.mesh import SIZES, MeshEncoder, set_reach
from patchtree.models.segmenter import Segmenter
from patchtree.patcher import Patches
from patchtree.patches import count_labels, cut
from patchtree.tokens import Tokens, collate
from patchtree.tree import Tree, cover_level, grow


def random_tree(shape: tuple[int, ...], patch_size: int, seed: int, share: float = 0.6) -> Tree:
    rng = np.random.default_rng(seed)
    return grow(shape, patch_size, cover_level(shape, patch_size), lambda level, cells: rng.random(len(cells)) < share)


def random_tokens(
    shapes: list[tuple[int, ...]], patch_size: int = 16, channels: int = 3, length: int | None = None
) -> Tokens:
    rng = np.random.default_rng(0)
    batch = []
    for seed, shape in enumerate(shapes):
        tree = random_tree(shape, patch_size, seed)
        pixels = rng.standard_normal((len(tree), *(patch_size,) * len(shape), channels), np.float32)
        batch.append(Patches(pixels, tree))
    return collate(batch, length=length)


def uniform_tokens(*shapes: tuple[int, ...]) -> Tokens:
    rng = np.random.default_rng(0)
    trees = [Tree.uniform(shape, 16) for shape in shapes]
    return collate([Patches(rng.standard_normal((len(tree), 16, 16, 3), np.float32), tree) for tree in trees])


def take(tokens: Tokens, b: int) -> Tokens:
    """Image b alone, without its padding."""
    tree = tokens.trees[b]
    return replace(
        tokens,
        pixels=tokens.pixels[b : b + 1, : len(tree)],
        centre=tokens.centre[b : b + 1, : len(tree)],
        level=tokens.level[b : b + 1, : len(tree)],
        valid=tokens.valid[b : b + 1, : len(tree)],
        extent=tokens.extent[b : b + 1],
        trees=(tree,),
    )


def reference(labels: int, size: str = "tiny", **options: Any) -> Segmenter:
    return build_model(f"patchtree:{size}", labels, **options)


def gradients(model: nn.Module, tokens: Tokens) -> dict[str, Tensor]:
    model.zero_grad()
    model(tokens)[tokens.valid].square().mean().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    return {name: grad.clone() for name, grad in grads.items() if grad is not None}


@pytest.mark.parametrize(
    ("patch_size", "size", "channels", "shapes"),
    [
        (4, "tiny", 1, [(13, 30)]),
        (8, "tiny", 4, [(64, 40), (9, 100)]),
        (16, "small", 3, [(64, 100)]),
        (32, "tiny", 3, [(100, 70), (33, 1)]),
        (4, "tiny", 1, [(10, 9, 20)]),
        (8, "tiny", 2, [(16, 20, 30), (8, 8, 8)]),
    ],
)
def test_every_patch_pixel_gets_its_logits(
    patch_size: int, size: str, channels: int, shapes: list[tuple[int, ...]]
) -> None:
    tokens = random_tokens(shapes, patch_size, channels)
    model = reference(5, channels=channels, patch_size=patch_size, size=size, ndim=len(shapes[0]))
    logits = model(tokens)
    assert logits.shape == (*tokens.valid.shape, *(patch_size,) * len(shapes[0]), 5)
    assert logits.isfinite().all()


def test_sizes_are_those_of_vit() -> None:
    with torch.device("meta"):
        encoders = {size: MeshEncoder(size) for size in SIZES}
    counts = {size: sum(p.numel() for p in encoder.blocks.parameters()) for size, encoder in encoders.items()}
    vit = {"small": 12 * 384**2 * 6, "base": 12 * 768**2 * 12}
    assert 2 * counts["nano"] < counts["tiny"] < 1e6
    assert all(1 < counts[size] / vit[size] < 1.02 for size in vit)


@pytest.mark.parametrize("shapes", [[(64, 100), (40, 48)], [(16, 20, 30)]])
def test_padding_changes_nothing(shapes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    ndim = len(shapes[0])
    patch_size = 16 if ndim == 2 else 8
    tokens = random_tokens(shapes, patch_size)
    longest = tokens.valid.shape[1]
    padded = random_tokens(shapes, patch_size, length=longest + 7)
    # Whatever stands on padding, nobody reads it.
    padded.pixels[~padded.valid] = 1e3
    padded.centre[~padded.valid] = 1e3
    model = reference(3, patch_size=patch_size, ndim=ndim).eval()
    expected, found = model(tokens), model(padded)[:, :longest]
    torch.testing.assert_close(found[tokens.valid], expected[tokens.valid], atol=1e-5, rtol=1e-5)
    for b in range(len(shapes)):
        alone = take(tokens, b)
        torch.testing.assert_close(model(alone)[0], expected[b, : len(alone.trees[0])], atol=1e-5, rtol=1e-5)


def test_ghosts_made_beforehand_are_the_same() -> None:
    tokens = random_tokens([(64, 100), (40, 48)])
    model = reference(2)
    beforehand = ghost_batch(tokens.trees, tokens.valid.shape[1], model.grids)
    assert model.grids == (4, 2, 1)
    assert model(tokens, beforehand).equal(model(tokens))


@pytest.mark.parametrize("ndim", [2, 3])
def test_gradients_reach_every_parameter(ndim: int) -> None:
    torch.manual_seed(0)
    tokens = random_tokens([(64, 100), (40, 48)] if ndim == 2 else [(16, 20, 30)], patch_size=8)
    for name, grad in gradients(reference(2, patch_size=8, ndim=ndim), tokens).items():
        assert grad.isfinite().all(), name
        assert grad.any(), name


@torch.no_grad()
def test_attention_reaches_as_far_as_it_is_told() -> None:
    tokens = uniform_tokens((100, 150))
    count = tokens.valid.shape[1]
    model = reference(2).eval()
    encoder: Any = model.encoder
    everywhere = model(tokens)
    for reach in (0, count, count + 1):
        set_reach(model, reach)
        assert model(tokens).equal(everywhere)
    set_reach(model, count // 3)
    assert not model(tokens).equal(everywhere)
    model.train()
    assert model(tokens).equal(everywhere)
    # Run by run it is the blocks on the leaves of that run alone.
    model.eval()
    length = -(-count // -(-count // (count // 3)))
    found = encoder.encode(tokens, (0,), ghost_batch(tokens.trees, count, model.grids))
    skips = encoder.way_down(tokens, ghost_batch(tokens.trees, count, model.grids))
    x = encoder.enter(skips[-1].view(1, count, -1)) + encoder.place(tokens.centre, sizes(tokens), tokens.extent)
    for first in range(0, count, length):
        run = x[:, first : first + length]
        for block in encoder.blocks:
            run = block(run)
        torch.testing.assert_close(found.tokens[:, first : first + length], run, atol=1e-5, rtol=1e-5)
    assert found.depths[0].shape == found.tokens.shape


@torch.no_grad()
def test_padding_changes_nothing_where_attention_has_a_reach() -> None:
    tokens = uniform_tokens((200, 260), (40, 48))
    model = reference(2).eval()
    set_reach(model, tokens.valid.shape[1] // 4)
    alone = take(tokens, 0)
    torch.testing.assert_close(model(tokens)[0, : len(alone.trees[0])], model(alone)[0], atol=1e-5, rtol=1e-5)
    assert model(tokens)[tokens.valid].isfinite().all()


@torch.no_grad()
def test_light_and_stain_are_seen_both_as_they_are_and_without() -> None:
    tokens = random_tokens([(64, 100), (40, 48)])
    brighter = replace(tokens, pixels=tokens.pixels * 1.5 + 0.7 * tokens.valid[..., None, None, None])
    shapes = []
    for each in (tokens, brighter):
        seen = standardise(each.pixels, each.valid)
        assert not seen[~each.valid].any()
        for image, valid in zip(seen, each.valid, strict=True):
            assert image[valid].mean((0, 2, 3)).abs().max() < 1e-5
            assert (image[valid].std((0, 2, 3), correction=0) - 1).abs().max() < 2e-3
        shapes.append(seen)
    torch.testing.assert_close(*shapes, atol=2e-3, rtol=2e-3)
    model = reference(2).eval()
    assert not model(tokens).allclose(model(brighter), atol=1e-3)


def test_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    tokens = random_tokens([(64, 100), (40, 48)])
    plain, saving = reference(2), reference(2)
    saving.checkpointing = True
    assert saving.checkpointing
    assert not plain.checkpointing
    saving.load_state_dict(plain.state_dict())
    expected, found = gradients(plain, tokens), gradients(saving, tokens)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name)


def test_checkpointing_runs_the_layers_twice() -> None:
    tokens = random_tokens([(64, 100)])
    runs = {}
    for checkpointing in (False, True):
        model = reference(2)
        model.checkpointing = checkpointing
        seen: list[None] = []
        encoder: Any = model.encoder
        head: Any = model.head
        for part in (*encoder.way_down.down, *head.up, *encoder.blocks):
            part.register_forward_pre_hook(lambda *_, seen=seen: seen.append(None))
        gradients(model, tokens)
        runs[checkpointing] = len(seen)
    assert runs[True] == 2 * runs[False]


def test_the_config_builds_the_model_again() -> None:
    built = build("patchtree:tiny", 3, channels=1, patch_size=8, ndim=3)
    again = build(labels=3, **json.loads(json.dumps(built.config)))
    assert again.config == built.config
    again.model.load_state_dict(built.model.state_dict())


def test_bfloat16_stays_close() -> None:
    torch.manual_seed(0)
    tokens = random_tokens([(64, 100), (40, 48)])
    model = reference(2).eval()
    expected = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens)
    assert found.isfinite().all()
    assert (found - expected)[tokens.valid].abs().max() < 0.05 * expected.abs().max()


def test_an_untrained_model_prefers_no_class() -> None:
    torch.manual_seed(0)
    tokens = random_tokens([(64, 100)])
    counts = torch.ones(*tokens.valid.shape, 16, 16, 4)
    assert abs(cross_entropy(reference(4)(tokens), counts).item() - math.log(4)) < 0.1


def test_it_learns_one_image_by_heart() -> None:
    torch.manual_seed(0)
    rows, columns = np.indices((64, 96))
    mask = ((rows - 30) ** 2 + (columns - 50) ** 2 < 400).astype(np.uint8)
    rng = np.random.default_rng(0)
    image = (mask[..., None] * 60 + rng.integers(0, 120, (64, 96, 3))).astype(np.uint8)
    tree = random_tree(mask.shape, 16, seed=0, share=0.9)
    tokens = collate([Patches(cut(image, tree), tree)], mean=(0.3,) * 3, std=(0.2,) * 3)
    counts = torch.from_numpy(count_labels(mask, tree, 2))[None]
    model = reference(2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss = cross_entropy(model(tokens), counts)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10, losses


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": "huge"}, "model 'patchtree:huge' is unknown; near it: patchtree:nano, patchtree:tiny"),
        ({"patch_size": 2}, "patch size 2 .* power of two, 4 or more"),
        ({"patch_size": 12}, "patch size 12 .* power of two, 4 or more"),
        ({"ndim": 4}, "ndim 4"),
        ({"channels": 0}, "0 channels"),
        ({"labels": 0}, "labels {} are not possible"),
    ],
)
def test_impossible_models_are_refused(arguments: dict[str, int | str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        reference(**{"labels": 2, **arguments})


@pytest.mark.parametrize("arguments", [{"channels": 1}, {"patch_size": 8}, {"ndim": 3}])
def test_tokens_of_another_kind_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="tokens have 3 channels and patches of 16 x 16 pixels, the model was made"):
        reference(2, **arguments)(random_tokens([(40, 40)]))
