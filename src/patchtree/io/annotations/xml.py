"""XML of ASAP and of Aperio ImageScope."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.annotations.shapes import UNCLASSIFIED, Drawn, ring_area
from patchtree.io.colours import Colour

_NONE = "None"  # ASAP's word for no group
_ASAP_AREAS = ("Polygon", "Spline", "Rectangle")
_FREEHAND, _RECTANGLE, _ELLIPSE = "0", "1", "2"
_ELLIPSE_ERROR = 0.1  # pixels between an ellipse and the polygon that stands for it


def read(source: str, data: bytes) -> tuple[list[Drawn], int]:
    """Give the annotations in a file's bytes, and how many were passed over because they have no area.

    Raises:
        InputError: it is not XML, or of neither program.
    """
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        line, column = error.position
        raise InputError(
            f"{source}: no valid XML, line {line}, column {column + 1}: {error}; export it again"
        ) from None
    if root.find(".//Coordinates") is not None or root.tag == "ASAP_Annotations":
        return _asap(source, root)
    if root.tag == "Annotations":
        return _imagescope(source, root)
    raise InputError(f"{source}: XML <{root.tag}>, neither of ASAP nor of Aperio ImageScope; export it as GeoJSON")


def _asap(source: str, root: ElementTree.Element) -> tuple[list[Drawn], int]:
    """ASAP: a group is a class, and groups are drawn in the order in which the file lists them."""
    around = {group.get("Name", ""): group.get("PartOfGroup", _NONE) for group in root.iterfind(".//Group")}
    colours = {group.get("Name", ""): _hex(group.get("Color")) for group in root.iterfind(".//Group")}
    order = {name: place for place, name in enumerate(colours)}
    found, passed = [], 0
    for annotation in root.iterfind(".//Annotation"):
        if annotation.get("Type") not in _ASAP_AREAS:
            passed += 1
            continue
        group = annotation.get("PartOfGroup", _NONE)
        points = sorted(annotation.iterfind(".//Coordinate"), key=lambda point: _number(source, point, "Order"))
        colour = colours.get(group) or _hex(annotation.get("Color"))
        label = UNCLASSIFIED if group == _NONE else group
        drawn = Drawn(label, [_points(source, points)], colour, _groups_around(group, around))
        found.append((order.get(group, -1), drawn))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])], passed


def _groups_around(group: str, around: Mapping[str, str]) -> tuple[str, ...]:
    """List the groups that a group lies in, the nearest first."""
    found: list[str] = []
    while (group := around.get(group, _NONE)) != _NONE and group not in found:
        found.append(group)
    return tuple(found)


def _imagescope(source: str, root: ElementTree.Element) -> tuple[list[Drawn], int]:
    """Aperio ImageScope: a layer is a class; a negative region is a hole in the larger regions of its layer."""
    drawn, passed = [], 0
    for layer in root.iterfind("Annotation"):
        label, colour = _layer_name(layer), _bgr(layer.get("LineColor"))
        positive: list[NDArray[np.float64]] = []
        negative: list[NDArray[np.float64]] = []
        for region in layer.iterfind(".//Region"):
            points = _points(source, region.iterfind(".//Vertex"))
            if region.get("Type", _FREEHAND) not in (_FREEHAND, _RECTANGLE, _ELLIPSE):
                passed += 1
                continue
            ring = _shape(region.get("Type", _FREEHAND), points)
            (negative if region.get("NegativeROA") == "1" else positive).append(ring)
        sizes = [abs(ring_area(ring)) if len(ring) else 0.0 for ring in negative]
        for ring in positive:
            size = abs(ring_area(ring)) if len(ring) else 0.0
            holes = [
                hole for hole, area in zip(negative, sizes, strict=True) if 0 < area < size and _overlap(ring, hole)
            ]
            drawn.append(Drawn(label, [ring, *holes], colour))
    return drawn, passed


def _layer_name(layer: ElementTree.Element) -> str:
    described = layer.find("Attributes/Attribute[@Name='Description']")
    name = layer.get("Name") or (described.get("Value") if described is not None else None)
    return name or f"layer {layer.get('Id', '')}".strip()


def _shape(kind: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ring of a region, of which rectangles and ellipses may have but two corners."""
    if not len(points) or kind == _FREEHAND or (kind == _RECTANGLE and len(points) > 2):
        return points
    (left, top), (right, bottom) = points.min(0), points.max(0)
    if kind == _RECTANGLE:
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    radii = np.array([right - left, bottom - top]) / 2
    count = max(16, math.ceil(math.pi / math.sqrt(2 * _ELLIPSE_ERROR / max(radii.max(), 1))))
    angles = np.arange(count) * (2 * math.pi / count)
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    return np.asarray(centre + radii * np.stack([np.cos(angles), np.sin(angles)], 1))


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool((one.min(0) < other.max(0)).all() and (other.min(0) < one.max(0)).all())


def _points(source: str, nodes: Iterable[ElementTree.Element]) -> NDArray[np.float64]:
    points = [(_number(source, node, "X"), _number(source, node, "Y")) for node in nodes]
    return np.array(points, np.float64).reshape(-1, 2)


def _number(source: str, node: ElementTree.Element, name: str) -> float:
    text = node.get(name, "")
    try:
        return float(text.replace(",", "."))  # some countries' settings write a decimal comma
    except ValueError:
        raise InputError(f"{source}: a <{node.tag}> has {name}={text!r}, which is no number; export it again") from None


def _hex(text: str | None) -> Colour | None:
    """Read ``#RRGGBB``."""
    try:
        value = int((text or "").removeprefix("#"), 16)
    except ValueError:
        return None
    return (value >> 16) & 255, (value >> 8) & 255, value & 255


def _bgr(text: str | None) -> Colour | None:
    """Read red + 256 green + 65536 blue, as Windows has it."""
    try:
        value = int(text or "")
    except ValueError:
        return None
    return value & 255, (value >> 8) & 255, (value >> 16) & 255
