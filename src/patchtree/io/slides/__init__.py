"""Slides: pyramids of images larger than memory, read box by box through one small reader for each kind of file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from patchtree.errors import InputError
from patchtree.io.slides.base import (
    HOW_TO_INSTALL,
    Level,
    Slide,
    SlideReadError,
    check_mpp,
    level_for,
    need_mpp,
)
from patchtree.io.slides.source import file_system, is_url, open_source

__all__ = [
    "Level", "Slide", "SlideReadError", "is_pyramid", "is_slide", "is_tiff", "level_for", "need_mpp", "open_slide",
    "pixel_size",
]  # fmt: skip

_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_PLAIN = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
_HEAD = 132  # DICOM says what it is after 128 bytes
# What OpenSlide reads and is no TIFF; only to tell what is missing where OpenSlide is.
_FOREIGN = (".mrxs", ".dcm", ".vms", ".vmu", ".czi", ".svslide")
_LARGE = 2**28  # pixels: an image of 16,384 x 16,384
_SINGLE = 2**24  # pixels of a tiled TIFF that knows their size: 4,096 x 4,096


def open_slide(path: str | os.PathLike[str], mpp: float | Sequence[float] | None = None) -> Slide:
    """Open a slide or an image, by what it is and not by its suffix.

    Tiled and large TIFFs and Aperio's go through tifffile, OME-Zarr through zarr, other scanners' formats through
    OpenSlide. Other images are read whole.

    >>> import tempfile
    >>> import numpy as np
    >>> from patchtree.io.images import write_image
    >>> path = tempfile.mkdtemp() + "/image.png"
    >>> write_image(path, np.zeros((1000, 1500, 3), np.uint8))
    >>> with open_slide(path, mpp=0.5) as slide:
    ...     level = slide.levels[1]
    ...     level.shape, level.downsample, slide.read(1, 0, 0, 256, 128).shape
    ((500, 750), (2.0, 2.0), (256, 128, 3))

    Args:
        path: a file, a folder (OME-Zarr), or a URL that fsspec knows, such as ``s3://bucket/slide.zarr``.
        mpp: micrometres along a pixel of level 0, one number or (y, x), in place of what the file says.

    Raises:
        InputError: the file is missing, empty, cut short, or nothing that can be read.
    """
    path = os.fspath(path)
    size = check_mpp(path, mpp)
    if _is_zarr(path):
        return _zarr(path, size)
    head = _head(path)
    if head.startswith(_TIFF):
        return _tiff(path, size)
    if _vendor(path, head):
        return _openslide(path, size)
    if is_url(path):
        raise InputError(f"{path}: no TIFF and no OME-Zarr; other kinds are not read through URLs: copy the file here")
    if Path(path).suffix.lower() in _FOREIGN and not find_spec("openslide"):
        raise InputError(f"{path}: looks like a slide that OpenSlide reads; {HOW_TO_INSTALL}")
    return _image(path, size)


def is_slide(path: str | os.PathLike[str]) -> bool:
    """Whether a path is better read as a slide than as an image.

    That is what `is_pyramid` says, and a tiled TIFF of over 4,096 x 4,096 pixels that says how large a pixel is.
    """
    return _is_slide(os.fspath(path), _SINGLE)


def is_pyramid(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a slide wherever it lies, also among images to train on.

    That is a pyramid, a scanner's format, or a TIFF of over 16,384 x 16,384 pixels. False where it cannot be opened:
    `open_slide` says why.
    """
    return _is_slide(os.fspath(path), _LARGE)


def is_tiff(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as TIFFs do, whatever its suffix; no folder does, nor what cannot be read."""
    try:
        return _head(os.fspath(path)).startswith(_TIFF)
    except (InputError, OSError):
        return False


def pixel_size(path: str | os.PathLike[str]) -> tuple[float, float] | None:
    """Micrometres along a pixel of an image, (y, x), where it is a TIFF that says so.

    Raises:
        InputError: the file cannot be read.
    """
    from patchtree.io.slides.through_tifffile import tiff_pixel_size

    path = os.fspath(path)
    return tiff_pixel_size(path) if _head(path).startswith(_TIFF) else None


def _is_slide(path: str, single: int) -> bool:
    """Whether a path is a slide; one of a single level, if it has more pixels than `single` and says their size."""
    from patchtree.io.slides.through_tifffile import TiffSlide, is_for_parts

    try:
        if _is_zarr(path):
            return True
        head = _head(path)
        if not head.startswith(_TIFF):
            return bool(_vendor(path, head))
        if not is_url(path) and not is_for_parts(path, _LARGE):
            return False
        with _tiff(path, None) as slide:
            if len(slide.levels) > 1 or not isinstance(slide, TiffSlide) or slide.scanned:
                return True
            return slide.shape[0] * slide.shape[1] > (_LARGE if slide.mpp is None else single)
    except (InputError, OSError):
        return False


def _head(path: str) -> bytes:
    """The first bytes of a file.

    Raises:
        InputError: there is no such file, or nothing in it.
    """
    if not is_url(path) and Path(path).is_dir():
        raise InputError(f"{path}: a folder that is no OME-Zarr; name a slide in it")
    if not is_url(path) and Path(path).exists() and not Path(path).is_file():
        # To open a pipe that nobody writes to would take for ever.
        raise InputError(f"{path}: is a pipe or a device; copy what it gives to a file and name that")
    source = open_source(path)
    try:
        head = source.fetch([(0, _HEAD)])[0]
    finally:
        source.close()
    if not head:
        raise InputError(f"{path}: is empty (0 bytes); copy or export it again")
    return head


def _is_zarr(path: str) -> bool:
    """Whether a folder or URL holds a Zarr group of version 2 or 3."""
    names = ("zarr.json", ".zattrs", ".zgroup")
    if not is_url(path):
        return any(Path(path, name).is_file() for name in names)
    system, inside = file_system(path)
    return any(system.isfile(f"{inside.rstrip('/')}/{name}") for name in names)


def _vendor(path: str, head: bytes) -> str | None:
    """Which scanner wrote a file that is no TIFF, where OpenSlide is there to tell."""
    plain = head.startswith(_PLAIN) and Path(path).suffix.lower() not in _FOREIGN
    if plain or is_url(path) or not find_spec("openslide"):
        return None
    import openslide

    return openslide.OpenSlide.detect_format(path)


def _tiff(path: str, mpp: tuple[float, float] | None) -> Slide:
    from patchtree.io.slides.through_tifffile import ForeignTiff, TiffSlide, is_for_parts

    try:
        if is_url(path) or is_for_parts(path, _LARGE):
            return TiffSlide(path, mpp)
    except ForeignTiff:
        if is_url(path) or not find_spec("openslide"):
            raise
        return _openslide(path, mpp)
    return _image(path, mpp or pixel_size(path))


def _openslide(path: str, mpp: tuple[float, float] | None) -> Slide:
    from patchtree.io.slides.through_openslide import OpenSlideSlide

    return OpenSlideSlide(path, mpp)


def _zarr(path: str, mpp: tuple[float, float] | None) -> Slide:
    if not find_spec("zarr"):
        raise InputError(f"{path}: is read by zarr, which is not installed; {HOW_TO_INSTALL}")
    from patchtree.io.slides.through_zarr import ZarrSlide

    return ZarrSlide(path, mpp)


def _image(path: str, mpp: tuple[float, float] | None) -> Slide:
    from patchtree.io.slides.through_images import ImageSlide

    return ImageSlide(path, mpp)
