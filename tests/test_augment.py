"""Windows are read where the plan says, whatever the type and the turns; colours keep shape and type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree.augment import (
    Colours,
    Window,
    _add_noise,
    _normal,
    place,
    take,
    to_image,
    vary_colours,
    vary_detail,
    vary_patches,
    vary_window,
)
from patchtree.detail import Edges
from patchtree.patcher import Patches
from patchtree.patches import cut
from patchtree.tree import Tree

TYPES = [np.uint8, np.uint16, np.int16, np.float32]


def noise(shape: tuple[int, ...], dtype: type, seed: int = 0) -> NDArray[np.generic]:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)), flip=st.booleans(), turns=st.integers(0, 3), data=st.data()
)
def test_a_window_is_the_same_part_of_the_whole_image_turned(
    shape: tuple[int, int], flip: bool, turns: int, data: st.DataObject
) -> None:
    size = (data.draw(st.integers(1, shape[0])), data.draw(st.integers(1, shape[1])))
    corner = (data.draw(st.integers(0, shape[0] - size[0])), data.draw(st.integers(0, shape[1] - size[1])))
    image = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape)
    window = Window(corner, size, flip=flip, turns=turns)
    part = take(image, window)
    (y, x), extent = place(window, shape)
    whole = np.rot90(image[:, ::-1] if flip else image, turns)
    assert extent == whole.shape
    assert np.array_equal(part, whole[y : y + part.shape[0], x : x + part.shape[1]])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,), (6,)])
def test_every_type_and_number_of_channels(dtype: type, channels: tuple[int, ...]) -> None:
    image = noise((40, 50, *channels), dtype)
    window = Window((5, 7), (20, 30), angle=11, scale=1.1, flip=True, turns=1)
    part = take(image, window)
    assert part.shape == (30, 20, *channels)
    assert part.dtype == image.dtype
    assert part.flags.c_contiguous
    for seed in range(12):  # with and without blur and noise
        varied = vary_colours(part, np.random.default_rng(seed))
        assert (varied.shape, varied.dtype) == (part.shape, part.dtype)
        assert np.isfinite(varied).all()
        assert not np.array_equal(varied, part)
    if channels:
        plane = take(np.ascontiguousarray(image[..., -1]), window)
        # OpenCV rounds places to 1/32 pixel for some numbers of channels.
        assert np.allclose(part[..., -1].astype(float), plane.astype(float), atol=200 / 32)


@given(
    dtype=st.sampled_from(TYPES),
    channels=st.sampled_from([(), (1,), (2,), (3,), (4,), (5,)]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    flip=st.booleans(),
    turns=st.integers(0, 3),
)
def test_turning_is_what_numpy_does(
    dtype: type, channels: tuple[int, ...], size: tuple[int, int], flip: bool, turns: int
) -> None:
    image = noise((12, 13, *channels), dtype)
    part = image[2 : 2 + size[0], 1 : 1 + size[1]]
    expected = np.rot90(part[:, ::-1] if flip else part, turns)
    found = take(image, Window((2, 1), size, flip=flip, turns=turns))
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (image.dtype, expected.shape, True)
    assert np.array_equal(found, expected)
    found += 1
    assert np.array_equal(image, noise((12, 13, *channels), dtype))


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 1), (40, 30, 3), (40, 30, 6)])
def test_noise_of_bytes_is_added_as_to_numbers(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    found = _add_noise(image, 7.0, np.random.default_rng(3))
    which = np.random.default_rng(3).integers(256, size=shape, dtype=np.uint8)
    expected = np.clip(np.rint(image + np.float32(7) * _normal()[which]), 0, 255).astype(np.uint8)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("side", [20, 21])
def test_an_angle_of_90_is_a_quarter_turn(side: int, ids: bool) -> None:
    image = noise((60, 70), np.uint8)
    turned = take(image, Window((10, 12), (side, side), angle=90), ids)
    assert np.array_equal(turned, take(image, Window((10, 12), (side, side), turns=1)))


def test_scale_shows_less_of_the_image_enlarged() -> None:
    image = np.zeros((80, 80), np.uint8)
    image[36:44, 30:50] = 1
    part = take(image, Window((20, 20), (40, 40), scale=2), ids=True)
    assert part.sum() == 4 * image.sum()
    rows, columns = np.nonzero(part)
    assert (rows.mean(), columns.mean()) == (19.5, 19.5)


@given(
    angle=st.floats(-45, 45), scale=st.floats(0.5, 2), corner=st.tuples(st.integers(0, 44), st.integers(0, 34)),
    ids=st.booleans()
)  # fmt: skip
def test_rotated_windows_read_what_they_need_and_show_existing_ids(
    angle: float, scale: float, corner: tuple[int, int], ids: bool
) -> None:
    """Image and mask stay together: where both hold the same smooth ramp, they agree."""
    ramp = (np.arange(60)[:, None] + np.arange(50)[None]).astype(np.float32)
    window = Window(corner, (16, 16), angle=angle, scale=scale)
    part = take(ramp, window, ids)
    assert part.min() >= 0
    assert part.max() <= ramp.max()
    if ids:
        assert np.array_equal(part, np.rint(part))
        assert np.abs(part - take(ramp, window)).max() <= 1.1


def test_only_the_window_is_read() -> None:
    image = np.full((200, 200), np.nan, np.float32)
    image[85:125, 85:125] = 1
    assert (take(image, Window((100, 100), (10, 10), angle=15, scale=0.8)) == 1).all()


def test_images_of_one_pixel() -> None:
    image = np.full((1, 1, 3), 7, np.uint8)
    assert (take(image, Window((0, 0), (1, 1), angle=10, scale=0.9)) == 7).all()
    assert vary_colours(image, np.random.default_rng(0)).shape == (1, 1, 3)


def test_constant_floats_stay_as_they_are() -> None:
    image = np.full((4, 4), -3.5, np.float32)
    assert np.array_equal(vary_colours(image, np.random.default_rng(0)), image)


def test_every_turn_occurs_and_most_windows_are_not_interpolated() -> None:
    rng = np.random.default_rng(0)
    drawn = [vary_window(Window((0, 0), (9, 9)), rng) for _ in range(300)]
    assert {(window.flip, window.turns) for window in drawn} == {
        (flip, turn) for flip in (False, True) for turn in range(4)
    }
    bent = [window for window in drawn if window.angle or window.scale != 1]
    assert 60 < len(bent) < 140
    assert all(abs(window.angle) <= 15 and 0.8 <= window.scale <= 1.25 for window in drawn)


def test_colours_stay_near() -> None:
    image = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    image = np.stack([image, image, image], axis=-1)
    varied = np.stack([vary_colours(image, np.random.default_rng(seed)) for seed in range(40)]).astype(float)
    assert np.abs(varied.mean(axis=0) - image).max() < 40
    assert varied.std(axis=0)[:, 40:200].min() > 3


def test_detail_varies_for_edges_alone() -> None:
    rng = np.random.default_rng(0)
    drawn = [vary_detail(Edges(100, 200, 3), rng) for _ in range(50)]
    assert {edges.blur for edges in drawn} == {1, 3, 5}
    assert all(50 <= edges.low <= 119 and edges.high == pytest.approx(2 * edges.low) for edges in drawn)
    assert isinstance(vary_detail("edges", rng), Edges)
    assert vary_detail("variance", rng) == "variance"


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)), corner=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    angle=st.floats(-30, 30), scale=st.floats(0.5, 2), flip=st.booleans(), turns=st.integers(0, 3),
)  # fmt: skip
def test_pixels_of_a_window_are_where_they_are_said_to_be(
    shape: tuple[int, int], corner: tuple[int, int], angle: float, scale: float, flip: bool, turns: int
) -> None:
    window = Window((corner[0] + 30, corner[1] + 30), shape, angle, scale, flip, turns)
    rows, columns = np.mgrid[:100, :100].astype(np.float32)
    y, x = take(rows, window), take(columns, window)
    at = (
        np.stack([*np.mgrid[: y.shape[0], : y.shape[1]][::-1], np.ones(y.shape)])
        + np.array([0.5, 0.5, 0])[:, None, None]
    )
    expected = np.einsum("ij,jhw->ihw", to_image(window), at) - 0.5
    assert np.abs(np.stack([x, y]) - expected).max() < 0.04  # OpenCV knows places to a 32nd of a pixel


def drawn(**wanted: bool) -> int:
    """Find a seed whose colours are blurred, or noisy, or both, or none."""

    def suits(colours: Colours) -> bool:
        return all(bool(getattr(colours, name)) == value for name, value in wanted.items())

    return next(seed for seed in range(999) if suits(Colours.draw(3, np.random.default_rng(seed))))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3), (48, 64, 5)])
def test_patches_vary_as_their_image_does(shape: tuple[int, ...], dtype: type) -> None:
    image = noise(shape, dtype)
    patches = Patches(cut(image, tree := Tree.uniform((48, 64), 8)), tree)
    seed = next(seed for seed in range(99) if not any(spread(shape, seed)))
    varied = vary_patches(patches, np.random.default_rng(seed))
    assert np.array_equal(varied.pixels, cut(vary_colours(image, np.random.default_rng(seed)), tree))
    assert varied.pixels.dtype == dtype


def spread(shape: tuple[int, ...], seed: int) -> tuple[float, float]:
    colours = Colours.draw(shape[2] if len(shape) == 3 else 1, np.random.default_rng(seed))
    return colours.blur, colours.noise


def test_noise_is_half_as_strong_a_level() -> None:
    grey = np.full((256, 256, 3), 128, np.uint8)
    found = []
    for level in (0, 1, 2):
        patches = Patches(cut(grey, tree := Tree.uniform((256, 256), 16, level)), tree)
        found.append(vary_patches(patches, np.random.default_rng(drawn(noise=True, blur=False))).pixels[..., 0].std())
    assert found[1] == pytest.approx(found[0] / 2, rel=0.2)
    assert found[2] == pytest.approx(found[0] / 4, rel=0.3)


def test_patches_that_lie_apart_are_not_blurred_into_each_other() -> None:
    seed = drawn(noise=False, blur=True)
    tree = Tree.uniform((32, 32), 16)
    pixels = np.full((4, 16, 16, 3), 200, np.uint8)
    pixels[1] = 20
    flat = vary_patches(Patches(pixels, tree), np.random.default_rng(seed)).pixels
    assert [int(np.ptp(patch[..., 0])) for patch in flat] == [0, 0, 0, 0]
    pixels[0, 8:] = 20
    edge = vary_patches(Patches(pixels, tree), np.random.default_rng(seed)).pixels[0, :, 0, 0]
    assert len(np.unique(edge)) > 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colours_of_many_channels_are_changed_like_those_of_few(dtype: Any) -> None:
    seed = next(seed for seed in range(999) if all(np.array(spread((8, 8, 130), seed)) > 0))
    image = (np.random.default_rng(0).random((32, 32, 130)) * 200).astype(dtype)
    image[0, 0], image[0, 1] = 0, 200
    colours = Colours.draw(130, np.random.default_rng(seed))
    many = colours.apply(image)
    few = replace(colours, **{name: getattr(colours, name)[129:] for name in ("gain", "lift", "gamma")})
    np.testing.assert_array_equal(many[..., 129], few.apply(np.ascontiguousarray(image[..., 129:]))[..., 0])
    varied = vary_colours(image, np.random.default_rng(seed))
    assert varied.shape == image.shape
    assert varied.dtype == dtype
