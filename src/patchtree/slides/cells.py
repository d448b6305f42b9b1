"""The detail of a slide's cells, each measured on the level just finer than it, in parts that are read whole."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.detail import Detail, DetailPyramid, Edges, Residual, Variance
from patchtree.io.slides.base import Box
from patchtree.noise import estimate_noise
from patchtree.slides.halved import Halved, by_part

# Parts that are measured together: enough to hide the cost of a call.
_STACK = 16
# Noise and range are estimated from a grid of so many parts a side.
_SAMPLE_SIDE = 4

_Part = tuple[int, int, int]  # level of the cells, row, column


class Cells:
    """Measures cells of a slide in the units of its level 0, each on the level just finer than it.

    Attributes:
        halved: the slide.
        patch_size: pixels on a side of a patch, ``p``; a cell is measured on ``2p x 2p`` pixels.
        detail: measures a part of a level as it would an image.
        pool: reads and measures parts.
        noise: of levels, as far as it was asked for; one that others have filled saves asking again.
    """

    def __init__(
        self, halved: Halved, patch_size: int, detail: Detail, pool: Executor, noise: dict[int, float] | None = None
    ) -> None:
        self.halved, self.patch_size, self.detail, self.pool = halved, patch_size, detail, pool
        self._known: dict[_Part, NDArray[np.float64]] = {}
        self._tuned: dict[int, Detail] = {}
        self.noise = {} if noise is None else noise
        self._range: tuple[float, float] | None = None

    def measure(self, level: int, index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Measure cells of a level, ``(M, 2)`` -> ``(M,)``. What a cell gets does not depend on the others."""
        self.tuned(level - 1)
        side = self._side(level)
        parts = by_part(index, side)
        wanted = [((level, *part), index[cells] % side) for part, cells in parts]
        stacks = [wanted[first : first + _STACK] for first in range(0, len(wanted), _STACK)]
        out = np.empty(len(index))
        order = np.concatenate([np.zeros(0, np.int64), *(cells for _, cells in parts)])
        out[order] = np.concatenate([np.zeros(0), *self.pool.map(self._measure, stacks)])
        return out * self._scale(level - 1)

    def measure_whole(self, level: int, values: NDArray[Any], levels: int) -> DetailPyramid:
        """Measure all cells of the `levels` levels above one that was read whole, ``(h, w, C)``."""
        self.noise.setdefault(level, _deviation(values))
        details = self.tuned(level).measure(self.grey_levels(values), self.patch_size, levels)
        return [grid * self._scale(level) for grid in details]

    def tuned(self, level: int) -> Detail:
        """Give the detail with its options in the units of a level; to be called before others measure that level."""
        if level not in self._tuned:
            detail = self.detail
            if isinstance(detail, Residual):
                detail = Residual(self._noise_at(level) if detail.noise is None else detail.noise / 2**level)
            if isinstance(detail, Edges) and self._range is None:
                self._range = self._find_range()
            self._tuned[level] = detail
        return self._tuned[level]

    def grey_levels(self, values: NDArray[Any]) -> NDArray[Any]:
        """Give edges 8 bits that mean the same all over the slide."""
        if self._range is None or values.dtype == np.uint8:
            return values
        low, high = self._range
        gain = np.float32(255 / (high - low) if high > low else 0)
        return np.asarray(np.clip(np.rint((values - np.float32(low)) * gain), 0, 255), np.uint8)

    def _measure(self, stack: list[tuple[_Part, NDArray[np.int64]]]) -> NDArray[np.float64]:
        """Measure some cells of each of some parts of a level."""
        side, detail = 2 * self.patch_size, self._tuned[stack[0][0][0] - 1]
        pieces = [self._piece(part, cells) for part, cells in stack]
        blocks = [piece for piece in pieces if piece.ndim == 4]
        if blocks:
            # Cells lie side by side in one row; each is copied once.
            row = np.empty((side, sum(map(len, blocks)), *blocks[0].shape[2:]), np.uint8)
            np.concatenate(blocks, out=row.swapaxes(0, 1))
            found = detail.measure(row.reshape(side, -1, row.shape[-1]), self.patch_size, 1)[0][0]
            for at, piece in enumerate(pieces):
                if piece.ndim == 4:
                    pieces[at], found = found[: len(piece)], found[len(piece) :]
        return np.concatenate(pieces)

    def _piece(self, part: _Part, cells: NDArray[np.int64]) -> NDArray[Any]:
        """Give the details of some cells of a part, or their pixels ``(M, 2p, 2p, C)`` for others to be added."""
        if part not in self._known:
            level, side = part[0] - 1, 2 * self.patch_size
            values = self.grey_levels(self.halved.read(level, *self._box(*part)))
            whole = values.shape[0] % side == values.shape[1] % side == 0
            # Sums of squares see no further than the cell, and bytes add up to the same wherever they lie.
            if whole and values.dtype == np.uint8 and isinstance(self.detail, Residual | Variance):
                grid = values.reshape(len(values) // side, side, values.shape[1] // side, side, -1)
                return np.asarray(grid[cells[:, 0], :, cells[:, 1]])
            self._known[part] = self._tuned[level].measure(values, self.patch_size, 1)[0]
        return np.asarray(self._known[part][tuple(cells.T)])

    def _side(self, level: int) -> int:
        """Give the cells on a side of a part: about a tile of the level that they are measured on."""
        return max(1, self.halved.tile(level - 1) // (2 * self.patch_size))

    def _box(self, level: int, row: int, column: int) -> Box:
        """Give the box of a part in pixels of the level that it is measured on, the one just finer."""
        side = 2 * self.patch_size * self._side(level)
        return row * side, column * side, (row + 1) * side, (column + 1) * side

    def _scale(self, level: int) -> int:
        """Give what a level's own unit of detail counts at level 0: lines grow with the side, sums with the area."""
        return 1 << level if isinstance(self.detail, Edges) else 1 << 2 * level

    def _noise_at(self, level: int) -> float:
        """Estimate the standard deviation of a level's noise.

        Averaging white noise halves it at each level, but every level was rounded and compressed anew, so its own
        estimate counts. That is never taken to be more than the noise of level 0: at coarse levels the smallest
        things seen are no noise.
        """
        finest = self._estimate(0)
        if not level:
            return finest
        rounding = 1 / 12 if self.halved.slide.dtype.kind in "iu" else 0.0
        least = math.sqrt(finest**2 / 4**level + rounding)
        return least if least >= finest else max(least, min(finest, self._estimate(level)))

    def _estimate(self, level: int) -> float:
        if level not in self.noise:
            self.noise[level] = _deviation(self._sample(level))
        return self.noise[level]

    def _find_range(self) -> tuple[float, float]:
        """Find what becomes 0 and 255, on the coarsest level that is no smaller than a sample."""
        if self.halved.slide.dtype == np.uint8:
            return 0, 255
        level = 0
        while min(self.halved.shape(level + 1)) >= _SAMPLE_SIDE * self._box(level + 2, 0, 0)[2]:
            level += 1
        low, high = np.percentile(self._sample(level), (0.5, 99.5))
        return float(low), float(high)

    def _sample(self, level: int) -> NDArray[Any]:
        """Read parts from all over a level, side by side."""
        side = self._box(level + 1, 0, 0)[2]
        rows, columns = (
            sorted({(2 * i + 1) * max(1, length // side) // (2 * _SAMPLE_SIDE) for i in range(_SAMPLE_SIDE)})
            for length in self.halved.shape(level)
        )
        boxes = [self._box(level + 1, row, column) for row in rows for column in columns]
        return np.concatenate(list(self.pool.map(lambda box: self.halved.read(level, *box), boxes)), axis=1)


def _deviation(values: NDArray[Any]) -> float:
    """Estimate the standard deviation of the noise of an image, over its channels."""
    return math.sqrt(float(np.mean(estimate_noise(values) ** 2)))
