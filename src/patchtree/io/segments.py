"""Line segments in the plane: which of many meet."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 21  # pairs looked at in one go


def meetings(
    start: NDArray[Any], end: NDArray[Any], group: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Find the pairs of segments of a group that have more in common than an end of both.

    Whole numbers below 2^30 are decided exactly.

    >>> start, end = np.array([[0, 0], [0, 2], [4, 0], [0, 0]]), np.array([[2, 2], [2, 0], [9, 0], [0, 2]])
    >>> i, j, crossing = meetings(start, end, np.zeros(4, np.int64))
    >>> list(zip(i.tolist(), j.tolist(), crossing.tolist()))
    [(0, 1, True)]

    Args:
        start: ``(S, 2)``, x and y.
        end: ``(S, 2)``.
        group: ``(S,)``, 0 and up; segments of different groups are no pair.

    Returns:
        Two arrays ``(M,)`` of indices, ``i < j``, and whether the two cross (else an end lies inside the other, or they
        run along each other).
    """
    low, high = np.minimum(start, end), np.maximum(start, end)
    base = low[:, 1].min(initial=0)
    lane = group * (high[:, 1].max(initial=0) - base + 1) - base
    order = np.argsort(lane + low[:, 1], kind="stable")
    keys = (lane + low[:, 1])[order]
    # Those that begin, from the top, after a segment begins and before it ends.
    count = np.searchsorted(keys, (lane + high[:, 1])[order], side="right") - np.arange(len(order)) - 1
    total = np.cumsum(count)
    found: list[tuple[NDArray[Any], ...]] = []
    first = 0
    while first < len(order):
        last = int(np.searchsorted(total, total[first] - count[first] + _CHUNK, side="right"))
        last = max(last, first + 1)
        here = count[first:last]
        one = np.repeat(np.arange(first, last), here)
        two = one + 1 + np.arange(len(one)) - np.repeat(np.cumsum(here) - here, here)
        i, j = order[one], order[two]
        near = (low[i, 0] <= high[j, 0]) & (low[j, 0] <= high[i, 0])
        i, j = i[near], j[near]
        meet, cross = _meet(start[i], end[i], start[j], end[j])
        found.append((i[meet], j[meet], cross[meet]))
        first = last
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_)
    i, j, crossing = (np.concatenate(part) for part in zip(*found, strict=True))
    return np.minimum(i, j), np.maximum(i, j), crossing


def _meet(
    a: NDArray[Any], b: NDArray[Any], c: NDArray[Any], d: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether a-b and c-d have more in common than an end of both, and whether they cross."""
    sides = [_side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b)]
    crossing = (sides[0] * sides[1] < 0) & (sides[2] * sides[3] < 0)
    meeting = crossing.copy()
    for side, point, (one, other) in zip(sides, (c, d, a, b), ((a, b), (a, b), (c, d), (c, d)), strict=True):
        within = ((point >= np.minimum(one, other)) & (point <= np.maximum(one, other))).all(1)
        end = (point == one).all(1) | (point == other).all(1)
        meeting |= (side == 0) & within & ~end
    same = ((a == c).all(1) & (b == d).all(1)) | ((a == d).all(1) & (b == c).all(1))
    return meeting | same, crossing


def _side(a: NDArray[Any], b: NDArray[Any], point: NDArray[Any]) -> NDArray[Any]:
    """Which side of the line from a to b a point lies on: -1, 0 or 1."""
    along, off = b - a, point - a
    return np.asarray(np.sign(along[:, 0] * off[:, 1] - along[:, 1] * off[:, 0]))
