"""Windows patched from an image's levels are those that the slow way gives: turned whole, then patched and counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import Patcher, Tree, count_labels
from patchtree.augment import Window, take
from patchtree.cache import Cached, cache_data
from patchtree.datasets import find_data
from patchtree.detail import Residual
from patchtree.io.images import write_image, write_mask
from patchtree.mips import Mips, align, cut_window, make_mips, open_mips, suits, work
from patchtree.windows import Windows

SHAPE = (300, 420)


def blobs(seed: int, shape: tuple[int, ...] = SHAPE, dtype: Any = np.uint8) -> NDArray[Any]:
    """Smooth in some places and fine in others."""
    rng = np.random.default_rng(seed)
    channels = shape[2:]
    coarse = cv2.resize(rng.random((8, 9, *channels), np.float32), shape[1::-1], interpolation=cv2.INTER_CUBIC)
    fine = rng.random(shape, np.float32) * (np.arange(shape[1]) > shape[1] // 2).reshape(1, -1, *(1,) * len(channels))
    mixed = np.clip(0.7 * coarse.reshape(shape) + 0.3 * fine, 0, 1)
    return np.asarray(mixed if dtype == np.float32 else mixed * np.iinfo(dtype).max, dtype)


def ids(seed: int, shape: tuple[int, int] = SHAPE) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 3, (10, 14), dtype=np.uint8)
    mask[0, 0] = 255
    return np.asarray(cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


def slowly(
    image: NDArray[Any], mask: NDArray[Any], window: Window, patcher: Patcher, ignore: int | None = 255
) -> tuple[NDArray[Any], Tree, NDArray[np.float32]]:
    patches = patcher(take(image, window))
    return patches.pixels, patches.tree, count_labels(take(mask, window, ids=True), patches.tree, 3, ignore)


def inside(tree: Tree) -> NDArray[np.bool_]:
    return np.asarray(tree.inside() == 1)


@given(
    seed=st.integers(0, 5),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    channels=st.sampled_from([(), (3,)]),
    corner=st.tuples(st.integers(0, 10), st.integers(0, 20)),
    shape=st.tuples(st.integers(32, 64), st.integers(32, 80)),
    flip=st.booleans(),
    turns=st.integers(0, 3),
    patch_size=st.sampled_from([4, 8, 16]),
    budget=st.integers(12, 90),
)  # fmt: skip
def test_turned_windows_are_those_of_the_slow_way(
    seed: int, dtype: Any, channels: tuple[int, ...], corner: tuple[int, int], shape: tuple[int, int], flip: bool,
    turns: int, patch_size: int, budget: int,
) -> None:  # fmt: skip
    image, mask = blobs(seed, (*SHAPE, *channels), dtype), ids(seed)
    window = Window((4 * corner[0], 4 * corner[1]), (4 * shape[0], 4 * shape[1]), flip=flip, turns=turns)
    patcher = Patcher(patch_size, budget, detail=Residual(noise=0))
    pixels, tree, counts = cut_window(make_mips(image, mask, (0, 1, 2, 255)), window, patcher, 3, ignore=255)
    expected, slow, slow_counts = slowly(image, mask, window, patcher)
    # Sums of squares are rounded in other places: cells of nearly equal detail may change places.
    assert (tree.level != slow.level).sum() <= 8 if len(tree) == len(slow) else abs(len(tree) - len(slow)) <= 3
    if tree != slow:
        return
    alike = inside(tree) & (tree.level <= 2)
    step = {np.uint8: 1, np.uint16: 2, np.float32: 1e-5}[dtype]
    expected = expected.reshape(pixels.shape)
    assert np.abs(pixels[alike].astype(float) - expected[alike]).max(initial=0) <= step
    np.testing.assert_allclose(counts[alike], slow_counts[alike], atol=1e-3)
    np.testing.assert_allclose(counts.sum((0, 1, 2)), slow_counts.sum((0, 1, 2)), atol=0.05 * mask.size)


@given(
    angle=st.floats(-15, 15), scale=st.floats(0.8, 1.25), flip=st.booleans(), turns=st.integers(0, 3),
    corner=st.tuples(st.integers(0, 44), st.integers(0, 163)),
)  # fmt: skip
def test_rotated_windows_show_what_the_slow_way_shows(
    angle: float, scale: float, flip: bool, turns: int, corner: tuple[int, int]
) -> None:
    image = cv2.GaussianBlur(blobs(1, (*SHAPE, 3)), (0, 0), 3)
    window = Window(corner, (256, 256), angle, scale, flip, turns)
    patcher = Patcher(8, 200, detail=Residual(noise=0))
    pixels, tree, counts = cut_window(make_mips(image, ids(1), (0, 1, 2, 255)), window, patcher, 3, ignore=255)
    shown = take(image, window)
    assert np.abs(tree.paint(pixels.astype(np.float32), smooth=True) - shown).mean() < 3
    true = take(ids(1), window, ids=True)
    found = tree.paint(counts.argmax(-1).astype(np.uint8))
    known = true != 255
    assert (found[known] == true[known]).mean() > 0.93


@pytest.fixture
def source(tmp_path: Path) -> Cached:
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    write_image(tmp_path / "set" / "images" / "a.png", blobs(0, (*SHAPE, 3)))
    write_mask(tmp_path / "set" / "masks" / "a.png", ids(0))
    labels = '{"labels": {"background": 0, "one": 1, "two": 2, "ignore": 255}}'
    (tmp_path / "set" / "dataset.json").write_text(labels)
    return cache_data(find_data(tmp_path / "set"), tmp_path / "cache")[0]


def test_levels_lie_beside_what_is_decoded(source: Cached) -> None:
    made = make_mips(source.image(), source.mask(), (0, 1, 2, 255))
    found = open_mips(source)
    assert (source.folder / "mips-1.bin").exists()
    assert open_mips(source) is found
    assert (found.ids, found.variance) == (made.ids, made.variance)
    for one, other in zip(arrays(found), arrays(made), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert all(not array.flags.writeable for array in arrays(found))


def arrays(mips: Mips) -> list[NDArray[Any]]:
    return [*mips.image, *mips.shares, mips.planned, mips.hidden]


def test_samples_of_sparse_windows_come_from_levels(source: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    def windows(density: float) -> Windows:
        return Windows((source,), 3, Patcher(8, detail="residual"), 255, window=200, density=density, length=12)

    sparse, dense = windows(1 / 500), windows(1 / 70)
    used = []

    def watched(*args: Any) -> Any:
        used.append(args[1])
        return cut_window(*args)

    monkeypatch.setattr("patchtree.windows.cut_window", watched)
    plain = [dense[at] for at in range(12)]
    assert not used
    for at, sample in enumerate(plain):
        few = sparse[at]
        window = align(used[-1])
        assert used[-1] == window
        assert few.patches.tree.shape == (window.shape[::-1] if window.turns % 2 else window.shape)
        assert few.patches.extent == sample.patches.extent
        assert few.counts.sum() == pytest.approx(sample.counts.sum(), rel=0.2)
        # The same window: its patches, painted, look alike.
        shown = [one.patches.tree.paint(one.patches.pixels.astype(np.float32), smooth=True) for one in (few, sample)]
        height, width = few.patches.tree.shape
        assert np.abs(shown[0] - shown[1][:height, :width]).mean() < 30
    assert len(used) == 12


def test_images_without_masks_have_levels(source: Cached) -> None:
    bare = replace(source, pixels=(), starts=())
    windows = Windows((bare,), 0, Patcher(8, detail="residual"), window=200, density=1 / 500)
    sample = windows[0]
    assert sample.counts.shape == (1, 0)
    assert len(sample.patches) > 50


def test_wide_images_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = blobs(2, (*SHAPE, 3)), ids(2)
    mips = make_mips(image, mask, (0, 1, 2, 255))
    windows = [Window((40, 60), (200, 240), angle, 1.0, True, 1) for angle in (0.0, 8.0)]
    # Beyond the border, where the image is mirrored.
    windows += [Window(corner, (128, 128), 15.0, 0.8) for corner in ((0, 0), (172, 292), (0, 292))]
    patcher = Patcher(8, 150, detail="residual")
    whole = [cut_window(mips, window, patcher, 3, 255) for window in windows]
    monkeypatch.setattr("patchtree.mips._CV_SIDE", 100)
    for window, (pixels, tree, counts) in zip(windows, whole, strict=True):
        parts = cut_window(mips, window, patcher, 3, 255)
        assert parts[1] == tree
        assert np.abs(parts[0].astype(int) - pixels).max() <= 1
        np.testing.assert_allclose(parts[2], counts, atol=1)


def test_what_levels_do_not_hold_goes_the_slow_way() -> None:
    window, patcher = Window((0, 0), (1024, 1024)), Patcher(16, 500, detail="residual")
    assert suits(patcher, window, 3)
    others = (
        {"patch_size": 15},
        {"patch_size": 2},
        {"max_level": 3},
        {"detail": "edges"},
        {"budget": None, "threshold": 9.0},
    )
    assert not any(suits(replace(patcher, **other), window, 3) for other in others)  # type: ignore[arg-type]
    assert not suits(replace(patcher, budget=3), replace(window, shape=(1024, 100)), 3)
    assert not suits(replace(patcher, patch_size=256, budget=2), window, 3)
    assert not suits(patcher, window, 5)


def test_levels_that_cannot_be_written_stay_in_memory(source: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("patchtree.mips._write", full)
    kept = open_mips(replace(source, name="other"))
    assert len(kept.image) > 5
    assert not list(source.folder.glob("*mips*"))


def test_levels_are_not_made_where_they_are_not_wanted(source: Cached) -> None:
    assert work([source, source]) == 2 * 300 * 420 * (3 + 3)
    windows = Windows((source,), 3, Patcher(8, detail="residual"), 255, window=200, density=1 / 500, levels=False)
    assert len(windows[0].patches) > 50
    assert not list(source.folder.glob("mips*"))
    assert len(replace(windows, levels=True)[0].patches) > 50
    assert list(source.folder.glob("mips*"))


def test_a_narrow_long_image_is_mirrored_as_often_as_it_takes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 1 << 14, 1), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 3)[..., None]
    window = Window((0, 5000), (64, 1024), angle=15.0, scale=0.8)
    patcher = Patcher(8, 200, detail=Residual())
    pixels, _, _ = cut_window(make_mips(image, None), window, patcher, classes=0)
    short, _, _ = cut_window(make_mips(image[:, :16000], None), window, patcher, classes=0)
    assert pixels.shape == short.shape
    assert np.abs(pixels.astype(float) - short).mean() < 1
