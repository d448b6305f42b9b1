"""A slide in memory, which counts what is read of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.io.slides.base import Box, Level, Slide
from patchtree.pyramid import pyramid


class FakeSlide(Slide):
    """A slide made of arrays, finest first."""

    def __init__(
        self,
        levels: Sequence[NDArray[Any]],
        downsamples: Sequence[tuple[float, float]],
        tile: tuple[int, int] = (64, 64),
        mpp: tuple[float, float] | None = None,
    ) -> None:
        self.arrays = levels
        self.path, self.kind, self.mpp = "fake.tif", "fake", mpp
        self.levels = tuple(
            Level(array.shape[:2], downsample, tile) for array, downsample in zip(levels, downsamples, strict=True)
        )
        self.channels, self.dtype = levels[0].shape[2], levels[0].dtype
        self.background = np.full(self.channels, 255, self.dtype)
        self.boxes: list[tuple[int, Box]] = []

    @property
    def pixels(self) -> int:
        return sum((y1 - y0) * (x1 - x0) for _, (y0, x0, y1, x1) in self.boxes)

    def close(self) -> None:
        pass

    def _read(self, level: int, box: Box) -> NDArray[Any]:
        self.boxes.append((level, box))
        y0, x0, y1, x1 = box
        return self.arrays[level][y0:y1, x0:x1].copy()


def make_slide(image: NDArray[Any], kept: Sequence[int], tile: tuple[int, int] = (64, 64), **options: Any) -> FakeSlide:
    """A slide whose levels are the image halved so many times."""
    levels = {
        level: picture.cast(picture.values, image.dtype) for level, picture in enumerate(pyramid(image, max(kept)))
    }
    return FakeSlide([levels[level] for level in kept], [(2.0**level, 2.0**level) for level in kept], tile, **options)
