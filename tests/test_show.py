from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import InputError, Patcher, Tree
from patchtree.show import show, show_small
from strategies import trees


def lines(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the line colour shows on a black picture."""
    return picture.any(axis=-1)


def test_lines_lie_between_leaves_and_nowhere_else() -> None:
    image = np.zeros((1024, 1024), np.uint8)
    drawn = lines(show(image, Tree.uniform(image.shape, 16, level=4)))
    expected = np.zeros((1024, 1024), bool)
    expected[256::256] = expected[:, 256::256] = True
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4000, 6000), (1067, 1600)),
        ((1600, 1200), (1600, 1200)),
        ((900, 900), (900, 900)),
        ((300, 500), (900, 1500)),
        ((1, 1), (8, 8)),
        ((40000, 1), (1600, 1)),
        ((700, 1), (1400, 2)),
    ],
)
def test_pictures_fit_a_screen(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    image = np.full(shape, 200, np.uint8)
    picture = show(image, Tree.uniform(shape, patch_size=16))
    assert picture.shape == (*expected, 3)


def test_the_picture_is_the_mean_of_what_it_shrinks() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3200, 3200, 3), np.uint8)
    picture = show(image, Tree.uniform(image.shape[:2], 16, level=8))
    means = image.reshape(1600, 2, 1600, 2, 3).mean((1, 3))
    assert np.abs(picture - means).max() <= 1


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int16, np.int32, np.int64, np.float16, np.float64])
@pytest.mark.parametrize("tail", [(), (1,), (2,), (3,), (4,), (6,)])
@pytest.mark.parametrize("side", [40, 2000])
def test_any_type_and_number_of_channels(dtype: Any, tail: tuple[int, ...], side: int) -> None:
    image = np.zeros((side, 1, *tail), dtype)
    image[side // 2 :] = 1
    picture = show(image, Tree.uniform((side, 1), 4096))
    assert picture.dtype == np.uint8
    # 8-bit values are shown as they are, all others stretched from black to white.
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[-1, 0].tolist() == ([1, 1, 1] if dtype == np.uint8 else [255, 255, 255])


def test_colours_stay_in_their_channels() -> None:
    image = np.zeros((64, 64, 4), np.uint8)
    image[...] = (10, 20, 30, 40)
    assert show(image, Tree.uniform((64, 64), 64))[5, 5].tolist() == [10, 20, 30]
    assert show(image[..., :2], Tree.uniform((64, 64), 64))[5, 5].tolist() == [10, 10, 10]


def test_of_a_volume_the_middle_slice_is_shown() -> None:
    volume = np.full((32, 1024, 1024), 50, np.uint8)
    volume[16] = 99
    only_first = np.zeros(volume.shape)
    only_first[:4] = 1
    tree = Patcher(4, budget=None, threshold=0, max_level=3, detail=lambda _: only_first, ndim=3).plan(volume)
    assert set(tree.sizes()) == {4, 8, 16}
    picture = show(volume, tree)
    assert picture.shape == (1024, 1024, 3)
    # The small leaves lie on the first slices: in the middle there are only those of 16 pixels.
    expected = np.zeros((1024, 1024), bool)
    expected[16::16] = expected[:, 16::16] = True
    np.testing.assert_array_equal((picture != 99).any(axis=-1), expected)


def test_many_small_leaves_do_not_hide_the_picture() -> None:
    image = np.zeros((4096, 4096), np.uint8)
    for level in range(4):
        picture = show(image, Tree.uniform(image.shape, 4, level=level))
        assert 0.01 < picture[..., 1].mean() / 176 < 0.13


def test_the_line_of_the_larger_leaf_is_drawn_over_that_of_the_smaller() -> None:
    image = np.zeros((1024, 1024), np.uint8)
    image[:4, :4] = np.random.default_rng(0).integers(0, 256, (4, 4))
    tree = Patcher(patch_size=1, budget=None, threshold=0, detail="variance").plan(image)
    picture = show(image, tree)
    assert picture[512].tolist() == [[0, 176, 80]] * 1024


@given(trees(st.tuples(st.integers(1, 80), st.integers(1, 80))), st.integers(1, 100))
def test_any_tree_can_be_shown(tree: Tree, max_side: int) -> None:
    picture = show(np.zeros(tree.shape, np.float32), tree, max_side)
    assert picture.shape[2] == 3
    assert max(picture.shape[:2]) <= max_side
    assert not lines(picture)[0, 0] or len(tree) > 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit"):
        show(np.zeros((8, 9)), Tree.uniform((8, 8), 4))
    with pytest.raises(InputError, match="max_side 0"):
        show(np.zeros((8, 8)), Tree.uniform((8, 8), 4), max_side=0)


def test_a_stray_float_leaves_the_rest_to_be_seen() -> None:
    image = np.random.default_rng(0).random((900, 1600)).astype(np.float32)
    tree = Tree.uniform(image.shape, 16, level=7)
    expected = show(image, tree)
    image[3, 4], image[5, 6] = 3e38, -3e38
    assert np.abs(show(image, tree).astype(int) - expected).mean() < 1


def test_a_small_picture_gets_the_lines_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (128, 192, 3), np.uint8)
    tree = Tree.uniform((128, 192), 16, level=1)
    np.testing.assert_array_equal(show_small(image, tree), show(image, tree))
    lines = show_small(np.zeros((64, 96), np.uint8), tree, max_side=96)[..., 1]
    assert set(np.flatnonzero(lines[5])) == {16, 32, 48, 64, 80}
    assert set(np.flatnonzero(lines[:, 5])) == {16, 32, 48}
