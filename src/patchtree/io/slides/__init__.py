"""Slides: pyramids of images larger than memory, read box by box through one small reader for each kind of file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from patchtree.errors import InputError
from patchtree.io.slides.base import Level, Slide, SlideReadError, level_for, need_mpp

__all__ = ["Level", "Slide", "SlideReadError", "is_slide", "level_for", "need_mpp", "open_slide"]


def open_slide(path: str | os.PathLike[str], mpp: float | Sequence[float] | None = None) -> Slide:
    """Open a slide or an image, by what it is.

    Args:
        path: a file, a folder (OME-Zarr), or a URL that fsspec knows, such as ``s3://bucket/slide.zarr``.
        mpp: micrometres along a pixel of level 0, one number or (y, x), in place of what the file says.

    Raises:
        InputError: the file is missing, empty, cut short, or nothing that can be read.
    """
    raise InputError(f"{path}: no reader yet")


def is_slide(path: str | os.PathLike[str]) -> bool:
    """Whether a path is better read as a slide than as an image: a pyramid, or larger than memory should hold."""
    return False
