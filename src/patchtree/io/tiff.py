"""TIFF: one image of any layout, through tifffile and imagecodecs."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, SAMPLEFORMAT

from patchtree.errors import InputError
from patchtree.io.raster import Raster, check_pages, check_room, decoding, upright_shape

# tifffile logs what it finds odd; where nobody has set logging up, Python would print that to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.JPEG_LOSSY)
_LAB = (PHOTOMETRIC.CIELAB, PHOTOMETRIC.ICCLAB, PHOTOMETRIC.ITULAB)
_GDAL_NODATA = 42113
_TILE = 512  # pixels on a side of what is written
CLASSIC = 2**32 - 2**25  # bytes that a file with 32-bit offsets surely holds, beside the list of its tiles


def size(path: Path) -> tuple[int, int]:
    """(H, W) of an upright image, from its header."""
    with _open(path) as (_, series):
        shape = series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")]
        return upright_shape(shape, _orientation(series.keyframe))


def read(path: Path) -> Raster:
    """Decode a file that is known to be TIFF.

    Channels come last, whichever way they are stored: interleaved, as planes, or as the pages that OME and ImageJ call
    channels. The smaller levels of a pyramid are passed over.
    """
    with _open(path) as (tif, series):
        page = series.keyframe
        rows, columns = series.axes.index("Y"), series.axes.index("X")
        shape = series.shape[rows], series.shape[columns]
        check_room(path, (*shape, series.size // (shape[0] * shape[1])), series.dtype.itemsize)
        check_whole(path, tif, series.pages)
        samples = np.moveaxis(series.asarray(), (rows, columns), (0, 1))
        samples = samples.reshape(*samples.shape[:2], -1)  # at most one of the other axes is longer than 1
        samples = samples[:, :, 0] if samples.shape[2] == 1 else samples
        if page.photometric == PHOTOMETRIC.SEPARATED:
            samples = _rgb(samples)
        last = page.extrasamples[-1] if page.extrasamples else EXTRASAMPLE.UNSPECIFIED
        return Raster(
            samples.view(np.uint8) if samples.dtype == bool else samples,
            _palette(page),
            alpha=samples.ndim == 3 and last in (EXTRASAMPLE.UNASSALPHA, EXTRASAMPLE.ASSOCALPHA),
            premultiplied=last == EXTRASAMPLE.ASSOCALPHA,
            orientation=_orientation(page),
            lossy=page.compression in _JPEG,
            missing=_missing(page),
        )


@contextmanager
def _open(path: Path) -> Iterator[tuple[tifffile.TiffFile, tifffile.TiffPageSeries]]:
    """The one image in a file, in colours that can be read; it has axes Y and X and at most one of channels."""
    with decoding(path, "TIFF"), tifffile.TiffFile(path) as tif:
        if 0 in tif.pages.first.shape:
            raise InputError(f"{path}: TIFF without pixels; export it again")
        series = [one for one in tif.series if not one.keyframe.is_reduced]
        first = series[0]
        more = [(axis, n) for axis, n in zip(first.axes, first.shape, strict=True) if axis not in "YX" and n > 1]
        if len(series) > 1 or len(more) > 1 or any(axis not in "CS" for axis, _ in more):
            check_pages(path, "TIFF", max(len(tif.pages), *(n for _, n in more), 2))
        page = first.keyframe
        unconverted = page.photometric == PHOTOMETRIC.YCBCR and page.compression not in _JPEG
        if page.photometric in _LAB or unconverted:
            raise InputError(f"{path}: TIFF in {PHOTOMETRIC(page.photometric).name} colours; save it as RGB")
        if page.photometric == PHOTOMETRIC.SEPARATED and (page.samplesperpixel != 4 or first.dtype.kind != "u"):
            raise InputError(f"{path}: TIFF of {page.samplesperpixel} inks ({first.dtype}); save it as RGB")
        yield tif, first


def check_whole(
    path: Path | str, tif: tifffile.TiffFile, pages: Iterable[tifffile.TiffPage | tifffile.TiffFrame | None]
) -> None:
    """Refuse a file that ends before its pixels or its list of pages: tifffile would leave out what is missing."""
    places = [np.array([page.dataoffsets, page.databytecounts], np.int64) for page in pages if page is not None]
    end = max(int(place.sum(0).max(initial=0)) for place in places)
    layout, file = tif.tiff, tif.filehandle
    last = tif.pages[-1].offset
    file.seek(last)
    (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(last + layout.tagnosize + tags * layout.tagsize)
    (following,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
    if max(end, following) > file.size:
        raise InputError(
            f"{path}: TIFF cut short ({file.size:,} of at least {max(end, following):,} bytes); "
            "copy or export the file again"
        )


def _orientation(page: tifffile.TiffPage) -> int:
    found = page.tags.valueof("Orientation", 1)
    return int(found) if found in range(1, 9) else 1


def _missing(page: tifffile.TiffPage) -> float | None:
    """Read the sample that stands for no data, which GDAL writes as text."""
    try:
        return float(str(page.tags.valueof(_GDAL_NODATA, "")).strip("\0 "))
    except ValueError:
        return None


def _palette(page: tifffile.TiffPage) -> NDArray[Any] | None:
    """(K, 3) colours that the samples point to; (K,) greys where white is 0 or bits are fewer than 8; else None."""
    if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is not None:
        wide = page.colormap.max() > 255  # 16 bits a colour, though some writers store 8
        return np.asarray(page.colormap.T >> (8 if wide else 0), np.uint8)
    bits, white_is_zero = page.bitspersample, page.photometric == PHOTOMETRIC.MINISWHITE
    if bits < 8:
        greys = np.arange(2**bits) * 255 // (2**bits - 1)
    elif white_is_zero and page.sampleformat == SAMPLEFORMAT.UINT and bits <= 16:
        greys = np.arange(2**bits)
    else:
        return None
    return np.asarray(greys[::-1] if white_is_zero else greys, np.uint8 if bits <= 8 else np.uint16)


def _rgb(inks: NDArray[Any]) -> NDArray[Any]:
    """Light that (H, W, 4) cyan, magenta, yellow and black inks let through, without a colour profile."""
    white = np.uint32(np.iinfo(inks.dtype).max)
    light = white - inks.astype(np.uint32)
    return ((light[..., :3] * light[..., 3:] + white // 2) // white).astype(inks.dtype)


def write(path: Path, array: NDArray[Any]) -> None:
    """Write (H, W) or (H, W, C) of any type, compressed without loss, no channel as alpha.

    Large arrays are written in tiles, so that a reader can ask for a part.
    """
    channels = array.shape[2] if array.ndim == 3 else 1
    rgb = channels == 3
    tifffile.imwrite(
        path,
        array[..., 0] if array.shape[2:] == (1,) else array,
        photometric=PHOTOMETRIC.RGB if rgb else PHOTOMETRIC.MINISBLACK,
        planarconfig=None if channels == 1 else PLANARCONFIG.CONTIG,
        extrasamples=None if rgb or channels == 1 else [EXTRASAMPLE.UNSPECIFIED] * (channels - 1),
        compression=COMPRESSION.ADOBE_DEFLATE,
        predictor=array.ndim == 3 or array.dtype.kind == "f",  # pays for pictures, not for masks
        tile=(_TILE, _TILE) if max(array.shape[:2]) > 4 * _TILE else None,
        bigtiff=array.nbytes > CLASSIC,
        metadata=None,
    )
