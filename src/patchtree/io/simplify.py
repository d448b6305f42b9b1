"""Leave out vertices of many rings at once, such that none crosses another and no hole changes sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchtree.io.segments import Strips, meetings

_AREA = 0.01  # the share of a ring's area that may be lost or gained
_HALVINGS = 5  # times that a ring is tried, the tolerance halved where its area changes by more, at last 0
_BATCH = 1 << 21  # points compared in one go


@dataclass(frozen=True, eq=False)
class Rings:
    """Closed rings of whole-numbered points, none of which meets itself or another but at vertices.

    Attributes:
        points: ``(V, 2)`` int64, x and y, ring after ring.
        starts: ``(R,)`` where each ring begins.
        owner: ``(R,)`` rings of one polygon have the same number.
        pinned: ``(V,)`` vertices that other rings share.
    """

    points: NDArray[np.int64]
    starts: NDArray[np.int64]
    owner: NDArray[np.int64]
    pinned: NDArray[np.bool_]

    @classmethod
    def of(
        cls, points: NDArray[np.int64], sizes: NDArray[np.int64], owner: NDArray[np.int64], pinned: NDArray[np.bool_]
    ) -> Rings:
        """Make rings of points and the number of points in each."""
        return cls(points, np.cumsum(sizes) - sizes, owner, pinned)

    @property
    def ring_of(self) -> NDArray[np.int64]:
        """``(V,)`` the ring of each vertex."""
        return np.repeat(np.arange(len(self.starts)), np.diff(np.append(self.starts, len(self.points))))

    def following(self) -> NDArray[np.int64]:
        """``(V,)`` the vertex after each, round the ring."""
        after = np.arange(1, len(self.points) + 1)
        after[np.append(self.starts[1:], len(self.points))[: len(self.starts)] - 1] = self.starts
        return after

    def ring(self, i: int) -> NDArray[np.float64]:
        """``(v, 2)`` vertices of a ring."""
        end = self.starts[i + 1] if i + 1 < len(self.starts) else len(self.points)
        return self.points[self.starts[i] : end].astype(np.float64)

    def areas(self) -> NDArray[np.float64]:
        """``(R,)`` signed areas, positive where x turns towards y."""
        if not len(self.starts):
            return np.zeros(0)
        x, y = (self.points - self.points[self.starts][self.ring_of]).T.astype(np.float64)
        after = self.following()
        return np.add.reduceat(x * y[after] - y * x[after], self.starts) / 2

    def keep(self, kept: NDArray[np.bool_]) -> Rings:
        """Leave out all vertices but some, at least one a ring."""
        sizes = np.add.reduceat(kept, self.starts, dtype=np.int64) if len(self.starts) else np.zeros(0, np.int64)
        return Rings.of(self.points[kept], sizes, self.owner, self.pinned[kept])


def simplify(rings: Rings, tolerance: float) -> Rings:
    """Leave out vertices, moving no point of a ring by more than a tolerance in pixels.

    A ring's area changes by at most 1%. All rings stay apart, and each on the side of the others where it was: a chord
    that meets another, or that has come to lie on the other side of a vertex, is bent again at the vertex left out that
    lies furthest from it.

    Source: D. H. Douglas and T. K. Peucker, Algorithms for the reduction of the number of points required to represent
    a digitized line or its caricature, Cartographica 10(2), 1973.
    """
    if not len(rings.starts):
        return rings
    ring_of, areas = rings.ring_of, rings.areas()
    limit = np.full(len(rings.starts), float(tolerance))
    fixed = _fixed(rings)
    for halving in range(_HALVINGS):
        kept = _reduce(rings, fixed, limit)
        changed = _changed(rings, kept, areas)
        if not changed.any():
            break
        limit[changed] = 0 if halving == _HALVINGS - 2 else limit[changed] / 2
    kept = _untangle(rings, kept)
    while (changed := _changed(rings, kept, areas)).any():
        kept = _untangle(rings, kept | changed[ring_of])
    return rings.keep(kept)


def _changed(rings: Rings, kept: NDArray[np.bool_], areas: NDArray[np.float64]) -> NDArray[np.bool_]:
    """``(R,)`` whose area is another when only some vertices are kept."""
    return np.asarray(np.abs(rings.keep(kept).areas() - areas) > _AREA * np.abs(areas))


def _fixed(rings: Rings) -> NDArray[np.bool_]:
    """``(V,)`` what stays: a ring's first vertex and that furthest from it, and what lies next to a shared vertex.

    With the edges next to it as they were, rings cannot cross at a vertex that they share.
    """
    fixed = rings.pinned.copy()
    after = rings.following()
    fixed[after[rings.pinned]] = True
    fixed |= rings.pinned[after]
    fixed[rings.starts] = True
    distance = ((rings.points - rings.points[rings.starts][rings.ring_of]) ** 2).sum(axis=1)
    fixed[_largest(distance, rings.starts)] = True
    return fixed


def _reduce(rings: Rings, fixed: NDArray[np.bool_], limit: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Keep what lies further from its chord than a ring's limit ``(R,)``, beginning with the fixed vertices."""
    kept, ring_of = fixed.copy(), rings.ring_of
    left = np.flatnonzero(~kept)
    while len(left):
        first, last = _chords(rings, kept, left)
        distance = _distance(rings.points[left], rings.points[first], rings.points[last])
        groups = np.flatnonzero(np.diff(first, prepend=-1))
        furthest = _largest(distance, groups)
        bent = distance[furthest] > limit[ring_of[left[furthest]]]
        kept[left[furthest[bent]]] = True
        sizes = np.diff(np.append(groups, len(left)))
        left = left[np.repeat(bent, sizes) & ~kept[left]]
    return kept


