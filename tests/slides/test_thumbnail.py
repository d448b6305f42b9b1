from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchtree.slides.metered import Metered
from patchtree.slides.thumbnail import thumbnail

from .fake import make_slide


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (0, 2), (0,)])
def test_a_thumbnail_is_the_mean_whatever_levels_there_are(dtype: Any, kept: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 250, (256, 384, 2)).astype(dtype)
    slide = Metered(make_slide(image, kept))
    small = thumbnail(slide, max_side=100)
    assert (small.shape, small.dtype) == ((64, 96, 2), dtype)
    expected = image.reshape(64, 4, 96, 4, 2).mean((1, 3))
    assert np.abs(small - expected).max() <= (1.5 if np.dtype(dtype).kind == "u" else 1e-3)
    assert slide.pixels == (256 * 384 if kept == (0,) else 64 * 96)


def test_a_small_slide_is_its_own_thumbnail() -> None:
    image = np.random.default_rng(0).integers(0, 250, (65, 33, 3)).astype(np.uint8)
    np.testing.assert_array_equal(thumbnail(make_slide(image, (0,)), 65), image)
    assert thumbnail(make_slide(image, (0,)), 64).shape == (33, 17, 3)
