"""The detail of a slide's cells, each measured on the level just finer than it, in parts that are read whole."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.detail import Detail, DetailPyramid, Edges, Residual, Variance, estimate_noise
from patchtree.slides.halved import Box, Halved

# Parts that are measured side by side: enough to hide the cost of a call.
_STACK = 8
# Noise and range are estimated from a grid of so many parts a side.
_SAMPLE_SIDE = 4


class Cells:
    """Measures cells of a slide in the units of its level 0, each on the level just finer than it.

    Attributes:
        halved: the slide.
        patch_size: pixels on a side of a patch, ``p``; a cell is measured on ``2p x 2p`` pixels.
        detail: measures a part of a level as it would an image.
        pool: reads and measures parts.
    """

    def __init__(self, halved: Halved, patch_size: int, detail: Detail, pool: Executor) -> None:
        self.halved, self.patch_size, self.detail, self.pool = halved, patch_size, detail, pool
        # Sums of squares see no further than the cell; Canny, and who knows what of a user's own, do.
        self._halo = 0 if isinstance(detail, Residual | Variance) else 1
        self._known: dict[tuple[int, int, int], NDArray[np.float64]] = {}
        self._tuned: dict[int, Detail] = {}
        self._noise: dict[int, float] = {}
        self._range: tuple[float, float] | None = None

    def measure(self, level: int, index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Measure cells of a level, ``(M, 2)`` -> ``(M,)``. What a cell gets does not depend on the others."""
        side = self._side(level)
        if not len(index):
            return np.zeros(0)
        parts, which = np.unique(index // side, axis=0, return_inverse=True)
        keys = [(level, row, column) for row, column in parts.tolist()]
        missing = [key for key in keys if key not in self._known]
        if missing:
            self.tuned(level - 1)
            stacks = [missing[first : first + _STACK] for first in range(0, len(missing), _STACK)]
            for stack, grids in zip(stacks, self.pool.map(self._measure, stacks), strict=True):
                self._known.update(zip(stack, grids, strict=True))
        details = np.stack([self._known[key] for key in keys])
        return np.asarray(details[(which.reshape(-1), *(index % side).T)] * self._scale(level - 1))

    def measure_whole(self, level: int, values: NDArray[Any], levels: int) -> DetailPyramid:
        """Measure all cells of the `levels` levels above one that was read whole, ``(h, w, C)``."""
        self._noise.setdefault(level, _deviation(values))
        details = self.tuned(level).measure(self.grey_levels(values), self.patch_size, levels)
        return [grid * self._scale(level) for grid in details]

    def tuned(self, level: int) -> Detail:
        """Give the detail with its options in the units of a level."""
        if level not in self._tuned:
            detail = self.detail
            if isinstance(detail, Residual):
                detail = Residual(self._noise_at(level) if detail.noise is None else detail.noise / 2**level)
            self._tuned[level] = detail
        return self._tuned[level]

    def grey_levels(self, values: NDArray[Any]) -> NDArray[Any]:
        """Give edges 8 bits that mean the same all over the slide."""
        if not isinstance(self.detail, Edges) or values.dtype == np.uint8:
            return values
        if self.halved.slide.dtype == np.uint8:
            return np.asarray(np.rint(values), np.uint8)
        if self._range is None:
            # The coarsest level of a sample that is not tiny.
            level = 0
            while min(self.halved.shape(level + 1)) >= _SAMPLE_SIDE * self._box(level + 1, 0, 0)[2]:
                level += 1
            low, high = np.percentile(self._sample(level), (0.5, 99.5))
            self._range = float(low), 255 / float(high - low) if high > low else 0.0
        low, gain = self._range
        return np.asarray(np.clip((values - np.float32(low)) * np.float32(gain), 0, 255), np.uint8)

    def _measure(self, stack: list[tuple[int, int, int]]) -> list[NDArray[np.float64]]:
        """Measure parts of a level: a grid of cells each, 0 where there is none."""
        level = stack[0][0] - 1
        detail, halo, side = self._tuned[level], self._halo, self._side(level + 1)
        parts = []
        for _, row, column in stack:
            y0, x0, y1, x1 = self._box(level, row, column)
            margin = 2 * self.patch_size * halo
            values = self.halved.read(level, y0 - margin, x0 - margin, y1 + margin, x1 + margin)
            parts.append(self.grey_levels(values))
        # Bytes add up to the same wherever they lie.
        if not halo and parts[0].dtype == np.uint8 and len({part.shape for part in parts}) == 1:
            whole = detail.measure(np.concatenate(parts, axis=1), self.patch_size, 1)[0]
            found = np.split(whole, len(parts), axis=1)
        else:
            found = [detail.measure(part, self.patch_size, 1)[0] for part in parts]
        grids = np.zeros((len(stack), side, side))
        for grid, (_, row, column), own in zip(grids, stack, found, strict=True):
            own = own[halo * (row > 0) :, halo * (column > 0) :][:side, :side]
            grid[: len(own), : own.shape[1]] = own
        return list(grids)

    def _side(self, level: int) -> int:
        """Give the cells on a side of a part: about a tile of the level that they are measured on."""
        return max(1, self.halved.tile(level - 1) // (2 * self.patch_size))

    def _box(self, level: int, row: int, column: int) -> Box:
        """Give the box of a part in pixels of the level that it is measured on."""
        side = 2 * self.patch_size * self._side(level + 1)
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
        return max(least, min(finest, self._estimate(level)))

    def _estimate(self, level: int) -> float:
        if level not in self._noise:
            self._noise[level] = _deviation(self._sample(level))
        return self._noise[level]

    def _sample(self, level: int) -> NDArray[Any]:
        """Read parts from all over a level, side by side."""
        height, width = self._box(level, 0, 0)[2:]
        rows, columns = (
            sorted({(2 * i + 1) * max(1, length // side) // (2 * _SAMPLE_SIDE) for i in range(_SAMPLE_SIDE)})
            for length, side in zip(self.halved.shape(level), (height, width), strict=True)
        )
        boxes = [self._box(level, row, column) for row in rows for column in columns]
        return np.concatenate(list(self.pool.map(lambda box: self.halved.read(level, *box), boxes)), axis=1)


def _deviation(values: NDArray[Any]) -> float:
    """Estimate the standard deviation of the noise of an image, over its channels."""
    return math.sqrt(float(np.mean(estimate_noise(values) ** 2)))
