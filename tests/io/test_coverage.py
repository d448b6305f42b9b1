from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import InputError, Tree, count_labels
from patchtree.io import coverage, masks
from patchtree.io.annotations import Annotations, Polygon
from patchtree.io.coverage import count_part, count_slide_labels, rasterise
from patchtree.io.slides.base import Box, Level, Slide
from strategies import trees

SMALL = st.tuples(st.integers(1, 70), st.integers(1, 70))
LABELS = {"background": 0, "a": 1, "b": 2, "also b": 2, "none": 255}


class MaskSlide(Slide):
    """A mask in memory, which remembers what was read."""

    def __init__(self, ids: NDArray[Any], tile: int = 8) -> None:
        self.path, self.kind, self.mpp = "mask.tif", "memory", None
        self.ids = ids if ids.ndim == 3 else ids[..., None]
        self.channels, self.dtype = self.ids.shape[2], ids.dtype
        self.levels = (Level(ids.shape[:2], (1.0, 1.0), (tile, tile)),)
        self.background = np.zeros(self.channels, ids.dtype)
        self.boxes: list[Box] = []

    def close(self) -> None:
        pass

    def _read(self, level: int, box: Box) -> NDArray[Any]:
        self.boxes.append(box)
        return self.ids[box[0] : box[2], box[1] : box[3]].copy()


def encloses(ring: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels whose centres a ring encloses an odd number of times, the slow and obvious way."""
    y, x = np.indices(shape) + 0.5
    odd = np.zeros(shape, np.bool_)
    for one, other in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        (xa, ya), (xb, yb) = sorted([tuple(one), tuple(other)], key=lambda point: point[1])
        if ya < yb:
            odd ^= (ya <= y) & (y < yb) & (xa + (y - ya) * ((xb - xa) / (yb - ya)) <= x)
    return odd


def draw(annotations: Annotations, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The full mask."""
    mask = np.zeros(shape, np.uint8)
    for polygon in annotations.polygons:
        outer, *holes = (encloses(ring, shape) for ring in polygon.rings)
        mask[outer & ~np.any([np.zeros(shape, np.bool_), *holes], axis=0)] = LABELS[polygon.label]
    return mask


@st.composite
def annotated(draw_: st.DrawFn, tree: Tree) -> Annotations:
    """Polygons of any shape, crossing themselves and the border, on a grid of half or quarter pixels or off it."""
    rng = np.random.default_rng(draw_(st.integers(0, 2**32 - 1)))
    grid = draw_(st.sampled_from([0, 1, 2, 4]))
    extent = np.array(tree.shape[::-1])

    def ring(size: float) -> NDArray[np.float64]:
        centre = rng.random(2) * extent
        points = centre + (rng.random((rng.integers(3, 9), 2)) - 0.5) * size * extent
        return np.round(points * grid) / grid if grid else points

    return Annotations(
        tuple(
            Polygon(str(rng.choice(list(LABELS))), tuple(ring(size) for size in (1.5, *[0.8] * rng.integers(0, 3))))
            for _ in range(draw_(st.integers(0, 5)))
        )
    )


@given(st.data(), trees(SMALL), st.sampled_from([10, 100, 1 << 20]))
def test_polygons_are_counted_as_their_mask_is(data: st.DataObject, tree: Tree, work: int) -> None:
    annotations = data.draw(annotated(tree))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "_WORK", work)
        counts = rasterise(annotations, LABELS, tree, ignore=255)
    mask = draw(annotations, tree.shape)
    np.testing.assert_array_equal(counts, count_labels(mask, tree, 3, ignore=255))
    assert counts.dtype == np.float32


