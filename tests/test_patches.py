from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import InputError, Tree, count_labels, cut, paint
from patchtree.patches import _enlarge, _interpolate
from strategies import owner, trees

DTYPES = st.sampled_from([np.uint8, np.uint16, np.int16, np.float32, np.bool_, np.float64, np.int32, np.float16])


def draw_image(shape: tuple[int, ...], dtype: Any, seed: int) -> NDArray[Any]:
    values = np.random.default_rng(seed).random(shape)
    return values > 0.5 if dtype == np.bool_ else (values * 251 - (100 if dtype == np.int16 else 0)).astype(dtype)


def patch_pixels(tree: Tree) -> tuple[NDArray[np.int64], int]:
    """The flat patch pixel over every image pixel, the slow and obvious way."""
    p = tree.patch_size
    leaf = owner(tree)
    out = np.zeros(tree.shape, np.int64)
    for place in np.ndindex(*tree.shape):
        i = leaf[place]
        inner = (np.array(place) - tree.boxes()[i, : tree.ndim]) >> int(tree.level[i])
        out[place] = i * p**tree.ndim + np.ravel_multi_index(tuple(inner), (p,) * tree.ndim)
    return out, len(tree) * p**tree.ndim


SMALL = st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(*[st.integers(1, 9)] * 3))


@given(trees(SMALL), DTYPES, st.sampled_from([None, 1, 2, 3, 5]), st.integers(0, 99))
def test_cut_is_the_mean_of_each_patch_pixel(tree: Tree, dtype: Any, channels: int | None, seed: int) -> None:
    image = draw_image((*tree.shape, *([channels] if channels else [])), dtype, seed)
    patches = cut(image, tree)
    p = tree.patch_size
    assert patches.dtype == image.dtype
    assert patches.shape == (len(tree), *(p,) * tree.ndim, *([channels] if channels else []))
    where, count = patch_pixels(tree)
    flat = image.reshape(*tree.shape, -1).astype(np.float64)
    hits = np.bincount(where.ravel(), minlength=count)
    assert (hits == tree.weights().ravel()).all()
    for channel in range(flat.shape[-1]):
        sums = np.bincount(where.ravel(), flat[..., channel].ravel(), minlength=count)
        means = (sums / np.maximum(hits, 1))[hits > 0]
        got = patches.reshape(count, -1)[hits > 0, channel]
        if dtype == np.bool_:
            assert (got == (means >= 0.5))[np.abs(means - 0.5) > 0.01].all()
        else:
            tolerance = {"u": 0.501, "i": 0.501, "f": 1e-3 if dtype != np.float16 else 0.3}[np.dtype(dtype).kind]
            np.testing.assert_allclose(got, means, atol=1.01 if dtype == np.uint8 else tolerance)


@given(trees(), DTYPES, st.sampled_from([None, 1, 4]))
def test_painting_what_was_cut_at_full_refinement_is_the_image(tree: Tree, dtype: Any, channels: int | None) -> None:
    image = draw_image((*tree.shape, *([channels] if channels else [])), dtype, 0)
    tree = Tree.uniform(tree.shape, tree.patch_size)
    assert np.array_equal(paint(cut(image, tree), tree), image)


@given(trees(), DTYPES, st.integers(0, 250))
def test_a_constant_image_stays_constant(tree: Tree, dtype: Any, value: int) -> None:
    image = np.full((*tree.shape, 2), value % 2 if dtype == np.bool_ else value).astype(dtype)
    patches = cut(image, tree)
    np.testing.assert_allclose(patches.astype(float), float(image.flat[0]), rtol=1e-6)


@given(trees(SMALL), st.integers(0, 99), st.sampled_from([None, 0, 1, 255]))
def test_labels_are_counted_pixel_by_pixel(tree: Tree, seed: int, ignore: int | None) -> None:
    mask = np.random.default_rng(seed).integers(0, 4, tree.shape).astype(np.uint8)
    if ignore == 255:
        mask[mask == 3] = 255
    counts = count_labels(mask, tree, classes=4, ignore=ignore)
    where, total = patch_pixels(tree)
    for label in range(4):
        expected = np.bincount(where[(mask == label) & (label != ignore)], minlength=total)
        assert (counts[..., label].ravel() == expected).all()


