"""Sums over square (cubic) blocks of an image; those at the far border may be partial."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Sums that rows are added to: as for `pyramid`, few calls and in a cache.
_SUMS_BYTES = 1 << 21
# What OpenCV squares as it is.
_SQUARED_TYPES = (np.uint8, np.uint16, np.float32, np.float64)


def count_mask(mask: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """Count the 255s of a mask of 0 and 255 in blocks, ``(H, W)`` -> ``(ceil(H / side), ceil(W / side))``.

    >>> count_mask(np.eye(5, dtype=np.uint8) * 255, side=4).tolist()
    [[4.0, 0.0], [0.0, 1.0]]
    """
    import cv2

    height, width = mask.shape
    below, right = -height % side, -width % side
    if below or right:
        mask = cv2.copyMakeBorder(mask, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0)  # type: ignore[assignment]
    grid = (mask.shape[1] // side, mask.shape[0] // side)
    scale = 1
    # Two quick 8-bit halvings: 16 counts lie 15.9 grey levels apart, rounding moves them by less than one.
    while scale < 4 and side % (2 * scale) == 0:
        size = (mask.shape[1] // 2, mask.shape[0] // 2)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        scale *= 2
    counts = np.rint(np.multiply(mask, scale**2 / 255, dtype=np.float32))
    if side > scale:
        counts = cv2.resize(counts, grid, interpolation=cv2.INTER_AREA) * (side // scale) ** 2
    return np.rint(counts.astype(np.float64))


def sum_values(values: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Sum blocks of ``side`` along every axis.

    >>> sum_values(np.eye(5, dtype=np.uint8), side=4).tolist()
    [[4.0, 0.0], [0.0, 1.0]]
    """
    strips = []
    for top in range(0, len(values), side):
        strips.append(values[top : top + side].sum(axis=0, dtype=np.float64))
    sums = np.stack(strips)
    for axis in range(1, values.ndim):
        sums = np.add.reduceat(sums, np.arange(0, values.shape[axis], side), axis=axis)
    return sums


def sum_squares(values: NDArray[Any], side: int, shape: tuple[int, ...], level: int) -> NDArray[np.float64]:
    """Sum squares in blocks of ``side`` pixels of a pyramid level, each counted as the image's pixels under it.

    >>> sum_squares(np.full((2, 2, 1), 3.0), side=2, shape=(4, 3), level=1).tolist()
    [[108.0]]

    Args:
        values: ``(h, w, C)`` or ``(d, h, w, C)``.
        side: pixels of this level on a side of a block.
        shape: the image's shape.
        level: how many times the image was halved.
    """
    import cv2

    # Sums of 8-bit squares are whole numbers that float32 holds up to 258 rows, those of their first sums up to 16.
    exact = side <= {0: 256, 1: 16}.get(level, 0) and values.dtype == (np.uint16 if level else np.uint8)
    work: type[np.floating[Any]] = np.float32 if exact else np.float64
    step, channels = 1 << level, values.shape[-1]
    # Only the last along an axis may stand for fewer pixels of the image than others do.
    shares = [(length - (-(-length // step) - 1) * step) / step for length in shape]
    rows = values.reshape(len(values), -1)
    alike = rows if shares[0] == 1 else rows[:-1]
    count = -(-len(rows) // side)
    group = min(count, max(1, _SUMS_BYTES // (rows.shape[1] * np.dtype(work).itemsize)))
    buffer = np.empty((group, rows.shape[1]), work)
    groups = []
    for first in range(0, count, group):
        sums = buffer[: count - first]
        sums[:] = 0
        lines = alike[first * side : (first + group) * side]
        if lines.dtype not in _SQUARED_TYPES:
            lines = lines.astype(work)
        for row in range(min(side, len(lines))):
            every = lines[row::side]
            cv2.accumulateSquare(every, sums[: len(every)])
        if len(alike) < len(rows) and first + group >= count:
            sums[-1] += shares[0] * np.square(rows[-1], dtype=work)
        grid = sums.reshape(-1, *values.shape[1:])
        for axis in range(1, len(shape)):
            if shares[axis] < 1:
                grid.swapaxes(0, axis)[-1] *= shares[axis]
        # The last axis and the channels are summed as one.
        energy = _sum_lines(grid.reshape(-1, grid.shape[-2] * channels), side * channels)
        energy = energy.reshape(*grid.shape[:-2], -1)
        for axis in range(1, len(shape) - 1):
            energy = np.add.reduceat(energy, np.arange(0, energy.shape[axis], side), axis=axis)
        groups.append(energy)
    return np.concatenate(groups) * float(step ** len(shape))


def _sum_lines(lines: NDArray[np.floating[Any]], width: int) -> NDArray[np.float64]:
    """Sum every ``width`` numbers of each line, and the fewer ones at its end."""
    import cv2

    whole = lines.shape[1] // width
    sums = np.empty((len(lines), -(-lines.shape[1] // width)))
    if whole:
        pieces = lines[:, : whole * width].reshape(-1, width)
        sums[:, :whole] = cv2.reduce(pieces, 1, cv2.REDUCE_SUM, dtype=cv2.CV_64F).reshape(-1, whole)
    if whole < sums.shape[1]:
        sums[:, whole] = lines[:, whole * width :].sum(axis=1, dtype=np.float64)
    return sums


def _inside(length: int, step: int) -> NDArray[np.float64]:
    """Count the image's pixels along an axis under each step of it."""
    return np.minimum(step, length - np.arange(0, length, step)).astype(np.float64)


def count_pixels(shape: tuple[int, ...], side: int) -> NDArray[np.float64]:
    """Count the image's pixels in each cell of this side.

    >>> count_pixels((3, 5), side=4).tolist()
    [[12.0, 3.0]]
    """
    pixels = np.ones((1,) * len(shape))
    for axis, length in enumerate(shape):
        pixels = pixels * _inside(length, side).reshape((-1,) + (1,) * (len(shape) - 1 - axis))
    return pixels


def fold(grid: NDArray[np.float64], side: int = 2, ndim: int | None = None) -> NDArray[np.float64]:
    """Sum blocks of `side` along the first `ndim` axes, or all.

    >>> fold(np.ones((3, 5))).tolist()
    [[4.0, 4.0, 2.0], [2.0, 2.0, 1.0]]
    """
    for axis, length in enumerate(grid.shape[:ndim]):
        if length > 1:
            grid = np.add.reduceat(grid, np.arange(0, length, side), axis=axis)
    return grid


def sum_up(finest: NDArray[np.float64], levels: int) -> list[NDArray[np.float64]]:
    """Fold a grid of numbers again and again, to so many levels.

    >>> [grid.tolist() for grid in sum_up(np.ones((2, 2)), levels=2)]
    [[[1.0, 1.0], [1.0, 1.0]], [[4.0]]]
    """
    details = [finest]
    while len(details) < levels:
        details.append(fold(details[-1]))
    return details
