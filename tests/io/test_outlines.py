from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import InputError, Tree
from patchtree.io import outlines
from patchtree.io import simplify as simplify_
from patchtree.io.annotations import Annotations, read_annotations, write_annotations
from patchtree.io.coverage import rasterise
from patchtree.io.outlines import outline, outline_slide
from patchtree.io.pyramids import write_class_map
from patchtree.io.simplify import Rings, simplify
from patchtree.io.slides import open_slide

LABELS = {"one": 1, "two": 2, "three": 3}


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Noise, which touches itself at corners everywhere, or smooth areas with holes."""
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        return rng.integers(0, draw(st.integers(2, 4)), shape).astype(np.uint8)
    field = cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), draw(st.sampled_from([0.6, 1, 2, 3])))
    return np.digitize(field, np.quantile(field, [0.4, 0.6, 0.8])).astype(np.uint8)


def shapes(annotations: Annotations, label: str) -> list[shapely.Polygon]:
    found = [shapely.Polygon(one.rings[0], one.rings[1:]) for one in annotations.polygons if one.label == label]
    for one in found:
        assert one.is_valid, shapely.is_valid_reason(one)
        assert one.exterior.is_ccw
        assert not any(ring.is_ccw for ring in one.interiors)
    return found


def drawn(annotations: Annotations, shape: tuple[int, ...]) -> NDArray[Any]:
    tree = Tree.uniform(shape, 1)
    return tree.paint(rasterise(annotations, {"": 0, **LABELS}, tree).argmax(-1))


@given(masks(), st.lists(st.integers(0, 30), max_size=4))
def test_exact_outlines_are_the_mask_however_it_is_cut_in_bands(mask: NDArray[np.uint8], cuts: list[int]) -> None:
    annotations = outline(np.split(mask, sorted(cuts)), LABELS)
    np.testing.assert_array_equal(drawn(annotations, mask.shape), mask)
    for label, id_ in LABELS.items():
        found = shapes(annotations, label)
        assert sum(one.area for one in found) == (mask == id_).sum()
        count, _ = cv2.connectedComponents((mask == id_).astype(np.uint8), connectivity=4)
        assert len(found) == count - 1


@given(masks(), st.sampled_from([0.3, 0.75, 1.0, 2.0, 10.0]))
def test_simplified_outlines_keep_to_their_promises(mask: NDArray[np.uint8], tolerance: float) -> None:
    exact, simple = outline([mask], LABELS), outline([mask], LABELS, tolerance=tolerance)
    for label in LABELS:
        apart = shapes(simple, label)
        assert shapely.union_all(apart).area == pytest.approx(sum(one.area for one in apart))
        for one, other in zip(shapes(exact, label), apart, strict=True):
            assert len(one.interiors) == len(other.interiors)
            for ring, less in zip([one.exterior, *one.interiors], [other.exterior, *other.interiors], strict=True):
                assert ring.hausdorff_distance(less) <= tolerance + 1e-9
                area = shapely.Polygon(ring).area
                assert shapely.Polygon(less).area == pytest.approx(area, rel=0.01)


def test_rings_stay_apart_by_themselves_and_not_because_their_areas_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplify_, "_AREA", 0.5)
    rng = np.random.default_rng(0)
    for _ in range(80):
        field = cv2.GaussianBlur(rng.standard_normal(rng.integers(5, 60, 2)), (0, 0), rng.uniform(0.5, 2))
        mask = (field > 0).astype(np.uint8)
        found = shapes(outline([mask], LABELS, tolerance=rng.choice([1.0, 2.0, 4.0])), "one")
        assert shapely.union_all(found).area == pytest.approx(sum(one.area for one in found))


def test_a_tolerance_makes_files_smaller() -> None:
    rows, columns = np.indices((300, 300))
    disc = ((rows - 150) ** 2 + (columns - 150) ** 2 < 120**2).astype(np.uint8)
    sizes = [len(outline([disc], LABELS, tolerance=t).polygons[0].rings[0]) for t in (0, 1, 2)]
    assert sizes[0] > 5 * sizes[1]
    assert sizes[2] < 40


def rings_of(*rings: list[tuple[int, int]]) -> Rings:
    points = np.array([point for ring in rings for point in ring])
    sizes = np.array([len(ring) for ring in rings])
    return Rings.of(points, sizes, np.zeros(len(rings), np.int64), np.zeros(len(points), np.bool_))


def test_a_hole_in_a_bump_keeps_its_side() -> None:
    # A wide bump that the tolerance would cut off, with a hole in it: without the check the hole would lie outside.
    bump = [(0, 8), (400, 8), (400, 0), (420, 0), (420, 8), (900, 8), (900, 408), (0, 408)]
    hole = [(409, 2), (409, 6), (412, 6), (412, 2)]
    assert len(simplify(rings_of(bump), 10).points) == 4
    both = simplify(rings_of(bump, hole), 10)
    shell, inner = both.ring(0), both.ring(1)
    assert 4 < len(shell) < 8
    assert shapely.Polygon(shell, [inner]).is_valid


def test_features_open_as_geojson_in_pixels_of_level_0(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:30, 10:50], mask[10:20, 20:30], mask[12:15, 22:25] = 1, 0, 2
    colours = {"one": (200, 0, 0), "two": (0, 0, 250), "more": (1, 1, 1)}
    annotations = outline([mask], {"one": 1, "two": 2}, colours, scale=(4, 4))
    write_annotations(tmp_path / "a.geojson", annotations)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert [one["properties"]["classification"] for one in features] == [
        {"name": "one", "color": [200, 0, 0]},
        {"name": "two", "color": [0, 0, 250]},
    ]
    areas = [shapely.from_geojson(json.dumps(one["geometry"])).area for one in features]
    assert areas == [16 * (25 * 40 - 100), 16 * 9]
    tree = Tree.uniform((160, 240), 4)
    again = rasterise(read_annotations(tmp_path / "a.geojson"), {"": 0, **LABELS}, tree)
    np.testing.assert_array_equal(tree.paint(again.argmax(-1)), mask.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_class_map_is_outlined_at_any_level(tmp_path: Path, level: int) -> None:
    ids = np.kron(np.random.default_rng(0).integers(0, 3, (41, 33)), np.ones((37, 41), int)).astype(np.uint8)
    ids = ids[:1501, :1333]
    write_class_map(tmp_path / "ids.tif", ids.shape, lambda y0, x0, y1, x1: ids[y0:y1, x0:x1])
    with open_slide(tmp_path / "ids.tif") as slide:
        annotations = outline_slide(slide, LABELS, tolerance=0.75 * (level > 0), level=level)
    write_annotations(tmp_path / "ids.geojson", annotations)
    annotations = read_annotations(tmp_path / "ids.geojson")
    for label, id_ in LABELS.items():
        found = shapes(annotations, label)
        area = sum(one.area for one in found)
        assert area == pytest.approx((ids == id_).sum(), rel=0.01 if level else 0)
    y, x = (max(ring[:, axis].max() for one in annotations.polygons for ring in one.rings) for axis in (1, 0))
    assert (y, x) == ids.shape


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.int32, np.uint32, np.int64])
def test_every_type_of_ids(dtype: Any) -> None:
    mask = np.eye(4, dtype=dtype)
    assert [one.area for one in outline([mask], {"one": 1}).polygons] == [1.0] * 4
    if dtype not in (np.bool_,):
        large = np.where(mask == 1, np.iinfo(dtype).max, 0).astype(dtype)
        assert len(outline([large], {"one": int(large.max())}).polygons) == 4


def test_nothing_to_outline() -> None:
    assert len(outline([], LABELS)) == len(outline([np.zeros((4, 4), np.uint8)], LABELS, tolerance=1)) == 0
    assert len(outline([np.ones((4, 4), np.uint8)], {})) == 0
    assert outline([np.ones((4, 4), np.uint8)], LABELS).polygons[0].area == 16


def test_bad_input_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"a tolerance of -1 pixels"):
        outline([], LABELS, tolerance=-1)
    with pytest.raises(InputError, match=r"must be \(h, 4\) class ids, not \(2, 5\) of uint8"):
        outline([np.zeros((2, 4), np.uint8), np.zeros((2, 5), np.uint8)], LABELS)
    with pytest.raises(InputError, match=r"class ids, not \(2, 4\) of float64"):
        outline([np.zeros((2, 4))], LABELS)
    monkeypatch.setattr(outlines, "_MOST_CORNERS", 10)
    with pytest.raises(InputError, match=r"more than 10 corners, too many to outline; take a smaller level"):
        outline([np.eye(8, dtype=np.uint8)], LABELS)
