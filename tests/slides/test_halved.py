from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import InputError
from patchtree.pyramid import pyramid
from patchtree.slides import halved
from patchtree.slides.halved import Halved, by_part, threads
from slides.fake import FakeSlide, make_slide


def draw_image(shape: tuple[int, ...], dtype: Any = np.uint8) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, shape).astype(dtype)
    image[: shape[0] // 3] = 9
    return image


@given(
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.sampled_from([(0,), (0, 1, 2, 3), (0, 2), (0, 1, 4), (0, 3)]),
    st.sampled_from([(64, 64), (16, 32), (1, 200), (300, 300)]),
    st.sampled_from([np.uint8, np.uint16, np.float32, np.int32]),
    st.integers(0, 6),
    st.data(),
)
def test_reads_what_halving_the_whole_gives(
    shape: tuple[int, int], kept: tuple[int, ...], tile: tuple[int, int], dtype: Any, level: int, data: st.DataObject
) -> None:
    image = draw_image((*shape, 2), dtype)
    view = Halved(make_slide(image, kept, tile), cache=data.draw(st.sampled_from([0, 5000, 1 << 20])))
    *_, whole = pyramid(image, level)
    expected = whole.values * whole.scale
    assert view.shape(level) == expected.shape[:2]
    rows = sorted(data.draw(st.tuples(*[st.integers(0, expected.shape[0])] * 2).filter(lambda two: two[0] != two[1])))
    columns = sorted(
        data.draw(st.tuples(*[st.integers(0, expected.shape[1])] * 2).filter(lambda two: two[0] != two[1]))
    )
    for y0, x0, y1, x1 in ((rows[0], columns[0], rows[1], columns[1]), (-5, -5, 999, 999)):
        got = view.read(level, y0, x0, y1, x1)
        # Levels of the file are rounded, those made here are not.
        rounding = 0.51 if level >= min(kept[1:], default=99) and np.dtype(dtype).kind in "iu" else 1e-2
        np.testing.assert_allclose(got, expected[max(y0, 0) : y1, max(x0, 0) : x1], atol=rounding)


@given(
    st.tuples(st.integers(40, 300), st.integers(40, 300)), st.integers(0, 5), st.sampled_from([3.0, 2.6, 2.004, 1.99])
)
def test_levels_of_any_ratio_are_resampled(shape: tuple[int, int], level: int, ratio: float) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    image = np.stack([x, y], axis=-1)
    small = tuple(int(length / ratio) for length in shape)
    down = (shape[0] / small[0], shape[1] / small[1])
    y, x = np.mgrid[: small[0], : small[1]] + 0.5
    view = Halved(FakeSlide([image, np.stack([x * down[1], y * down[0]], axis=-1)], [(1, 1), down]))
    *_, whole = pyramid(image, level)
    # A ramp comes out as a ramp; a border pixel may be off by the part of it that is cut.
    got = view.read(level, 0, 0, *view.shape(level))
    np.testing.assert_allclose(got[:-1, :-1], whole.values[:-1, :-1], atol=max(down))


def test_levels_rounded_down_go_on_to_the_border() -> None:
    image = draw_image((97, 103, 3))
    slide = make_slide(image, [0, 1, 2])
    short = FakeSlide([array[: 97 >> i, : 103 >> i] for i, array in enumerate(slide.arrays)], [(1, 1), (2, 2), (4, 4)])
    for level in (1, 2, 4):
        whole, got = (Halved(one).read(level, 0, 0, 999, 999) for one in (slide, short))
        assert got.shape == whole.shape
        np.testing.assert_allclose(got[:-1, :-1], whole[:-1, :-1], atol=0.51)
        # Nothing beyond the file's last row but that row again: no background comes in.
        np.testing.assert_allclose(got[-1].mean(), whole[-1].mean(), atol=40)


def test_a_kept_level_is_read_in_place_of_finer_ones() -> None:
    image = draw_image((200, 190, 3))
    slide = make_slide(image, [0])
    view = Halved(slide)
    view.keep(3, view.read(3, 0, 0, 25, 24))
    before = slide.pixels
    *_, whole = pyramid(image, 5)
    np.testing.assert_allclose(view.read(5, 0, 0, 7, 6), whole.values * whole.scale, atol=1e-2)
    view.read(3, 0, 0, 25, 24)
    assert slide.pixels == before


def test_tiles_are_read_once_as_long_as_they_are_held() -> None:
    slide = make_slide(draw_image((256, 256, 3)), [0, 1])
    view = Halved(slide)
    for _ in range(3):
        for place in range(0, 256, 32):
            view.read(0, place, 0, place + 40, 256)
    assert slide.pixels == 256**2
    slide.boxes.clear()
    small = Halved(slide, cache=64 * 64 * 3)
    for _ in range(2):
        small.read(0, 0, 0, 64, 128)
    assert slide.pixels == 4 * 64 * 64


def test_the_tiles_that_were_asked_for_last_are_held() -> None:
    slide = make_slide(draw_image((64, 192, 3)), [0])
    view = Halved(slide, cache=2 * 64 * 64 * 3)
    for column in (0, 1, 0, 2, 0):
        view.read(0, 0, 64 * column, 64, 64 * column + 64)
    assert len(slide.boxes) == 3


def test_threads_wait_for_each_other_and_read_nothing_twice() -> None:
    image = draw_image((256, 256, 3))
    slide = make_slide(image, [0])
    view = Halved(slide)
    with threads(8) as pool:
        parts = list(pool.map(lambda place: view.read(0, place, 0, place + 16, 256), list(range(0, 256, 16)) * 8))
    assert slide.pixels == 256**2
    assert np.array_equal(np.concatenate(parts[:16]), image)


def test_an_error_reaches_every_thread_and_is_not_held() -> None:
    slide = make_slide(draw_image((64, 64, 3)), [0])
    broken, slide._read = slide._read, lambda *_: (_ for _ in ()).throw(InputError("broken"))  # type: ignore[method-assign]
    view = Halved(slide)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(view.read, 0, 0, 0, 64, 64) for _ in range(4)]
        for job in jobs:
            with pytest.raises(InputError, match="broken"):
                job.result()
    slide._read = broken  # type: ignore[method-assign]
    assert view.read(0, 0, 0, 64, 64).shape == (64, 64, 3)


def test_large_areas_are_averaged_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    image = draw_image((250, 190, 3))
    whole = Halved(make_slide(image, [0])).read(4, 0, 0, 16, 12)
    monkeypatch.setattr(halved, "_PIXELS_AT_ONCE", 1024)
    slide = make_slide(image, [0])
    np.testing.assert_allclose(Halved(slide, cache=0).read(4, 0, 0, 16, 12), whole, atol=1e-3)


def test_many_channels() -> None:
    image = draw_image((70, 50, 200))
    *_, whole = pyramid(image, 2)
    np.testing.assert_allclose(
        Halved(make_slide(image, [0])).read(2, 0, 0, 18, 13), whole.values * whole.scale, atol=1e-3
    )


def test_workers_are_checked() -> None:
    with pytest.raises(InputError, match="0 workers"):
        threads(0)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60), st.integers(1, 9))
def test_cells_are_grouped_as_by_sorting_their_squares(cells: list[tuple[int, int]], side: int) -> None:
    index = np.array(cells, np.int32).reshape(-1, 2)
    parts, which = np.unique(index // side, axis=0, return_inverse=True)
    expected = [
        (tuple(part), np.flatnonzero(which.reshape(-1) == at).tolist()) for at, part in enumerate(parts.tolist())
    ]
    assert [(part, own.tolist()) for part, own in by_part(index, side)] == expected