def _untangle(rings: Rings, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep more vertices, until rings lie to each other as they did with all of them."""
    kept = kept.copy()
    while True:
        vertices = np.flatnonzero(kept)
        ring = rings.keep(kept)
        end = ring.following()
        one, other, _ = meetings(ring.points, ring.points[end], np.zeros(len(vertices), np.int64))
        wrong = np.zeros(len(vertices), np.bool_)
        wrong[one] = wrong[other] = True
        wrong[_parted(rings, vertices, end)] = True
        left = np.flatnonzero(~kept)
        chord = np.searchsorted(vertices, left) - 1
        left, chord = left[wrong[chord]], chord[wrong[chord]]
        if not len(left):
            return kept
        distance = _distance(rings.points[left], ring.points[chord], ring.points[end[chord]])
        kept[left[_largest(distance, np.flatnonzero(np.diff(chord, prepend=-1)))]] = True


def _parted(rings: Rings, vertices: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """The chords that have a vertex between themselves and the vertices they stand for.

    Args:
        rings: with all vertices.
        vertices: those kept, where chords begin.
        end: ``(C,)`` where they end, as places in `vertices`.
    """
    points = rings.points
    left = np.setdiff1d(np.arange(len(points)), vertices, assume_unique=True)
    chord = np.searchsorted(vertices, left) - 1
    groups = np.flatnonzero(np.diff(chord, prepend=-1))
    if not len(groups):
        return np.zeros(0, np.int64)
    chord, sizes = chord[groups], np.diff(np.append(groups, len(left)))
    begin, close = points[vertices[chord]], points[vertices[end[chord]]]
    low = np.minimum(np.minimum.reduceat(points[left], groups), np.minimum(begin, close))
    high = np.maximum(np.maximum.reduceat(points[left], groups), np.maximum(begin, close))
    # Kept vertices in the box around a chord and what it stands for, but not its own ends nor what lies on them.
    strips = Strips.of(low[:, 0], high[:, 0])
    rows = int(points[:, 1].max()) + 1
    keys = strips.at(points[vertices, 0]) * rows + points[vertices, 1]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    of, strip = strips.cover(low[:, 0], high[:, 0])
    lower = np.searchsorted(keys, strip * rows + low[of, 1])
    count = np.searchsorted(keys, strip * rows + high[of, 1], side="right") - lower
    found: list[NDArray[np.int64]] = []
    for batch in _batches(count):
        which = np.repeat(of[batch], count[batch])
        place = points[vertices[order[_ranges(lower[batch], count[batch])]]]
        near = (place[:, 0] >= low[which, 0]) & (place[:, 0] <= high[which, 0])
        near &= (place != begin[which]).any(axis=1) & (place != close[which]).any(axis=1)
        which, place = which[near], place[near]
        for part in _batches(sizes[which] + 1):
            # The region's edges: from each vertex left out to the one before it, and so round to the chord.
            here, edges = which[part], sizes[which[part]] + 1
            pair = np.repeat(np.arange(len(part)), edges)
            step = np.arange(len(pair)) - np.repeat(np.cumsum(edges) - edges, edges)
            at = vertices[chord[here]][pair] + step
            tail = points[at]
            final = step == edges[pair] - 1
            head = np.where(final[:, None], close[here[pair]], points[np.minimum(at + 1, len(points) - 1)])
            inside = _odd(
                np.concatenate([tail, close[here]]),
                np.concatenate([head, begin[here]]),
                np.concatenate([pair, np.arange(len(part))]),
                place[part],
            )
            found.append(here[inside])
    return np.asarray(chord[np.unique(np.concatenate([np.zeros(0, np.int64), *found]))])


def _odd(
    tail: NDArray[np.int64], head: NDArray[np.int64], pair: NDArray[np.int64], place: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether edges, each of a pair, lie an odd number of times to the right of that pair's place."""
    point = place[pair]
    spans = (tail[:, 1] > point[:, 1]) != (head[:, 1] > point[:, 1])
    along, off = head - tail, point - tail
    side = along[:, 0] * off[:, 1] - along[:, 1] * off[:, 0]
    hit = spans & ((side > 0) == (along[:, 1] < 0)) & (side != 0)
    return np.asarray(np.bincount(pair[hit], minlength=len(place)) % 2 == 1)


def _chords(
    rings: Rings, kept: NDArray[np.bool_], left: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The kept vertices before and after some that are not."""
    vertices = np.flatnonzero(kept)
    place = np.searchsorted(vertices, left)
    ring_of = rings.ring_of
    last = vertices[np.minimum(place, len(vertices) - 1)]
    round_ = (place == len(vertices)) | (ring_of[last] != ring_of[left])
    return vertices[place - 1], np.where(round_, rings.starts[ring_of[left]], last)


def _distance(point: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance of points from line segments, in pixels."""
    along, off = (last - first).astype(np.float64), (point - first).astype(np.float64)
    length = (along**2).sum(axis=1)
    share = np.clip((along * off).sum(axis=1) / np.maximum(length, 1), 0, 1)
    return np.asarray(np.hypot(*(off - share[:, None] * along).T))


def _largest(values: NDArray[np.generic], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of the first largest value of each group of neighbours, which begin at `groups`."""
    sizes = np.diff(np.append(groups, len(values)))
    largest = np.flatnonzero(values == np.repeat(np.maximum.reduceat(values, groups), sizes))
    return np.asarray(largest[np.searchsorted(largest, groups)])


def _ranges(first: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count up from each first number, one range after the other."""
    return np.asarray(np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count))


def _batches(work: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut a list into stretches of about equal work, as places in it."""
    batch = np.cumsum(work) // _BATCH
    yield from np.split(np.arange(len(work)), np.flatnonzero(np.diff(batch)) + 1)
