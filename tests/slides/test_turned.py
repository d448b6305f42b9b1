from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtree.augment import Window, place, take
from patchtree.io.slides import open_slide
from patchtree.patcher import Patcher
from patchtree.slides import patch_slide
from patchtree.slides.turned import Turned, turn_back
from patchtree.turns import turn
from slide_files import small_slide
from slides.fake import make_slide

TURNS = [(flip, turns) for flip in (False, True) for turns in range(4)]


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(TURNS), st.data())
def test_a_box_turned_back_holds_the_same_pixels(
    height: int, width: int, how: tuple[bool, int], data: st.DataObject
) -> None:
    image = np.arange(height * width).reshape(height, width)
    turned = turn(image, *how)
    y0, x0 = (data.draw(st.integers(0, length - 1)) for length in turned.shape)
    y1, x1 = (data.draw(st.integers(low + 1, most)) for low, most in zip((y0, x0), turned.shape, strict=True))
    top, left, bottom, right = turn_back((y0, x0, y1, x1), turned.shape, *how)
    np.testing.assert_array_equal(turn(image[top:bottom, left:right], *how), turned[y0:y1, x0:x1])


@pytest.mark.parametrize(("flip", "turns"), TURNS)
def test_windows_are_turned_as_augmentation_turns_them(flip: bool, turns: int) -> None:
    image = np.arange(15 * 23).reshape(15, 23)
    window = Window((3, 5), (4, 6), flip=flip, turns=turns)
    (y, x), extent = place(window, image.shape)
    part = take(image, window)
    turned = turn(image, flip, turns)
    assert turned.shape == extent
    np.testing.assert_array_equal(turned[y : y + part.shape[0], x : x + part.shape[1]], part)


@pytest.mark.filterwarnings("ignore:.*found too little detail")
@pytest.mark.parametrize(("flip", "turns"), TURNS)
def test_a_turned_slide_is_the_slide_of_the_turned_image(flip: bool, turns: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 384, 3), np.uint8)
    slide, other = Turned(make_slide(image, (0, 1, 2)), flip, turns), make_slide(turn(image, flip, turns), (0, 1, 2))
    assert [level.shape for level in slide.levels] == [level.shape for level in other.levels]
    for level in range(3):
        np.testing.assert_array_equal(slide.read(level, -3, 5, 40, 66), other.read(level, -3, 5, 40, 66))
    patcher = Patcher(16, 64, detail="residual")
    one, two = patch_slide(patcher, slide), patch_slide(patcher, other)
    assert one.tree == two.tree
    np.testing.assert_array_equal(one.pixels, two.pixels)


def test_pixel_size_and_tiles_turn_too(tmp_path: Path) -> None:
    path, _ = small_slide(tmp_path, (600, 800), tile=128)
    with open_slide(path, mpp=(0.5, 0.25)) as slide:
        turned = Turned(slide, flip=True, turns=3)
        assert (turned.shape, turned.mpp) == ((800, 600), (0.25, 0.5))
        again = pickle.loads(pickle.dumps(turned))
        np.testing.assert_array_equal(again.read(0, 0, 0, 50, 60), turned.read(0, 0, 0, 50, 60))
        again.close()
