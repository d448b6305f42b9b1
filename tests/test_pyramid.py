from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree.pyramid import pyramid
from strategies import SHAPES


def block_means(image: NDArray[Any], side: int) -> NDArray[np.float64]:
    """The mean of the pixels in each block, the obvious way."""
    out = image.astype(np.float64)
    for axis in range(image.ndim - 1):
        starts = np.arange(0, image.shape[axis], side)
        counts = np.minimum(side, image.shape[axis] - starts)
        out = np.add.reduceat(out, starts, axis=axis) / counts.reshape((-1,) + (1,) * (image.ndim - 1 - axis))
    return out


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, np.int32, np.float16, np.bool_]
)
@given(shape=SHAPES, channels=st.integers(1, 5), seed=st.integers(0, 99))
def test_levels_are_means(dtype: Any, shape: tuple[int, ...], channels: int, seed: int) -> None:
    image = (np.random.default_rng(seed).random((*shape, channels)) * 250).astype(dtype)
    for level, picture in enumerate(pyramid(image, 7)):
        expected = block_means(image, 2**level)
        assert picture.values.shape == expected.shape
        # Fixed point holds 1/256 of a grey level; float32 seven digits.
        atol = 0.01 if dtype == np.uint8 else 1e-3
        np.testing.assert_allclose(picture.values * picture.scale, expected, atol=atol)


@given(st.integers(0, 99))
def test_four_halvings_of_8_bits_are_exact(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)
    for level, picture in enumerate(pyramid(image, 4)):
        assert (picture.values * picture.scale == block_means(image, 2**level)).all()


@given(SHAPES.filter(lambda shape: len(shape) == 2), st.integers(0, 99))
def test_quick_levels_are_half_a_grey_level_off_at_most(shape: tuple[int, ...], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    for level, picture in enumerate(pyramid(image, 7, exact=False)):
        np.testing.assert_allclose(picture.values * picture.scale, block_means(image, 2**level), atol=0.52)


def test_a_large_image_is_halved_in_pieces() -> None:
    image = np.random.default_rng(0).integers(0, 256, (701, 1203, 3), np.uint8)
    for exact in (True, False):
        for level, picture in enumerate(pyramid(image, 3, exact)):
            np.testing.assert_allclose(picture.values * picture.scale, block_means(image, 2**level), atol=0.51)


def test_what_lies_in_fresh_memory_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)

    def spoilt(shape: Any, dtype: Any) -> NDArray[Any]:
        out = np.zeros(shape, dtype)
        if out.dtype == np.float32:
            out.view(np.uint32)[...] = signalling.view(np.uint32)
        return out

    image = np.random.default_rng(0).random((77, 101, 2)).astype(np.float32)
    expected = [picture.values for picture in pyramid(image, 6)]
    monkeypatch.setattr("patchtree.pyramid.np.empty", spoilt)
    for picture, values in zip(pyramid(image, 6), expected, strict=True):
        assert np.array_equal(picture.values, values)


@given(channels=st.sampled_from([3, 128, 129, 200]), seed=st.integers(0, 99))
def test_bytes_of_any_number_of_channels_are_rounded(channels: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (6, 10, channels), np.uint8)
    *_, half = pyramid(image, 1, exact=False)
    means = image.reshape(3, 2, 5, 2, channels).mean((1, 3))
    assert half.values.dtype == np.uint8
    assert np.abs(half.values - means).max() <= 0.5
