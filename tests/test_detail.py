from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import Edges, InputError, Residual, Variance
from patchtree.detail import as_detail, from_dict, measure, to_dict
from patchtree.noise import estimate_noise
from strategies import SHAPES

DETAILS = st.sampled_from([Edges(), Edges(low=20, high=40, blur=5), Residual(), Residual(noise=0), Variance(), np.abs])


def draw_image(shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, shape, np.uint8)
    image[: shape[0] // 2] = 7
    return image


def cells(grid: NDArray[Any], side: int, shape: tuple[int, ...]) -> Any:
    """Each cell of a grid with the part of the image inside it."""
    for index in np.ndindex(*grid.shape):
        yield index, tuple(slice(i * side, min((i + 1) * side, n)) for i, n in zip(index, shape, strict=True))


@given(SHAPES, st.integers(1, 9), DETAILS, st.integers(0, 99))
def test_detail_is_monotone_and_has_one_number_a_cell(
    shape: tuple[int, ...], patch_size: int, detail: Any, seed: int
) -> None:
    details = measure(draw_image(shape, seed), detail, patch_size, ndim=len(shape))
    for level, grid in enumerate(details, start=1):
        assert grid.shape == tuple(-(-length // (patch_size << level)) for length in shape)
        assert grid.dtype == np.float64
        assert grid.min() >= 0
    for finer, coarser in itertools.pairwise(details):
        parents = coarser
        for axis, length in enumerate(finer.shape):
            parents = np.repeat(parents, 2, axis=axis).take(range(length), axis=axis)
        assert (parents >= finer).all()


@given(SHAPES.filter(lambda shape: len(shape) == 2), st.integers(1, 20), st.integers(0, 99))
def test_edges_are_counted(shape: tuple[int, ...], patch_size: int, seed: int) -> None:
    image = draw_image(shape, seed)
    edges = cv2.Canny(cv2.GaussianBlur(image, (3, 3), 0), 100, 200) > 0
    for level, grid in enumerate(measure(image, "edges", patch_size), start=1):
        for index, inside in cells(grid, patch_size << level, shape):
            assert grid[index] == edges[inside].sum()


@pytest.mark.parametrize("blur", [1, 3, 7, 31])
@pytest.mark.parametrize("height", [5, 63, 64, 65, 66, 129, 300])
def test_smoothing_in_strips_equals_smoothing_whole(height: int, blur: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, 40, 3), np.uint8)
    whole = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (blur, blur), 0)
    assert np.array_equal(Edges(blur=blur)._smooth(image), whole)


@given(
    st.one_of(st.tuples(st.integers(1, 60), st.integers(1, 60)), st.tuples(*[st.integers(1, 15)] * 3)),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([np.uint8, np.float32, np.uint16]),
)
def test_residual_is_the_error_of_showing_a_cell_at_p_x_p(
    shape: tuple[int, ...], patch_size: int, channels: int, dtype: Any
) -> None:
    image = draw_image((*shape, channels), 0).astype(dtype)
    for level, grid in enumerate(measure(image, Residual(noise=0), patch_size, ndim=len(shape)), start=1):
        for index, inside in cells(grid, patch_size << level, shape):
            part = image[inside].astype(float)
            error = 0.0
            for _, block in cells(
                np.empty([-(-n // (1 << level)) for n in part.shape[:-1]]), 1 << level, part.shape[:-1]
            ):
                pixels = part[block]
                error += ((pixels - pixels.mean(tuple(range(len(shape))))) ** 2).sum()
            np.testing.assert_allclose(grid[index], error, rtol=1e-3, atol=0.5)


@given(SHAPES, st.integers(1, 5), st.integers(1, 3))
def test_variance_is_the_error_of_showing_a_cell_as_its_mean(
    shape: tuple[int, ...], patch_size: int, channels: int
) -> None:
    image = draw_image((*shape, channels), 0)
    for level, grid in enumerate(measure(image, "variance", patch_size, max_level=2, ndim=len(shape)), start=1):
        for index, inside in cells(grid, patch_size << level, shape):
            part = image[inside].astype(float)
            error = ((part - part.mean(tuple(range(len(shape))))) ** 2).sum()
            np.testing.assert_allclose(grid[index], error, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("detail", ["edges", "residual", "variance"])
def test_a_blank_image_has_no_detail(dtype: Any, detail: str) -> None:
    for value in (0, 1, 101):
        for shape in ((300, 200), (77, 130, 3), (33, 45, 4)):
            image = np.full(shape, value).astype(dtype)
            assert all(not grid.any() for grid in measure(image, detail, 16))


def test_noise_is_not_refined_but_what_is_in_it_is() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(200, 4, (512, 512, 3))
    image[100:140, 100:140] -= 60 * (rng.random((40, 40, 1)) > 0.5)
    finest = measure(image.round().astype(np.uint8), "residual", 16)[0]
    assert finest[3:5, 3:5].min() > 0
    finest[3:5, 3:5] = 0
    assert np.count_nonzero(finest) < 0.02 * finest.size


def test_noise_is_estimated_in_the_units_of_the_image() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(1000, (3, 30), (300, 301, 2))
    np.testing.assert_allclose(estimate_noise(image), (3, 30), rtol=0.05)
    np.testing.assert_allclose(estimate_noise(rng.normal(0, 2, (9, 200, 200, 1))), [2], rtol=0.05)
    for shape in ((1, 1, 1), (1, 50, 3), (50, 1, 3), (1, 1, 1, 1)):
        assert (estimate_noise(np.ones(shape)) == 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize("deviation", [0, 0.3, 3, 30])
def test_noise_of_short_integers_is_that_of_long_ones(dtype: Any, deviation: float) -> None:
    rng = np.random.default_rng(0)
    for shape in ((61, 70, 2), *[(2, 4, 5)] * 9):
        image = rng.normal(60, deviation, shape).clip(0, 127).round()
        expected = estimate_noise(image.astype(np.int64))
        np.testing.assert_allclose(estimate_noise(image.astype(dtype)), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, ">u2", np.int32, np.float16, ">f4", np.float64])
@pytest.mark.parametrize("detail", [Residual(noise=0), Variance()])
def test_layout_and_type_do_not_change_squares(dtype: Any, detail: Any) -> None:
    image = np.random.default_rng(0).integers(0, 128, (300, 201, 2))
    shown = image.astype(dtype)
    for turn in (lambda a: a[::-1, ::-1], lambda a: a[3:, 5:], lambda a: a.swapaxes(0, 1), lambda a: a[..., :1]):
        expected = measure(np.ascontiguousarray(turn(image)), detail, 3)
        for grid, wanted in zip(measure(turn(shown), detail, 3), expected, strict=True):
            np.testing.assert_allclose(grid, wanted, rtol=1e-5, atol=1e-4 * wanted.max())


def test_edges_are_joined_over_channels() -> None:
    image = np.zeros((64, 64, 4), np.uint8)
    image[:, 10:20, 0] = 255
    image[40:50, :, 3] = 255
    joined = Edges().find(image)
    assert (joined == np.maximum(Edges().find(image[..., :1]), Edges().find(image[..., 3:]))).all()
    assert joined.any()


@pytest.mark.parametrize("scale", [1, 16, 1 / 255])
def test_edges_do_not_depend_on_the_range_of_16_bit_and_float_images(scale: float) -> None:
    image = np.zeros((128, 128))
    image[40:90, 40:90] = 200
    dtype = np.uint16 if scale >= 1 else np.float32
    counts = measure((image * scale + 3).astype(dtype), "edges", 16)
    assert counts[-1].sum() == measure(image.astype(np.uint8), "edges", 16)[-1].sum() > 0


def test_volumes_are_measured_slice_by_slice() -> None:
    volume = np.zeros((5, 64, 64), np.uint8)
    volume[2, 20:40, 20:40] = 255
    assert measure(volume, "edges", 4, ndim=3)[-1].sum() == measure(volume[2], "edges", 4)[-1].sum()


def test_details_can_be_written_down() -> None:
    for detail in (Edges(low=3), Residual(), Residual(noise=2.5), Variance()):
        assert from_dict(to_dict(detail)) == detail
    with pytest.raises(InputError, match="cannot be written"):
        to_dict(as_detail(np.abs))


def test_bad_details_are_refused() -> None:
    image = np.zeros((64, 64))
    for detail, word in (
        ("canny", "choose one of edges, residual, variance"),
        (3, "neither a name nor a function"),
        (lambda image: image[:4], r"shape \(4, 64\)"),
        (lambda image: image - 1, "negative"),
        (lambda image: image * np.nan, "non-finite"),
    ):
        with pytest.raises(InputError, match=word):
            measure(image, detail, 16)  # type: ignore[arg-type]
    for make, word in (
        (lambda: Edges(blur=4), "blur 4"),
        (lambda: Edges(low=-5), "thresholds -5"),
        (lambda: Residual(noise=-1), "noise -1"),
        (lambda: Residual(noise=float("nan")), "noise nan"),
    ):
        with pytest.raises(InputError, match=word):
            make()


@pytest.mark.parametrize("shape", [(4096, 4096), (512, 512, 600)])
def test_the_range_of_grey_levels_is_that_of_all_columns(shape: tuple[int, ...]) -> None:
    """As many rows as samples: every n-th pixel would be of the first column."""
    wide = (shape[-1] - 5) // 64 * 64
    image = np.zeros(shape if len(shape) == 2 else (8, 1 << 15, 512), np.uint16)
    image[..., 8:wide:64] = 30000
    image[..., 9:wide:64] = 30000
    details = measure(image, "edges", patch_size=16, ndim=image.ndim)
    assert details[-1].sum() > 0


class Told:
    """A detail that gives what it is told to."""

    def __init__(self, *grids: Any) -> None:
        self.grids = grids

    def measure(self, image: NDArray[Any], patch_size: int, levels: int) -> list[NDArray[Any]]:
        return [np.asarray(grid, float) for grid in self.grids]


def test_grids_of_ones_own_detail_are_checked() -> None:
    image = np.zeros((64, 64))
    assert measure(image, Told([[1, 0], [0, 2]], [[2]]), patch_size=16)[1].tolist() == [[2.0]]
    with pytest.raises(InputError, match="level 1 is more than that of the cell they are in"):
        measure(image, Told([[1, 0], [0, 3]], [[2]]), patch_size=16)
    with pytest.raises(InputError, match=r"give one a level, of \[\(2, 2\), \(1, 1\)\]"):
        measure(image, Told([[1]], [[2]]), patch_size=16)
    with pytest.raises(InputError, match=r"class; give one of it, Residual\(\)"):
        as_detail(Residual)  # type: ignore[arg-type]
