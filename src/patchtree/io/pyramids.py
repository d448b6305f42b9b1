"""Class maps as pyramidal TIFF, larger than memory, written from top to bottom in one pass."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import quoteattr

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import DTypeLike, NDArray

from patchtree.errors import InputError
from patchtree.files import replacing
from patchtree.io.tiff import CLASSIC

TILE = 512  # pixels on a side
_ROWS_PIXELS = 1 << 25  # that are asked for in one go
_IN_MEMORY = 1 << 26  # bytes of smaller levels, compressed, before they go to a file of their own

Read = Callable[[int, int, int, int], NDArray[Any]]


def write_class_map(
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    read: Read,
    dtype: DTypeLike = np.uint8,
    mpp: Sequence[float] | None = None,
    ome: bool = False,
    rows: int | None = None,
    plain: Callable[[int], NDArray[np.integer]] | None = None,
) -> None:
    """Write class ids as a tiled pyramid, each level half of the one before, in bounded memory.

    Tiles are compressed by deflate, which every program reads. A pixel of a smaller level is of the class that most of
    the 4 pixels under it have, in a tie of the upper left one's. The same ids give the same bytes.

    >>> path = Path(tempfile.mkdtemp()) / "ids.tif"
    >>> write_class_map(path, (600, 900), lambda y0, x0, y1, x1: np.ones((y1 - y0, x1 - x0), np.uint8))
    >>> with tifffile.TiffFile(path) as file:
    ...     [level.shape for level in file.series[0].levels]
    [(600, 900), (300, 450)]

    Args:
        path: where to; it is there only when it is whole.
        shape: (H, W).
        read: called as ``read(y0, x0, y1, x1)`` once for each band of whole rows, from top to bottom, gives the ids
            there, ``(y1 - y0, x1 - x0)``.
        dtype: uint8 or uint16.
        mpp: micrometres along a pixel, (y, x).
        ome: levels as sub-images with OME-XML (OME-TIFF) instead of as pages (what OpenSlide and vips take).
        rows: of a band, a multiple of 512; a band holds some 33 million pixels otherwise.
        plain: called with the number of each row of tiles once its band was read, gives the class that all pixels of
            a tile have, -1 where it is not known; what `read` gave is not looked at where it is.

    Raises:
        InputError: the ids do not fit the type or the shape, or the file cannot be written.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: class ids are written as uint8 or uint16, not as {dtype}")
    rows = max(1, _ROWS_PIXELS // (TILE * shape[1])) * TILE if rows is None else rows
    with replacing(path) as temporary, ExitStack() as stack:
        shapes = level_shapes(shape)
        levels = [_Level(size, dtype, stack.enter_context(_spool(path.parent))) for size in shapes[1:]]
        tiles = _tiles(_bands(path, shape, read, dtype, rows), _Level(shape, dtype), levels, plain)
        big = shape[0] * shape[1] * dtype.itemsize * 4 // 3 > CLASSIC
        with tifffile.TiffWriter(temporary, bigtiff=big, byteorder="<") as file:
            options: dict[str, Any] = {"software": "patchtree", "metadata": None, "dtype": dtype.newbyteorder("<")}
            options |= {"tile": (TILE, TILE), "compression": tifffile.COMPRESSION.ADOBE_DEFLATE, "photometric": 1}
            text = _ome_xml(shape, dtype, mpp) if ome else ""
            file.write(
                tiles,
                shape=shape,
                subifds=len(levels) if ome else 0,
                description=text.encode() if ome else None,
                **_resolution(mpp, 1),
                **options,
            )
            for depth, level in enumerate(levels, 1):
                file.write(level.stored(), shape=level.shape, subfiletype=1, **_resolution(mpp, 2**depth), **options)


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Halve a shape, rounded up, until it fits one tile.

    >>> level_shapes((2049, 1000))
    [(2049, 1000), (1025, 500), (513, 250), (257, 125)]
    """
    shapes = [shape]
    while max(shapes[-1]) > TILE:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return shapes


@dataclass(eq=False)
class _Level:
    """A level that is being written: rows that do not fill a row of tiles yet, and tiles that wait for their turn."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    waiting: IO[bytes] | None = None
    sizes: list[int] = field(default_factory=list)
    rows: list[NDArray[Any]] = field(default_factory=list)
    taken: int = 0
    blank: dict[int, bytes] = field(default_factory=dict)

    def fill(self, rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Take more rows; give bands of `TILE` rows as they fill up, the last one when all rows are there."""
        self.rows.append(rows)
        self.taken += len(rows)
        if self.taken % TILE == 0 or self.taken == self.shape[0]:
            band = self.rows[0] if len(self.rows) == 1 else np.concatenate(self.rows)
            self.rows.clear()
            for top in range(0, len(band), TILE):
                yield band[top : top + TILE]

    def cut(self, band: NDArray[Any], plain: NDArray[np.integer] | None = None) -> tuple[list[bytes], NDArray[Any]]:
        """Encode a row of tiles, and halve it; some may be known to be of one class."""
        height, width = band.shape
        tiles, half = [], np.empty((-(-height // 2), -(-width // 2)), band.dtype)
        for left in range(0, width, TILE):
            part, place = band[:, left : left + TILE], half[:, left // 2 : (left + TILE) // 2]
            known = plain is not None and plain[left // TILE] >= 0
            value = plain[left // TILE] if plain is not None and known else part[0, 0]
            if known or (part == value).all():
                tiles.append(self._one_value(value))
                place[:] = value
            else:
                part = np.ascontiguousarray(part)
                tiles.append(_encode(_pad(part, TILE, TILE)))
                place[:] = majority(part)
        return tiles, half

    def store(self, tiles: Sequence[bytes]) -> None:
        assert self.waiting is not None
        for tile in tiles:
            self.waiting.write(tile)
            self.sizes.append(len(tile))

    def stored(self) -> Iterator[bytes]:
        assert self.waiting is not None
        self.waiting.seek(0)
        for size in self.sizes:
            yield self.waiting.read(size)

    def _one_value(self, value: np.integer[Any]) -> bytes:
        key = int(value)
        if key not in self.blank:
            self.blank[key] = _encode(np.full((TILE, TILE), value, self.dtype))
        return self.blank[key]


def majority(ids: NDArray[Any]) -> NDArray[Any]:
    """Halve class ids ``(H, W)``: what most of 4 pixels have, in a tie the upper left one's.

    >>> majority(np.array([[1, 2, 3, 4], [5, 2, 6, 7]], np.uint8)).tolist()
    [[2, 3]]

    Args:
        ids: of an unsigned type of at most 32 bits.
    """
    ids = np.ascontiguousarray(_pad(ids, ids.shape[0] + ids.shape[0] % 2, ids.shape[1] + ids.shape[1] % 2))
    # Most blocks are of one class, which two pixels read as one number tell fast.
    pair = np.dtype(f"<u{2 * ids.itemsize}")
    half, low = pair.type(8 * ids.itemsize), pair.type(np.iinfo(ids.dtype).max)
    upper, lower = (ids[y::2].astype(ids.dtype.newbyteorder("<"), copy=False).view(pair) for y in (0, 1))
    left = upper & low
    places = np.flatnonzero((upper != lower) | (upper != (left | left << half)))
    one, two = upper.reshape(-1)[places], lower.reshape(-1)[places]
    a, b, c, d = one & low, one >> half, two & low, two >> half
    votes = np.where(c == d, c, a)
    np.copyto(votes, b, where=(b == c) | (b == d))
    np.copyto(votes, a, where=(a == b) | (a == c) | (a == d))
    left.reshape(-1)[places] = votes
    return np.asarray(left, ids.dtype)


def _tiles(
    bands: Iterator[NDArray[Any]],
    finest: _Level,
    levels: Sequence[_Level],
    plain: Callable[[int], NDArray[np.integer]] | None,
) -> Iterator[bytes]:
    """Yield the finest level's tiles, and leave those of the smaller levels waiting."""

    def halved(rows: NDArray[Any], depth: int) -> None:
        if depth < len(levels):
            for band in levels[depth].fill(rows):
                tiles, half = levels[depth].cut(band)
                levels[depth].store(tiles)
                halved(half, depth + 1)

    for row, band in enumerate(chain.from_iterable(map(finest.fill, bands))):
        tiles, half = finest.cut(band, plain(row) if plain else None)
        halved(half, 0)  # before the tiles: nobody asks for more after the last one
        yield from tiles


def _bands(path: Path, shape: tuple[int, int], read: Read, dtype: np.dtype[Any], rows: int) -> Iterator[NDArray[Any]]:
    height, width = shape
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        ids = np.asarray(read(top, 0, bottom, width))
        if ids.shape != (bottom - top, width) or ids.dtype.kind not in "biu":
            raise InputError(
                f"{path}: rows {top} to {bottom} must be ({bottom - top}, {width}) class ids, "
                f"not {ids.shape} of {ids.dtype}"
            )
        if not np.can_cast(ids.dtype, dtype) and (ids.min() < 0 or ids.max() > np.iinfo(dtype).max):
            raise InputError(
                f"{path}: class ids from {ids.min()} to {ids.max()} do not fit {dtype}; write them as uint16"
            )
        yield ids.astype(dtype, copy=False)


def _pad(ids: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    if ids.shape == (height, width):
        return ids
    return np.pad(ids, ((0, height - ids.shape[0]), (0, width - ids.shape[1])), mode="edge")


def _encode(tile: NDArray[Any]) -> bytes:
    # Level 2 of zlib-ng makes files as small as libdeflate's level 4, in a fifth to a third of the time.
    return bytes(imagecodecs.zlibng_encode(tile.astype(tile.dtype.newbyteorder("<"), copy=False).tobytes(), level=2))


def _spool(folder: Path) -> IO[bytes]:
    """A file without a name, in memory while it is small."""
    return tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))


def _resolution(mpp: Sequence[float] | None, downsample: int) -> dict[str, Any]:
    if mpp is None:
        return {}
    y, x = (10_000 / (size * downsample) for size in mpp)
    return {"resolution": (x, y), "resolutionunit": tifffile.RESUNIT.CENTIMETER}


def _ome_xml(shape: tuple[int, int], dtype: np.dtype[Any], mpp: Sequence[float] | None) -> str:
    """Describe one channel; without times, names or random numbers, so that the same ids give the same file."""
    size = ""
    if mpp is not None:
        size = " ".join(
            f'PhysicalSize{axis}={quoteattr(repr(float(value)))} PhysicalSize{axis}Unit="µm"'
            for axis, value in zip("YX", mpp, strict=True)
        )
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{schema}" '
        f'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="{schema} {schema}/ome.xsd" '
        'Creator="patchtree"><Image ID="Image:0" Name="class ids"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
        f'Type="{dtype.name}" SizeX="{shape[1]}" SizeY="{shape[0]}" SizeC="1" SizeZ="1" SizeT="1" {size}>'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="1"/>'
        "</Pixels></Image></OME>"
    )
