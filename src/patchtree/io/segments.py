"""Line segments in the plane: which of many meet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 21  # pairs looked at in one go


@dataclass(frozen=True)
class Strips:
    """Upright strips of one width, so that only what lies near each other is compared.

    Attributes:
        origin: the left end of the first one.
        width: of each.
        count: of strips.
    """

    origin: float
    width: float
    count: int

    @classmethod
    def of(cls, low: NDArray[Any], high: NDArray[Any]) -> Strips:
        """Choose strips for spans, ``(S,)``: the root of their number, but no more than they cover once or twice each.

        >>> Strips.of(np.arange(100), np.arange(100) + 1).count
        10
        """
        if not len(low) or not high.max() > low.min():
            return cls(0.0, 1.0, 1)
        origin, covered = float(low.min()), float((high - low).sum())
        extent = float(high.max()) - origin
        count = max(1, int(min(math.sqrt(len(low)), len(low) * extent / max(covered, extent))))
        return cls(origin, extent / count, count)

    def at(self, x: NDArray[Any]) -> NDArray[np.int64]:
        """Number the strips that places lie in."""
        return np.clip((x - self.origin) // self.width, 0, self.count - 1).astype(np.int64)

    def cover(self, low: NDArray[Any], high: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """List the strips that each span touches, as pairs of span and strip.

        >>> [part.tolist() for part in Strips(0.0, 10.0, 3).cover(np.array([1, 5]), np.array([2, 21]))]
        [[0, 1, 1, 1], [0, 0, 1, 2]]
        """
        first = self.at(low)
        number = self.at(high) - first + 1
        of = np.repeat(np.arange(len(low)), number)
        return of, first[of] + np.arange(len(of)) - np.repeat(np.cumsum(number) - number, number)


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
    strips = Strips.of(low[:, 0], high[:, 0])
    levels = np.unique(np.concatenate([low[:, 1], high[:, 1]]))
    of, strip = strips.cover(low[:, 0], high[:, 0])
    lane = (group[of] * strips.count + strip) * len(levels)
    begin, close = (lane + np.searchsorted(levels, ends[of, 1]) for ends in (low, high))
    order = np.argsort(begin, kind="stable")
    keys = begin[order]
    # Those that begin, from the top, after a segment begins and before it ends.
    count = np.searchsorted(keys, close[order], side="right") - np.arange(len(order)) - 1
    left = strips.at(low[:, 0])
    total = np.cumsum(count)
    found: list[tuple[NDArray[Any], ...]] = []
    first = 0
    while first < len(order):
        last = int(np.searchsorted(total, total[first] - count[first] + _CHUNK, side="right"))
        last = max(last, first + 1)
        here = count[first:last]
        one = np.repeat(np.arange(first, last), here)
        two = one + 1 + np.arange(len(one)) - np.repeat(np.cumsum(here) - here, here)
        i, j, here = of[order[one]], of[order[two]], strip[order[one]]
        # Those that share several strips are a pair in the first of them.
        near = (low[i, 0] <= high[j, 0]) & (low[j, 0] <= high[i, 0]) & (np.maximum(left[i], left[j]) == here)
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
        within = _both((point >= np.minimum(one, other)) & (point <= np.maximum(one, other)))
        end = _both(point == one) | _both(point == other)
        meeting |= (side == 0) & within & ~end
    same = (_both(a == c) & _both(b == d)) | (_both(a == d) & _both(b == c))
    return meeting | same, crossing


def _both(true: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether x and y are true, ``(M, 2)`` -> ``(M,)``: numpy reduces a short axis slowly."""
    return np.asarray(true[:, 0] & true[:, 1])


def _side(a: NDArray[Any], b: NDArray[Any], point: NDArray[Any]) -> NDArray[Any]:
    """Which side of the line from a to b a point lies on: -1, 0 or 1."""
    along, off = b - a, point - a
    return np.asarray(np.sign(along[:, 0] * off[:, 1] - along[:, 1] * off[:, 0]))
