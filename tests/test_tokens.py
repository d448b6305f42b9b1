"""Batches hold what the patches hold, and each inverse pair comes back."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader

from patchtree.errors import InputError
from patchtree.patcher import Patches
from patchtree.patches import cut
from patchtree.tokens import Tokens, collate, mosaic, pad, unmosaic, unpad
from patchtree.tree import Tree, cover_level, grow

PATCH = 4
FULL_SCALE = {"uint8": 255, "uint16": 65535, "int16": 1, "float32": 1, "bool": 1}


def make_patches(
    shape: tuple[int, ...] = (20, 33), channels: int | None = 3, dtype: str = "uint8", seed: int = 0, **kwargs: Any
) -> Patches:
    """Random pixels on a tree refined at random."""
    rng = np.random.default_rng(seed)
    top = cover_level(shape, PATCH)
    tree = grow(shape, PATCH, top, lambda level, cells: (rng.random(len(cells)) < 0.7) | (level == top))
    size = (len(tree), *[PATCH] * tree.ndim, *([channels] if channels else []))
    high = {"bool": 2, "int16": 3000, "float32": 100}.get(dtype, FULL_SCALE[dtype] + 1)
    return Patches(rng.integers(0, high, size).astype(dtype), tree, **kwargs)


def make_tokens(count: int, batch: int = 1, channels: int = 3, patch_size: int = PATCH) -> Tokens:
    """A batch whose sequence is `count` long: a strip of leaves."""
    rng = np.random.default_rng(count)
    tree = Tree.uniform((patch_size, count * patch_size), patch_size)
    size = (count, patch_size, patch_size, channels)
    return collate([Patches(rng.random(size, np.float32), tree) for _ in range(batch)])


@pytest.mark.parametrize("dtype", FULL_SCALE)
@pytest.mark.parametrize("channels", [None, 1, 3, 6])
@pytest.mark.parametrize("shape", [(20, 33), (9, 7, 14)])
def test_collate_normalises_and_pads(shape: tuple[int, ...], channels: int | None, dtype: str) -> None:
    batch = [make_patches(shape, channels, dtype, seed) for seed in range(3)]
    c = channels or 1
    mean, std = np.linspace(0.2, 0.7, c), np.linspace(0.3, 0.1, c)
    tokens = collate(batch, mean=mean.tolist(), std=std.tolist())
    longest = max(len(item.pixels) for item in batch)
    assert len({len(item.pixels) for item in batch}) > 1
    assert tokens.pixels.shape == (3, longest, c, *[PATCH] * len(shape))
    assert (tokens.pixels.dtype, tokens.level.dtype, tokens.valid.dtype) == (torch.float32, torch.int64, torch.bool)
    assert (tokens.patch_size, tokens.ndim) == (PATCH, len(shape))
    for i, item in enumerate(batch):
        n = len(item.pixels)
        for leaf in (0, n // 2, n - 1):
            for channel in range(c):
                pixels = item.pixels[leaf] if channels is None else item.pixels[leaf][..., channel]
                expected = (pixels / FULL_SCALE[dtype] - mean[channel]) / std[channel]
                np.testing.assert_allclose(tokens.pixels[i, leaf, channel], expected, rtol=1e-5, atol=1e-5)
        assert not tokens.pixels[i, n:].any()
        assert tokens.valid[i].tolist() == [True] * n + [False] * (longest - n)
        assert tokens.level[i].tolist() == item.tree.level.tolist() + [0] * (longest - n)
        assert tokens.centre[i, :n].tolist() == item.tree.centres().tolist()
        assert tokens.extent[i].tolist() == list(shape)
    assert tokens.trees == tuple(item.tree for item in batch)


def test_collate_without_statistics_only_scales() -> None:
    item = make_patches()
    assert np.array_equal(collate([item]).pixels[0].permute(0, 2, 3, 1), item.pixels.astype(np.float32) / 255)


def test_collate_places_a_window_in_its_image() -> None:
    item = make_patches(origin=(1000, 64), extent=(4096, 2048))
    tokens = collate([item, make_patches()])
    assert tokens.centre[0].tolist() == np.add(item.tree.centres(), (1000, 64)).tolist()
    assert tokens.extent.tolist() == [[4096, 2048], [20, 33]]


def test_collate_takes_read_only_and_foreign_arrays() -> None:
    item = make_patches(dtype="uint16")
    pixels = item.pixels.astype(">u2")
    pixels.flags.writeable = False
    assert torch.equal(collate([Patches(pixels, item.tree)]).pixels, collate([item]).pixels)


def test_a_batch_travels_between_processes() -> None:
    tokens = collate([make_patches()])
    there = pickle.loads(pickle.dumps(tokens))
    assert torch.equal(there.pixels, tokens.pixels)
    assert there.trees == tokens.trees


@pytest.mark.parametrize(
    ("others", "kwargs", "message"),
    [
        ([make_patches(channels=4)], {}, r"patches 1 of the batch have .* \(4, 4, 4\), the first have \(3, 4, 4\)"),
        ([make_patches(channels=None)], {}, r"\(1, 4, 4\), the first have \(3, 4, 4\)"),
        ([make_patches((9, 7, 14))], {}, r"\(3, 4, 4, 4\), the first have \(3, 4, 4\)"),
        ([Patches(np.zeros((1, 2, 2, 3), np.uint8), Tree.uniform((2, 2), 2))], {}, r"\(3, 2, 2\), the first"),
        ([], {"mean": (0.5,)}, "mean has 1 numbers, the patches 3 channels; give one a channel"),
        ([], {"std": (0.5, 0.5, 0.5, 0.5)}, "std has 4 numbers, the patches 3 channels; give one a channel"),
        ([], {"std": (0.5, 0.0, 0.5)}, r"std is \(0.5, 0.0, 0.5\); give positive numbers"),
        ([], {"length": 2}, r"length is 2, the longest sequence \d+; give \d+ or more"),
    ],
)
def test_collate_refuses(others: list[Patches], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        collate([make_patches(), *others], **kwargs)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InputError, match="no patches"):
        collate([])
    with pytest.raises(InputError, match="no sequences"):
        pad([])


def test_to_moves_every_tensor() -> None:
    tokens = collate([make_patches()])
    moved = tokens.to("meta", non_blocking=True)
    assert {t.device.type for t in vars(moved).values() if isinstance(t, torch.Tensor)} == {"meta"}
    assert moved.trees == tokens.trees


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only memory that a GPU reads is page-locked")
def test_pin_memory() -> None:
    loader: DataLoader[Any] = DataLoader([make_patches()], collate_fn=collate, pin_memory=True)
    assert next(iter(loader)).pixels.is_pinned()


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), more=st.none() | st.integers(0, 3))
def test_unpad_inverts_pad(counts: list[int], more: int | None) -> None:
    tokens = collate([make_patch_row(count) for count in counts], length=None if more is None else max(counts) + more)
    arrays = [np.random.default_rng(count).random((count, 2, 5)) for count in counts]
    values = pad(arrays, length=tokens.valid.shape[1])
    assert values.dtype == torch.float64
    assert not values[~tokens.valid].any()
    for own, array in zip(unpad(values, tokens), arrays, strict=True):
        assert np.array_equal(own, array)


def make_patch_row(count: int) -> Patches:
    return Patches(np.zeros((count, 2, 2), np.uint8), Tree.uniform((2, 2 * count), 2))


def test_pad_takes_what_torch_does_not() -> None:
    backwards = np.arange(6, dtype=np.uint16)[::-1]
    backwards.flags.writeable = False
    assert pad([backwards, backwards[:2]]).tolist() == [[5, 4, 3, 2, 1, 0], [5, 4, 0, 0, 0, 0]]


@pytest.mark.parametrize("other", [torch.zeros(3, 1), torch.zeros(3, 2, dtype=torch.int64)])
def test_pad_refuses_unlike_sequences(other: torch.Tensor) -> None:
    with pytest.raises(InputError, match="sequences"):
        pad([torch.zeros(3, 2), other])


def test_unpad_refuses_another_batch() -> None:
    with pytest.raises(InputError, match=r"values are \(1, 5, 2\), the tokens \(1, 4\)"):
        unpad(torch.zeros(1, 5, 2), make_tokens(4))


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("side", [4, 32, 64])
def test_the_mosaic_of_a_uniform_tree_is_the_image(side: int, level: int, channels: int | None) -> None:
    size = (side, side, *([channels] if channels else []))
    small = np.random.default_rng(side).random(size, np.float32)
    image = small.repeat(2**level, 0).repeat(2**level, 1)
    tree = Tree.uniform(image.shape[:2], PATCH, level)
    tokens = collate([Patches(cut(image, tree), tree)])
    assert np.array_equal(mosaic(tokens)[0].permute(1, 2, 0), small.reshape(side, side, -1))


@settings(max_examples=30)
@given(count=st.integers(1, 300), batch=st.integers(1, 2))
def test_unmosaic_inverts_mosaic(count: int, batch: int) -> None:
    tokens = make_tokens(count, batch)
    images = mosaic(tokens)
    side = images.shape[-1] // PATCH
    assert images.shape == (batch, 3, side * PATCH, side * PATCH)
    assert side**2 >= count
    assert (side // 2) ** 2 < count
    assert torch.equal(unmosaic(images, tokens), tokens.pixels.movedim(2, -1))


@pytest.mark.parametrize("count", [1, 2, 5, 16, 100])
def test_tiles_follow_the_morton_curve(count: int) -> None:
    tokens = make_tokens(count)
    images = mosaic(tokens)
    for i in range(count):
        bits = f"{i:032b}"
        row, col = PATCH * int(bits[0::2], 2), PATCH * int(bits[1::2], 2)
        tile = images[0, :, row : row + PATCH, col : col + PATCH]
        assert torch.equal(tile, tokens.pixels[0, i])
        tile.zero_()
    assert not images.any()


@pytest.mark.parametrize("count", [1, 6, 70])
def test_unmosaic_takes_maps_of_another_resolution(count: int) -> None:
    tokens = make_tokens(count, batch=2, patch_size=8)
    images = mosaic(tokens)
    quarter = unmosaic(F.avg_pool2d(images, 4), tokens)
    assert quarter.shape == (2, count, 2, 2, 3)
    torch.testing.assert_close(quarter.movedim(-1, 2).flatten(0, 1), F.avg_pool2d(tokens.pixels.flatten(0, 1), 4))
    double = unmosaic(F.interpolate(images, scale_factor=2), tokens)
    torch.testing.assert_close(
        double.movedim(-1, 2).flatten(0, 1), F.interpolate(tokens.pixels.flatten(0, 1), scale_factor=2)
    )


def test_gradients_flow_back_to_the_images_tiles() -> None:
    tokens = make_tokens(3)
    images = torch.zeros(1, 2, 8, 8, requires_grad=True)
    unmosaic(images, tokens).sum().backward()
    assert images.grad is not None
    assert images.grad[0, 0].tolist() == np.kron([[1, 1], [1, 0]], np.ones((4, 4))).tolist()


@pytest.mark.parametrize("size", [(16, 20), (18, 18), (2, 2), (0, 0)])
def test_unmosaic_refuses_other_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"images are {size[0]} x {size[1]}; a mosaic of 4 x 4 tiles"):
        unmosaic(torch.zeros(1, 2, *size), make_tokens(16))


def test_a_mosaic_is_flat() -> None:
    tokens = collate([make_patches((9, 7, 14))])
    with pytest.raises(InputError, match="these patches are 3-D"):
        mosaic(tokens)


def test_tokens_have_no_type_to_change() -> None:
    tokens = collate([Patches(np.zeros((4, 16, 16, 3), np.uint8), Tree.uniform((32, 32), 16))])
    with pytest.raises(InputError, match="tokens have no type of their own"):
        tokens.to(torch.bfloat16)  # type: ignore[arg-type]


def test_a_mean_of_bytes_is_refused() -> None:
    patches = Patches(np.zeros((4, 16, 16, 3), np.uint8), Tree.uniform((32, 32), 16))
    with pytest.raises(InputError, match="not on the scale of 0 to 1"):
        collate([patches], mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