@given(trees(SMALL), st.integers(0, 2**32 - 1), st.sampled_from([1, 64, 1 << 25]))
def test_a_slide_of_ids_is_counted_as_its_mask_is(tree: Tree, seed: int, pixels: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.choice([0, 1, 2, 255], tree.shape).astype(np.uint8)
    ids = ids.repeat(1 + seed % 4, 0).repeat(1 + seed % 3, 1)[: tree.shape[0], : tree.shape[1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_PIXELS", pixels)
        counts = count_slide_labels(MaskSlide(ids), tree, 3, ignore=255)
    np.testing.assert_array_equal(counts, count_labels(ids, tree, 3, ignore=255))


@given(st.data(), SMALL)
def test_polygons_are_drawn_as_their_mask_is(data: st.DataObject, shape: tuple[int, int]) -> None:
    annotations = data.draw(annotated(Tree.uniform(shape, 8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "_ROWS", data.draw(st.sampled_from([1, 7, 256])))
        found = coverage.draw(annotations, LABELS, shape)
    np.testing.assert_array_equal(found, draw(annotations, shape))


@given(st.data(), trees(SMALL), st.integers(0, 2**32 - 1))
def test_a_part_is_counted_as_a_mask_that_is_ignored_around_it(data: st.DataObject, tree: Tree, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (height, width), size = tree.shape, 1 + seed % 4
    ids = rng.choice([0, 1, 2, 255], tree.shape).repeat(size, 0).repeat(size, 1)[:height, :width]
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    mask = np.full(tree.shape, 255)
    mask[y0:y1, x0:x1] = ids[y0:y1, x0:x1]
    counts = count_part(ids[y0:y1, x0:x1].astype(np.uint8), (y0, x0), tree, 3, ignore=255)
    np.testing.assert_array_equal(counts, count_labels(mask, tree, 3, ignore=255))


def test_neighbours_share_no_pixel_and_leave_none_out() -> None:
    rng = np.random.default_rng(0)
    tree = Tree.uniform((200, 300), 4, level=2)
    points = rng.random((60, 2)) * (300, 200)
    corner = [(0.0, 0.0), (300.0, 0.0), (300.0, 200.0), (0.0, 200.0)]
    centre = points.mean(0)
    around = sorted([*points.tolist(), *corner], key=lambda p: np.arctan2(p[1] - centre[1], p[0] - centre[0]))
    fan = [np.array([centre, one, two]) for one, two in zip(around, around[1:] + around[:1], strict=True)]
    star = [rasterise(Annotations((Polygon("a", (ring,)),)), LABELS, tree, 255)[..., 1] for ring in fan]
    outline = rasterise(Annotations((Polygon("a", (np.array(around),)),)), LABELS, tree, 255)[..., 1]
    np.testing.assert_array_equal(np.sum(star, 0), outline)


def test_only_what_leaves_cover_is_read() -> None:
    slide = MaskSlide(np.ones((64, 64), np.uint8))
    whole = Tree.uniform((64, 64), 8)
    part = Tree.__new__(Tree)
    kept = (whole.boxes()[:, 0] == 16) & (whole.boxes()[:, 1] >= 24)
    for name in ("patch_size", "shape", "max_level"):
        object.__setattr__(part, name, getattr(whole, name))
    object.__setattr__(part, "level", whole.level[kept])
    object.__setattr__(part, "index", whole.index[kept])
    counts = count_slide_labels(slide, part, 2)
    assert (counts[..., 1] == 1).all()
    assert slide.boxes == [(0, 24, 64, 64)]


def test_equal_channels_count_as_one() -> None:
    tree = Tree.uniform((16, 16), 4)
    ids = np.random.default_rng(0).integers(0, 3, (16, 16)).astype(np.uint16)
    slide = MaskSlide(np.stack([ids] * 3, -1))
    np.testing.assert_array_equal(count_slide_labels(slide, tree, 3), count_labels(ids, tree, 3))
    slide.ids[3, 4, 1] += 1
    with pytest.raises(InputError, match=r"mask.tif: .* its channels differ"):
        count_slide_labels(slide, tree, 4)


def test_bad_input_is_told_in_one_line() -> None:
    tree = Tree.uniform((16, 16), 4)
    square = (np.array([(0, 0), (4, 0), (4, 4), (0, 4)], np.float64),)
    with pytest.raises(InputError, match=r"^a.xml: class 'Stroma' is not among the labels \(background, a\); .*id"):
        rasterise(Annotations((Polygon("Stroma", square),), source="a.xml"), {"background": 0, "a": 1}, tree)
    with pytest.raises(InputError, match=r"^a.xml: class 'Stroma' is not among the labels"):
        coverage.draw(Annotations((Polygon("Stroma", square),), source="a.xml"), {"background": 0, "a": 1}, (4, 4))
    with pytest.raises(InputError, match=r"without gaps"):
        rasterise(Annotations(()), {"background": 0, "a": 2}, tree)
    with pytest.raises(InputError, match="2-D"):
        rasterise(Annotations(()), {"background": 0}, Tree.uniform((4, 4, 4), 2))
    with pytest.raises(InputError, match=r"mask.tif: holds id 7, which is none of the 2 classes"):
        count_slide_labels(MaskSlide(np.full((16, 16), 7, np.uint8)), tree, 2)
    with pytest.raises(InputError, match=r"mask.tif: a mask of shape \(8, 8\)"):
        count_slide_labels(MaskSlide(np.zeros((8, 8), np.uint8)), tree, 2)
    with pytest.raises(InputError, match="float32"):
        count_slide_labels(MaskSlide(np.zeros((16, 16), np.float32)), tree, 2)
