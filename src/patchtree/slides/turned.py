"""A slide seen mirrored and in quarter turns, so that what reads slides need not know."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from patchtree.io.slides import Level, Slide
from patchtree.io.slides.base import Box
from patchtree.slides.wrapped import Wrapped
from patchtree.turns import turn


class Turned(Wrapped):
    """A slide mirrored left to right where that is asked for, then turned anticlockwise by quarters.

    Coarse levels that were cut to whole pixels may lie up to one of their pixels aside.

    >>> import tempfile
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from patchtree.io.images import write_image
    >>> from patchtree.io.slides import open_slide
    >>> path = Path(tempfile.mkdtemp()) / "slide.tif"
    >>> write_image(path, np.arange(6, dtype=np.uint8).reshape(2, 3))
    >>> Turned(open_slide(path), turns=1).read(0, 0, 0, 3, 2)[..., 0].tolist()
    [[2, 5], [1, 4], [0, 3]]

    Attributes:
        flip: mirror it left to right, before it is turned.
        turns: quarter turns, 0 to 3.
    """

    def __init__(self, slide: Slide, flip: bool = False, turns: int = 0) -> None:
        super().__init__(slide)
        self.flip, self.turns = flip, turns
        if turns % 2:
            self.mpp = None if slide.mpp is None else (slide.mpp[1], slide.mpp[0])
            self.levels = tuple(
                Level(level.shape[::-1], level.downsample[::-1], level.tile[::-1]) for level in slide.levels
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.slide, self.flip, self.turns)

    def _read(self, level: int, box: Box) -> NDArray[Any]:
        pixels = self.slide.read(level, *turn_back(box, self.levels[level].shape, self.flip, self.turns))
        return turn(pixels, self.flip, self.turns)


def turn_back(box: Box, shape: tuple[int, int], flip: bool, turns: int) -> Box:
    """Say where a box of a turned image lies in the image that was turned.

    >>> turn_back((0, 0, 1, 2), shape=(3, 2), flip=False, turns=1)
    (0, 2, 2, 3)

    Args:
        box: y0, x0, y1, x1 in the turned image.
        shape: (H, W) of the turned image.
        flip: as in `turn`.
        turns: as in `turn`.
    """
    y0, x0, y1, x1 = box
    height, width = shape
    for _ in range(turns):
        y0, x0, y1, x1 = x0, height - y1, x1, height - y0
        height, width = width, height
    return (y0, width - x1, y1, width - x0) if flip else (y0, x0, y1, x1)
