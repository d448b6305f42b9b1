"""Annotations: polygons with classes, read from QuPath, ASAP and Aperio ImageScope, written as GeoJSON."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from patchtree.errors import InputError
from patchtree.io.annotations import geojson, xml
from patchtree.io.annotations.shapes import Annotations, Polygon, assemble

__all__ = ["Annotations", "Polygon", "read_annotations", "write_annotations"]


def read_annotations(path: str | os.PathLike[str]) -> Annotations:
    """Read polygons with classes: GeoJSON, ASAP XML or Aperio ImageScope XML, told apart by what they are.

    QuPath's classifications, ASAP's groups and ImageScope's layers are classes; of groups in groups the innermost.
    ASAP's groups are drawn in the file's order of groups, all else in the order of the file; later ones cover earlier
    ones. ImageScope's negative regions are holes. Points, lines, arrows and rulers are passed over, and a warning
    counts them.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "slide.geojson"
    >>> _ = path.write_text('{"type": "Polygon", "coordinates": [[[0, 0], [8, 0], [8, 8], [0, 0]]]}')
    >>> read_annotations(path).polygons[0].area
    32.0

    Raises:
        InputError: the file is missing, empty, damaged, or none of the three.
    """
    source = os.fspath(path)
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{source}: no such file; check the path") from error
    except OSError as error:
        raise InputError(
            f"{source}: cannot be read, {os.strerror(error.errno or 0).lower()}; check the file"
        ) from error
    start = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise InputError(f"{source}: is empty; export the annotations again")
    json_like = start[:1] in b"{["
    if not json_like and b"<" not in start[:4]:  # after the byte order mark of UTF-16
        raise InputError(f"{source}: neither GeoJSON nor XML; export the annotations as one of these")
    drawn, passed = (geojson if json_like else xml).read(source, data)
    if passed:
        warnings.warn(f"{source}: {passed} annotations without an area (points, lines) are left out", stacklevel=2)
    return assemble(source, drawn, closed=json_like)


def write_annotations(
    path: str | os.PathLike[str], annotations: Annotations, mpp: tuple[float, float] | None = None
) -> None:
    """Write annotations as GeoJSON that QuPath imports with classes and colours; `read_annotations` gives them back.

    Each has its area among its measurements, and an id that is the same whenever the same is written.

    Args:
        path: where to.
        annotations: in pixels of level 0.
        mpp: micrometres along a pixel of level 0, (y, x): areas are in square micrometres, else in pixels.

    Raises:
        InputError: the file cannot be written.
    """
    geojson.write(Path(path), annotations, mpp)