@given(trees(), st.integers(0, 99))
def test_painted_masks_keep_their_ids(tree: Tree, seed: int) -> None:
    ids = np.random.default_rng(seed).choice([0, 3, 200, 70000], (len(tree), *(tree.patch_size,) * tree.ndim))
    painted = paint(ids, tree)
    assert painted.shape == tree.shape
    assert painted.dtype == ids.dtype
    assert set(np.unique(painted)) == set(np.unique(ids[tree.weights() > 0]))


@given(trees(SMALL), st.sampled_from([(), (3,), (2, 3)]), st.booleans())
def test_paint_puts_each_value_where_it_belongs(tree: Tree, rest: tuple[int, ...], per_leaf: bool) -> None:
    where, total = patch_pixels(tree)
    if per_leaf:
        values = np.arange(len(tree) * int(np.prod(rest)), dtype=float).reshape(len(tree), *rest)
        expected = values[owner(tree)]
    else:
        values = np.arange(total * int(np.prod(rest)), dtype=float)
        values = values.reshape(len(tree), *(tree.patch_size,) * tree.ndim, *rest)
        expected = values.reshape(total, *rest)[where]
    assert np.array_equal(tree.paint(values), expected)


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=3),
    st.sampled_from(["u1", "i2", ">u2", "f2", "f4", "<f8", "?", "i8", "c8", "S1"]),
    st.integers(1, 5),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(0, 99),
)
def test_enlarging_repeats_every_pixel(shape: list[int], dtype: str, channels: int, factor: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 120, (*shape, channels)).astype(dtype)[..., 1:, :]
    expected = picture
    for axis in range(len(shape)):
        expected = np.repeat(expected, factor, axis)
    enlarged = _enlarge(picture, factor, smooth=False)
    assert enlarged.dtype == picture.dtype
    assert np.array_equal(enlarged, expected)


