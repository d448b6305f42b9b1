"""How much of a slide is read."""

from __future__ import annotations

from threading import Lock
from typing import Any

from numpy.typing import NDArray

from patchtree.io.slides import Slide
from patchtree.io.slides.base import Box
from patchtree.slides.wrapped import Wrapped


class Metered(Wrapped):
    """A slide that counts the pixels that are read of it.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from patchtree.io.images import write_image
    >>> from patchtree.io.slides import open_slide
    >>> path = Path(tempfile.mkdtemp()) / "slide.tif"
    >>> write_image(path, np.zeros((1000, 1500, 3), np.uint8))
    >>> slide = Metered(open_slide(path))
    >>> slide.read(1, 0, 0, 100, 200).shape, slide.pixels
    ((100, 200, 3), 20000)

    Attributes:
        pixels: of all levels, read until now.
    """

    def __init__(self, slide: Slide) -> None:
        super().__init__(slide)
        self.pixels, self._lock = 0, Lock()

    def _read(self, level: int, box: Box) -> NDArray[Any]:
        y0, x0, y1, x1 = box
        with self._lock:
            self.pixels += (y1 - y0) * (x1 - x0)
        return self.slide.read(level, *box)
