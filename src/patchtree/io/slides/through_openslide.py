"""Scanners' own formats through OpenSlide: Hamamatsu, MIRAX, Leica, Ventana, Philips, DICOM and others."""

from __future__ import annotations

from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.slides.base import Box, Level, Slide, SlideReadError, micrometres, over_background, true_downsample
from patchtree.io.slides.source import PerProcess

_TILE = 256  # where the format does not say


class OpenSlideSlide(Slide):
    """A slide that OpenSlide reads: 8-bit RGB, what is transparent or was never scanned as its background colour.

    OpenSlide takes positions in pixels of level 0. On a level whose ratio is no whole number it interpolates, so a box
    may be off by half a pixel of level 0.
    """

    def __init__(self, path: str, mpp: tuple[float, float] | None = None) -> None:
        self.path = path
        self._handle = PerProcess(lambda: _open(path))
        slide = self._handle.get()
        told = slide.properties
        self.kind = f"{told[openslide.PROPERTY_NAME_VENDOR]}, OpenSlide"
        shapes = [(height, width) for width, height in slide.level_dimensions]
        self._factors = slide.level_downsamples
        self.levels = tuple(
            Level(shape, true_downsample(shapes[0], shape), _tile(told, level)) for level, shape in enumerate(shapes)
        )
        self.channels, self.dtype = 3, np.dtype(np.uint8)
        colour = told.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self.background = np.frombuffer(bytes.fromhex(colour), np.uint8)
        self.mpp = mpp or _pixel_size(told)

    def close(self) -> None:
        """Let go of the file; reading afterwards is an error. Closing twice is none."""
        if slide := self._handle.drop():
            slide.close()
        self._handle = PerProcess(self._refuse)

    def _refuse(self) -> openslide.OpenSlide:
        raise ValueError(f"{self.path} is closed")

    def _read(self, level: int, box: Box) -> NDArray[Any]:
        y0, x0, y1, x1 = box
        factor = self._factors[level]
        corner, size = (round(x0 * factor), round(y0 * factor)), (x1 - x0, y1 - y0)
        try:
            pixels = self._handle.get().read_region(corner, level, size)
        except openslide.OpenSlideError:
            # After one error a handle gives it for ever, also where the file is sound; another may not even have it.
            # It is not closed: threads may be reading through it.
            self._handle.drop()
            try:
                pixels = self._handle.get().read_region(corner, level, size)
            except (openslide.OpenSlideError, InputError) as error:
                raise SlideReadError(self.path, level, box, error) from error
        rgba = np.asarray(pixels)
        return over_background(rgba[..., :3], rgba[..., 3], self.background)


def _open(path: str) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise InputError(
            f"{path}: OpenSlide cannot open it ({' '.join(str(error).split())}); copy or export the file again, "
            "with the files that belong to it"
        ) from error


def _tile(told: Any, level: int) -> tuple[int, int]:
    high, wide = (int(told.get(f"openslide.level[{level}].tile-{side}", _TILE)) for side in ("height", "width"))
    return high, wide


def _pixel_size(told: Any) -> tuple[float, float] | None:
    names = openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X
    try:
        y, x = (micrometres(float(told[name]), "um") for name in names)
    except (KeyError, ValueError):
        return None
    return (y, x) if y and x else None
