from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapely.geometry import shape as geometry

from patchtree import InputError, Tree
from patchtree.io.annotations import Annotations, Polygon, read_annotations, write_annotations
from patchtree.io.coverage import rasterise

SQUARE = [[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]]
HOLE = [[2, 2], [2, 4], [4, 4], [4, 2], [2, 2]]
FAR = [[20.5, 1], [24, 1], [24, 5.25], [20.5, 1]]


def feature(shape: dict[str, Any] | None, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "id": "x", "geometry": shape, "properties": properties}


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": rings}


def classified(name: str, **more: Any) -> dict[str, Any]:
    return {"objectType": "annotation", "classification": {"name": name, **more}}


def save(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rings(annotations: Annotations) -> list[tuple[str, list[Any]]]:
    return [(one.label, [ring.tolist() for ring in one.rings]) for one in annotations.polygons]


def open_ring(ring: list[Any]) -> list[Any]:
    return [[float(x), float(y)] for x, y in ring[:-1]]


FEATURES = [
    feature(polygon(SQUARE, HOLE), **classified("Tumor", color=[200, 0, 0])),
    feature({"type": "MultiPolygon", "coordinates": [[SQUARE], [FAR]]}, **classified("Stroma", colorRGB=-6895466)),
    feature({"type": "GeometryCollection", "geometries": [polygon(FAR)]}, classification="Necrosis"),
    feature(polygon(FAR), objectType="annotation"),
]
WANTED = [
    ("Tumor", [open_ring(SQUARE), open_ring(HOLE)]),
    ("Stroma", [open_ring(SQUARE)]),
    ("Stroma", [open_ring(FAR)]),
    ("Necrosis", [open_ring(FAR)]),
    ("Unclassified", [open_ring(FAR)]),
]


@pytest.mark.parametrize("content", [FEATURES, {"type": "FeatureCollection", "features": FEATURES}], ids=["list", "fc"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n  "])
def test_geojson_of_qupath(tmp_path: Path, content: Any, start: str) -> None:
    annotations = read_annotations(save(tmp_path / "a.geojson", start + json.dumps(content)))
    assert rings(annotations) == WANTED
    assert annotations.colours == {"Tumor": (200, 0, 0), "Stroma": (150, 200, 150)}
    assert annotations.labels == ("Tumor", "Stroma", "Necrosis", "Unclassified")


def test_derived_classes_have_one_name(tmp_path: Path) -> None:
    made = feature(polygon(SQUARE), classification={"names": ["Immune cells", "Positive"]})
    assert read_annotations(save(tmp_path / "a.json", made)).labels == ("Immune cells: Positive",)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    annotations = read_annotations(save(tmp_path / "a.geojson", FEATURES))
    write_annotations(tmp_path / "b.geojson", annotations)
    again = read_annotations(tmp_path / "b.geojson")
    tree = Tree.uniform((16, 32), 4)
    labels = {"Unclassified": 0, "Tumor": 1, "Stroma": 2, "Necrosis": 3}
    np.testing.assert_array_equal(rasterise(again, labels, tree), rasterise(annotations, labels, tree))
    assert again.colours == annotations.colours
    written = json.loads((tmp_path / "b.geojson").read_text())
    for one in written["features"]:
        shape = geometry(one["geometry"])
        assert shape.is_valid
        assert shape.exterior.is_ccw
        assert not any(ring.is_ccw for ring in shape.interiors)
        assert one["properties"]["objectType"] == "annotation"
    assert written["features"][0]["properties"]["classification"] == {"name": "Tumor", "color": [200, 0, 0]}
    assert written["features"][0]["geometry"]["coordinates"][0][0] == [0, 0]
    assert [one.area for one in again.polygons] == [60.0, 64.0, *[pytest.approx(7.4375)] * 3]


def test_what_is_written_has_ids_and_areas(tmp_path: Path) -> None:
    annotations = read_annotations(save(tmp_path / "a.geojson", [*FEATURES, FEATURES[0]]))
    texts = []
    for mpp, name, scale in ((None, "Area px^2", 1), ((0.25, 0.5), "Area µm^2", 0.125)):
        for _ in range(2):
            write_annotations(tmp_path / "b.geojson", annotations, mpp)
            texts.append((tmp_path / "b.geojson").read_text(encoding="utf-8"))
        features = json.loads(texts[-1])["features"]
        measured = [feature["properties"]["measurements"] for feature in features]
        assert measured == [{name: pytest.approx(one.area * scale, abs=1e-4)} for one in annotations.polygons]
        ids = [uuid.UUID(feature["id"]) for feature in features]
        assert len(set(ids)) == len(ids) == 6
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]


def test_no_annotations_make_a_file_too(tmp_path: Path) -> None:
    write_annotations(tmp_path / "a.geojson", Annotations(()))
    assert len(read_annotations(tmp_path / "a.geojson")) == 0


def test_points_and_lines_are_passed_over(tmp_path: Path) -> None:
    line = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}
    path = save(tmp_path / "a.geojson", [feature(line), feature(None), feature(polygon(SQUARE))])
    with pytest.warns(UserWarning, match=r"a.geojson: 2 annotations without an area"):
        assert len(read_annotations(path)) == 1


def test_rings_that_are_not_closed_or_have_no_area(tmp_path: Path) -> None:
    path = save(tmp_path / "a.geojson", [polygon(SQUARE[:-1]), polygon(SQUARE)])
    with pytest.warns(UserWarning, match=r"a.geojson: 1 rings are not closed; a straight line closes them"):
        annotations = read_annotations(path)
    assert rings(annotations)[0] == rings(annotations)[1]
    path = save(tmp_path / "b.geojson", [polygon([[0, 0], [3, 0], [0, 0]]), polygon([]), polygon(SQUARE, [])])
    with pytest.warns(UserWarning, match=r"b.geojson: 3 outlines without an area are left out"):
        assert rings(read_annotations(path)) == [("Unclassified", [open_ring(SQUARE)])]


def test_a_ring_that_crosses_itself_is_told(tmp_path: Path) -> None:
    bow = [[0, 10], [8, 18], [8, 10], [0, 18], [0, 10]]
    path = save(tmp_path / "a.geojson", [polygon(SQUARE), feature(polygon(bow), **classified("Bow"))])
    with pytest.warns(UserWarning, match=r"1 outlines cross themselves, .* 'Bow' near x = 0, y = 10; "):
        annotations = read_annotations(path)
    counts = rasterise(annotations, {"Unclassified": 0, "Bow": 1}, Tree.uniform((20, 20), 20))
    assert counts[..., 1].sum() == 32


ASAP = """<?xml version="1.0"?>
<ASAP_Annotations>
  <Annotations>
    <Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="exclude" Color="#F4FA58"><Coordinates>
      <Coordinate Order="0" X="2" Y="2"/><Coordinate Order="2" X="4" Y="4"/>
      <Coordinate Order="1" X="4" Y="2"/><Coordinate Order="3" X="2,0" Y="4"/>
    </Coordinates></Annotation>
    <Annotation Name="Annotation 1" Type="Spline" PartOfGroup="tumour" Color="#F4FA58"><Coordinates>
      <Coordinate Order="0" X="0" Y="0"/><Coordinate Order="1" X="8" Y="0"/>
      <Coordinate Order="2" X="8" Y="8"/><Coordinate Order="3" X="0" Y="8"/>
    </Coordinates></Annotation>
    <Annotation Name="loose" Type="Rectangle" PartOfGroup="None" Color="#010203"><Coordinates>
      <Coordinate Order="0" X="9" Y="0"/><Coordinate Order="1" X="10" Y="0"/>
      <Coordinate Order="2" X="10" Y="1"/><Coordinate Order="3" X="9" Y="1"/>
    </Coordinates></Annotation>
    <Annotation Name="dot" Type="Dot" PartOfGroup="None" Color="#010203"><Coordinates>
      <Coordinate Order="0" X="9" Y="0"/></Coordinates></Annotation>
  </Annotations>
  <AnnotationGroups>
    <Group Name="tumour" PartOfGroup="None" Color="#64FE2E"><Attributes/></Group>
    <Group Name="exclude" PartOfGroup="None" Color="#00ff00"><Attributes/></Group>
  </AnnotationGroups>
</ASAP_Annotations>
"""


def test_groups_of_asap_are_classes_drawn_in_the_order_of_groups(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 annotations without an area"):
        annotations = read_annotations(save(tmp_path / "a.xml", ASAP))
    assert annotations.labels == ("Unclassified", "tumour", "exclude")
    assert annotations.colours == {"tumour": (100, 254, 46), "exclude": (0, 255, 0), "Unclassified": (1, 2, 3)}
    assert rings(annotations)[2] == ("exclude", [[[2, 2], [4, 2], [4, 4], [2, 4]]])
    labels, tree = {"Unclassified": 0, "exclude": 0, "tumour": 1}, Tree.uniform((16, 16), 4)
    assert rasterise(annotations, labels, tree)[..., 1].sum() == 60
    turned = annotations.draw_in_order(["exclude", "tumour"])
    assert rasterise(turned, labels, tree)[..., 1].sum() == 64
    with pytest.raises(InputError, match="names a class twice"):
        annotations.draw_in_order(["exclude", "exclude"])


def region(points: list[tuple[float, float]], negative: int = 0, kind: int = 0) -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return f'<Region Id="1" Type="{kind}" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'


def box(low: float, high: float) -> list[tuple[float, float]]:
    return [(low, low), (high, low), (high, high), (low, high)]


def imagescope(*layers: tuple[str, str]) -> str:
    inside = "".join(
        f'<Annotation Id="{place}" {head} LineColor="65535"><Regions>{regions}</Regions></Annotation>'
        for place, (head, regions) in enumerate(layers, 1)
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><Annotations MicronsPerPixel="0.5">{inside}</Annotations>'


def test_negative_regions_of_imagescope_are_holes_of_larger_ones(tmp_path: Path) -> None:
    nested = region(box(8, 12)) + region(box(2, 18), 1) + region(box(0, 20)) + region(box(9, 10), 1)
    path = save(tmp_path / "a.xml", imagescope(('Name="tumour"', nested), ("", region(box(4, 7)))))
    annotations = read_annotations(path)
    assert annotations.labels == ("tumour", "layer 2")
    assert annotations.colours == {"tumour": (255, 255, 0), "layer 2": (255, 255, 0)}
    counts = rasterise(annotations, {"": 0, "tumour": 1, "layer 2": 2}, Tree.uniform((32, 32), 4))
    assert counts[..., 1].sum() == 20**2 - 16**2 + 4**2 - 1
    assert counts[..., 2].sum() == 9


def test_a_hole_over_the_border_takes_away_only(tmp_path: Path) -> None:
    path = save(tmp_path / "a.xml", imagescope(('Name="a"', region(box(0, 20)) + region(box(15, 25), 1))))
    counts = rasterise(read_annotations(path), {"": 0, "a": 1}, Tree.uniform((32, 32), 4))
    assert counts[..., 1].sum() == 20**2 - 5**2


def test_shapes_of_imagescope(tmp_path: Path) -> None:
    described = '<Attributes><Attribute Name="Description" Value="ellipse"/></Attributes>'
    content = imagescope(
        ('Name="box"', region([(1, 2), (5, 8)], kind=1)),
        ('Name=""', described + region([(0, 0), (400, 200)], kind=2)),
        ('Name="arrow"', region([(0, 0), (4, 4)], kind=3)),
    ).replace(
        '<Regions><Attributes><Attribute Name="Description" Value="ellipse"/></Attributes>', described + "<Regions>"
    )
    with pytest.warns(UserWarning, match="1 annotations without an area"):
        one, two = read_annotations(save(tmp_path / "a.xml", content)).polygons
    assert (one.label, one.area) == ("box", 24)
    assert two.label == "ellipse"
    assert two.area == pytest.approx(np.pi * 200 * 100, rel=2e-3)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        ("hello", "neither GeoJSON nor XML"),
        ('{"type": "Feature"', "no valid JSON, line 1, column 19"),
        ('{"labels": {}}', "no GeoJSON"),
        ('{"type": "FeatureCollection"}', "GeoJSON that is damaged"),
        ('{"type": "Polygon", "coordinates": 5}', "GeoJSON that is damaged"),
        ('{"type": "Circle", "coordinates": [1, 2]}', "no geometry 'Circle'"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, "x"], [2, 2], [0, 0]]]}', "damaged coordinates"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, NaN], [2, 2], [0, 0]]]}', "damaged coordinates"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1], [2, 2], [0, 0]]]}', "damaged coordinates"),
        ("[" * 100_000, "no JSON"),
        ("<Annotations><Annotation>", "no valid XML, line 1"),
        ("<svg/>", "XML <svg>, neither"),
        (imagescope(("", region([("1.2.3", 4)]))), "X='1.2.3', which is no number"),  # type: ignore[list-item]
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        read_annotations(save(tmp_path / "bad.file", content))
    assert str(error.value).startswith(str(tmp_path / "bad.file"))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_annotations(tmp_path / "none.xml")
    with pytest.raises(InputError, match="cannot be read"):
        read_annotations(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        write_annotations(tmp_path / "none" / "a.geojson", Annotations(()))


def test_polygons_are_values() -> None:
    assert Polygon("a", (np.array(SQUARE[:-1], float), np.array(HOLE[:-1], float))).area == 60
