"""Slides some tiles of which cannot be read."""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from patchtree.files import replacing
from patchtree.io.slides import Slide, SlideReadError
from patchtree.io.slides.base import Box, overlap
from patchtree.slides.wrapped import Wrapped


class Lenient(Wrapped):
    """A slide whose unreadable tiles are background.

    >>> import tempfile
    >>> import numpy as np
    >>> from patchtree.io.images import write_image
    >>> from patchtree.io.slides import open_slide
    >>> path = Path(tempfile.mkdtemp()) / "slide.tif"
    >>> write_image(path, np.zeros((1000, 1500, 3), np.uint8))
    >>> slide = Lenient(open_slide(path))
    >>> slide.read(0, 0, 0, 100, 200).shape, len(slide.bad)
    ((100, 200, 3), 0)

    Attributes:
        bad: level, row and column, in tiles, of those that could not be read until now.
    """

    def __init__(self, slide: Slide) -> None:
        super().__init__(slide)
        self.bad = set[tuple[int, int, int]]()
        self._lock = Lock()
        self._log: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.slide,)

    def keep_log(self, file: Path | None) -> None:
        """Note bad tiles in a file from now on, and count those that a killed process has noted there; None stops."""
        if file is not None and file.exists():
            text = file.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            with replacing(file) as temporary:
                temporary.write_text(whole, encoding="utf-8")
            for line in whole.splitlines():
                level, row, column = map(int, line.split())
                self.bad.add((level, row, column))
        self._log = file

    def warn(self) -> None:
        """Warn where tiles were bad, once, with their number and where the first one is."""
        if self.bad:
            y0, x0, y1, x1 = self._box(*min(self.bad))
            warnings.warn(
                f"{self.path}: {len(self.bad):,} tile{'s' * (len(self.bad) > 1)} cannot be read and count as "
                f"background, the first at level {min(self.bad)[0]}, rows {y0} to {y1}, columns {x0} to {x1}",
                stacklevel=2,
            )

    def _read(self, level: int, box: Box) -> NDArray[Any]:
        try:
            return self.slide.read(level, *box)
        except SlideReadError:
            pass
        (y0, x0, y1, x1), (height, width) = box, self.levels[level].tile
        out = self.blank((y1 - y0, x1 - x0))
        for row, column in product(range(y0 // height, -(-y1 // height)), range(x0 // width, -(-x1 // width))):
            part = overlap(self._box(level, row, column), box)
            assert part is not None
            try:
                out[part[0] - y0 : part[2] - y0, part[1] - x0 : part[3] - x0] = self.slide.read(level, *part)
            except SlideReadError:
                self._note((level, row, column))
        return out

    def _box(self, level: int, row: int, column: int) -> Box:
        """Give the pixels of a tile."""
        (height, width), (bottom, right) = self.levels[level].tile, self.levels[level].shape
        top, left = row * height, column * width
        return top, left, min(top + height, bottom), min(left + width, right)

    def _note(self, tile: tuple[int, int, int]) -> None:
        with self._lock:
            if tile not in self.bad:
                self.bad.add(tile)
                if self._log is not None:
                    with self._log.open("a", encoding="utf-8") as file:
                        file.write("{} {} {}\n".format(*tile))
