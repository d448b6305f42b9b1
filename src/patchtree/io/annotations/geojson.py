"""GeoJSON as QuPath reads and writes it (and any other, in pixels of level 0)."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.files import replacing
from patchtree.io.annotations.shapes import UNCLASSIFIED, Annotations, Drawn, Polygon, ring_area
from patchtree.io.colours import Colour

_DIGITS = 4  # of areas
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


def read(source: str, data: bytes) -> tuple[list[Drawn], int]:
    """Give the annotations in a file's bytes, and how many were passed over because they have no area.

    Raises:
        InputError: it is not JSON, or not GeoJSON.
    """
    try:
        tree = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{source}: no valid JSON, line {error.lineno}, column {error.colno}: {error.msg}; export it again"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{source}: no JSON in UTF-8; export it again") from error
    drawn, passed = [], 0
    try:
        for geometry, properties in _features(source, tree):
            label, colour = _classification(properties)
            for rings in _polygons(source, geometry):
                if rings is None:
                    passed += 1
                else:
                    drawn.append(Drawn(label, rings, colour))
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{source}: GeoJSON that is damaged; export it again") from error
    return drawn, passed


def write(path: Path, annotations: Annotations, mpp: tuple[float, float] | None) -> None:
    """Write annotations as a FeatureCollection, one feature a polygon: `read_annotations` gives them back.

    Outer rings run counter-clockwise in (x, y) and holes clockwise (RFC 7946). Classes, their colours and areas are as
    QuPath writes them since version 0.4.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for place, polygon in enumerate(annotations.polygons):
            file.write(",\n" if place else "\n")
            made = _feature(place, polygon, annotations.colours.get(polygon.label), mpp)
            file.write(json.dumps(made, ensure_ascii=False))
        file.write("\n]}\n")


def _features(source: str, node: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Geometries and their properties."""
    if isinstance(node, list):
        for one in node:
            yield from _features(source, one)
        return
    kind = node.get("type") if isinstance(node, dict) else None
    if kind == "FeatureCollection":
        yield from _features(source, list(node["features"]))
    elif kind == "Feature":
        yield node.get("geometry"), node.get("properties") or {}
    elif kind is not None and ("coordinates" in node or "geometries" in node):
        yield node, {}
    else:
        raise InputError(f"{source}: JSON, but no GeoJSON (type {kind!r}); export the annotations as GeoJSON")


def _polygons(source: str, geometry: Any) -> Iterator[list[Any] | None]:
    """Rings of each polygon of a geometry; None for each part without an area."""
    kind = None if geometry is None else geometry["type"]
    if kind == "Polygon":
        yield list(geometry["coordinates"])
    elif kind == "MultiPolygon":
        yield from map(list, geometry["coordinates"])
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(source, part)
    elif kind is None or kind in _NO_AREA:
        yield None
    else:
        raise InputError(f"{source}: GeoJSON has no geometry {kind!r}; export it again")


def _classification(properties: dict[str, Any]) -> tuple[str, Colour | None]:
    """Class and colour as QuPath has written them since version 0.2."""
    found = properties.get("classification")
    if not isinstance(found, dict):
        return str(found or UNCLASSIFIED), None
    label = found.get("name") or ": ".join(found.get("names") or ()) or UNCLASSIFIED
    if found.get("color") is not None:
        red, green, blue = (int(value) for value in found["color"])
    elif found.get("colorRGB") is not None:  # alpha, red, green and blue in 32 bits with a sign
        red, green, blue = ((int(found["colorRGB"]) >> shift) & 255 for shift in (16, 8, 0))
    else:
        return label, None
    return label, (red, green, blue)


def _feature(place: int, polygon: Polygon, colour: Colour | None, mpp: tuple[float, float] | None) -> dict[str, Any]:
    classification: dict[str, Any] = {"name": polygon.label}
    if colour is not None:
        classification["color"] = list(colour)
    name, area = "Area px^2", polygon.area
    if mpp is not None:
        name, area = "Area µm^2", area * math.prod(mpp)
    coordinates = [_closed(ring, hole == 0) for hole, ring in enumerate(polygon.rings)]
    return {
        "type": "Feature",
        # QuPath takes UUIDs only. Equal polygons differ by their places.
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{place} {coordinates}")),
        "geometry": {"type": "Polygon", "coordinates": coordinates},
        "properties": {
            "objectType": "annotation",
            "classification": classification,
            "measurements": {name: round(area, _DIGITS)},
        },
    }


def _closed(ring: NDArray[np.float64], outer: bool) -> list[list[float]]:
    """Vertices in the right-hand order, the first repeated; whole numbers without a point."""
    turned = ring if (ring_area(ring) > 0) == outer else ring[::-1]
    closed = np.concatenate([turned, turned[:1]])
    whole = closed.astype(np.int64)
    return (whole if np.array_equal(whole, closed) else closed).tolist()  # type: ignore[no-any-return]
