from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtree import InputError, Tree, cut
from patchtree.slides import cut_slide
from slides.fake import make_slide
from strategies import trees


@given(
    trees(st.tuples(st.integers(1, 150), st.integers(1, 150))),
    st.sampled_from([(0,), (0, 1, 2, 3), (0, 2), (0, 1, 4)]),
    st.sampled_from([(64, 64), (16, 32), (1, 150)]),
    st.sampled_from([np.uint8, np.int16, np.uint16, np.float32]),
    st.integers(1, 4),
)
def test_equals_cutting_the_image(
    tree: Tree, kept: tuple[int, ...], tile: tuple[int, int], dtype: Any, channels: int
) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*tree.shape, channels)).astype(dtype)
    image[: tree.shape[0] // 2] = 77
    pixels = cut_slide(make_slide(image, kept, tile), tree, workers=2)
    assert pixels.dtype == dtype
    expected = cut(image, tree)
    assert pixels.shape == expected.shape
    # A level is rounded when it is written, and again where coarser pixels are made of it.
    np.testing.assert_allclose(pixels.astype(float), expected, atol=1 if np.dtype(dtype).kind in "iu" else 1e-3)


def test_does_not_depend_on_workers() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    tree = Tree.uniform((300, 200), 8, level=1)
    slide = make_slide(image, [0])
    assert np.array_equal(cut_slide(slide, tree, workers=1), cut_slide(slide, tree, workers=5))


def test_each_tile_is_read_once() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    slide = make_slide(image, [0, 1])
    cut_slide(slide, Tree.uniform((256, 256), 7))
    assert slide.pixels == 256**2
    slide.boxes.clear()
    cut_slide(slide, Tree.uniform((256, 256), 8, level=1))
    assert {level for level, _ in slide.boxes} == {1}


def test_a_tree_of_another_slide_is_refused() -> None:
    slide = make_slide(np.zeros((64, 64, 3), np.uint8), [0])
    with pytest.raises(
        InputError, match=r"fake.tif: a slide of \(64, 64\) pixels does not fit a tree made for \(64, 65"
    ):
        cut_slide(slide, Tree.uniform((64, 65), 8))