@given(trees(), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_a_region_is_painted_as_part_of_the_whole(tree: Tree, seed: int, smooth: bool, per_leaf: bool) -> None:
    rng = np.random.default_rng(seed)
    patch = () if per_leaf else (tree.patch_size,) * tree.ndim
    values = rng.random((len(tree), *patch, 2)).astype(np.float32)
    corners = np.sort(rng.integers(0, np.array(tree.shape) + 1, (2, tree.ndim)), axis=0)
    low, high = np.minimum(corners[0], np.array(tree.shape) - 1), corners[1]
    high = np.maximum(high, low + 1)
    whole = tree.paint(values, smooth=smooth)
    part = tree.paint(values, region=(*low, *high), smooth=smooth)
    expected = whole[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    np.testing.assert_allclose(part, expected, rtol=0, atol=1e-6 if smooth else 0)


@pytest.mark.parametrize("patch_size", [3, 6, 7])
def test_a_region_is_painted_to_the_bit_where_patches_are_no_power_of_two(patch_size: int) -> None:
    """The places between leaves are no multiples of a power of two: in single precision they depend on the corner."""
    tree = Tree.uniform((90, 84), patch_size)
    values = np.random.default_rng(0).random((len(tree), 2)).astype(np.float32)
    part = tree.paint(values, region=(29, 31, 90, 84), smooth=True)
    np.testing.assert_array_equal(part, tree.paint(values, smooth=True)[29:, 31:])


@given(st.integers(1, 9), st.sampled_from([2, 3, 4, 7]), st.sampled_from([np.float32, np.float64]))
def test_lines_are_interpolated_as_by_numpy(length: int, factor: int, dtype: type) -> None:
    picture = np.random.default_rng(0).random((length, 3, 5, 2)).astype(dtype)
    centres, places = np.arange(length) + 0.5, (np.arange(length * factor) + 0.5) / factor
    expected = np.apply_along_axis(lambda line: np.interp(places, centres, line), 0, picture)
    found = _interpolate(picture, factor)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_volumes_are_painted_smoothly_in_their_own_type(dtype: type) -> None:
    tree = Tree.uniform((8, 8, 8), 4, level=1)
    values = np.random.default_rng(0).random((len(tree), 4, 4, 4, 2)).astype(dtype)
    painted = tree.paint(values, smooth=True)
    assert painted.dtype == dtype
    np.testing.assert_allclose(painted, tree.paint(values.astype(np.float64), smooth=True), rtol=0, atol=1e-3)


@given(trees())
def test_smooth_painting_stays_within_the_values(tree: Tree) -> None:
    values = np.random.default_rng(0).random((len(tree), *(tree.patch_size,) * tree.ndim))
    painted = tree.paint(values, smooth=True)
    assert painted.shape == tree.shape
    assert values.min() - 1e-9 <= painted.min()
    assert painted.max() <= values.max() + 1e-9
    np.testing.assert_allclose(tree.paint(np.full_like(values, 0.3), smooth=True), 0.3)


def test_smooth_painting_has_no_seams_on_a_ramp() -> None:
    rng = np.random.default_rng(0)
    from patchtree.tree import grow

    tree = grow((256, 256), 8, 5, lambda level, cells: rng.random(len(cells)) < 0.7)
    ramp = np.add.outer(np.arange(256.0), np.arange(256.0))
    values = cut(ramp, tree)
    inner = (slice(32, -32),) * 2
    steps = np.abs(np.diff(tree.paint(values, smooth=True), axis=0))[inner]
    rough = np.abs(np.diff(tree.paint(values), axis=0))[inner]
    assert steps.max() < 4
    assert steps.max() < rough.max() / 4
    assert (
        np.abs(tree.paint(values, smooth=True) - ramp)[inner].max() < np.abs(tree.paint(values) - ramp)[inner].max() / 2
    )


def test_a_coarser_grid_of_values_is_painted() -> None:
    tree = Tree.uniform((100, 90), 16, level=1)
    values = np.random.default_rng(0).random((len(tree), 4, 4, 3))
    fine = values.repeat(4, axis=1).repeat(4, axis=2)
    assert np.array_equal(tree.paint(values), tree.paint(fine))
    assert tree.paint(values, smooth=True).shape == (100, 90, 3)


def test_many_channels() -> None:
    image = np.random.default_rng(0).random((20, 20, 600)).astype(np.float32)
    tree = Tree.uniform((20, 20), 2, level=1)
    patches = cut(image, tree)
    np.testing.assert_allclose(patches[0, 0, 0], image[:2, :2].mean((0, 1)), rtol=1e-5)
    assert tree.paint(patches, smooth=True).shape == image.shape


def test_what_does_not_fit_is_refused() -> None:
    tree = Tree.uniform((64, 64), 16)
    with pytest.raises(InputError, match="does not fit a tree"):
        cut(np.zeros((64, 63)), tree)
    with pytest.raises(InputError, match="does not fit a tree"):
        cut(np.zeros((64, 64, 3, 1)), tree)
    with pytest.raises(InputError, match="do not fit a tree of 16 leaves"):
        paint(np.zeros(15), tree)
    with pytest.raises(InputError, match="cannot be painted smoothly"):
        paint(np.zeros(16, int), tree, smooth=True)
    for region in ((0, 0, 65, 64), (-1, 0, 4, 4), (4, 4, 4, 8)):
        with pytest.raises(InputError, match="not a part of"):
            paint(np.zeros(16), tree, region=region)
    with pytest.raises(InputError, match="give 4 numbers"):
        paint(np.zeros(16), tree, region=(1, 2))
    with pytest.raises(InputError, match="holds id 7, which is none of the 3 classes"):
        count_labels(np.full((64, 64), 7), tree, classes=3)
    with pytest.raises(InputError, match="does not fit"):
        count_labels(np.zeros((64, 60), int), tree, classes=3)
