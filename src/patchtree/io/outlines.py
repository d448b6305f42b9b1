"""Outlines: a mask of class ids to polygons along the edges of its pixels, exact or simplified.

A mask is read once, from top to bottom. Where the four pixels around a point of the pixel grid differ, an outline has a
corner; corners on a line pair up to edges, and edges link up to rings. So memory grows with the outlines only. Of four
pixels in a draughtboard pattern, those that touch at a corner are held apart, and a ring that would touch itself there
is split in two; every polygon is valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.annotations import Annotations, Polygon
from patchtree.io.colours import Colour
from patchtree.io.masks import bands, read_ids
from patchtree.io.simplify import Rings, simplify

if TYPE_CHECKING:
    from patchtree.io.slides import Slide

_MOST_CORNERS = 3_000_000  # some 0.7 GB with the polygons made of them


class TooManyCorners(InputError):
    """A mask has more corners than are held in memory."""


def outline(
    rows: Iterable[NDArray[np.integer]],
    labels: Mapping[str, int],
    colours: Mapping[str, Colour] | None = None,
    tolerance: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Annotations:
    """Turn a mask into polygons, one for each area of a class that hangs together by the edges of its pixels.

    With a tolerance of 0 the polygons are the mask exactly: rasterised, they give it back. With more, vertices are
    left out such that no point of an outline moves further than that and no ring's area changes by more than 1%, while
    all polygons stay valid, with the same holes.

    >>> mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 2]])
    >>> [(one.label, one.area, len(one.rings)) for one in outline([mask], {"ring": 1, "dot": 2}).polygons]
    [('ring', 8.0, 2), ('dot', 1.0, 1)]

    Args:
        rows: class ids ``(h, W)``, band after band from the top of the mask to its bottom.
        labels: name to id of the classes that get outlines.
        colours: of classes.
        tolerance: in pixels of the mask.
        scale: pixels of level 0 along a pixel of the mask, (y, x); the polygons are in pixels of level 0.

    Returns:
        Polygons, class after class in the order of the labels, from top to bottom.

    Raises:
        InputError: the bands differ in width or hold no whole numbers, the tolerance is negative, or the mask has more
            than 3 million corners.
    """
    if not 0 <= tolerance < np.inf:
        raise InputError(f"a tolerance of {tolerance} pixels is not possible; give 0 or more")
    corners = _find_corners(rows, sorted(set(labels.values())))
    polygons: list[Polygon] = []
    for label, id_ in labels.items():
        rings = _link(corners[id_])
        if tolerance:
            rings = simplify(rings, tolerance)
        polygons += _polygons(label, rings, scale)
    return Annotations(tuple(polygons), {name: colour for name, colour in (colours or {}).items() if name in labels})


def outline_slide(
    mask: Slide,
    labels: Mapping[str, int],
    colours: Mapping[str, Colour] | None = None,
    tolerance: float = 0.0,
    level: int = 0,
) -> Annotations:
    """Turn a level of a mask that is a slide into polygons in pixels of level 0, read band by band; see `outline`.

    Args:
        mask: class ids.
        labels: name to id of the classes that get outlines.
        colours: of classes.
        tolerance: in pixels of the level.
        level: of the mask's pyramid.

    Raises:
        InputError: as for `outline`, and where the mask is no mask or is damaged.
    """
    width = mask.levels[level].shape[1]
    read = (read_ids(mask, level, (top, 0, bottom, width)) for top, bottom in bands(mask, level))
    found = outline(read, labels, colours, tolerance, mask.levels[level].downsample)
    # A level's last pixels may stand for fewer of level 0 than the others.
    limit = np.array(mask.shape[::-1], np.float64)
    polygons = (Polygon(one.label, tuple(np.minimum(ring, limit) for ring in one.rings)) for one in found.polygons)
    return replace(found, polygons=tuple(polygons), source=str(mask.path))


@dataclass(frozen=True, eq=False)
class _Corners:
    """Where outlines of a class turn, by row, then column.

    Attributes:
        y: ``(M,)`` int32, a point of the pixel grid.
        x: ``(M,)`` int32.
        right: ``(M,)`` the horizontal edge that ends here lies to the right (else to the left).
        down: ``(M,)`` the vertical edge that ends here lies below (else above).
        leaves: ``(M,)`` with the class on the right-hand side, an outline leaves along the horizontal edge (else it
            arrives along it).
        run: ``(M,)`` int32, where the run of the pixel to the lower left begins.
    """

    y: NDArray[np.int32]
    x: NDArray[np.int32]
    right: NDArray[np.bool_]
    down: NDArray[np.bool_]
    leaves: NDArray[np.bool_]
    run: NDArray[np.int32]


def _find_corners(rows: Iterable[NDArray[np.integer]], ids: list[int]) -> dict[int, _Corners]:
    """Find the corners of all classes in one pass over the mask."""
    found: dict[int, list[_Corners]] = {id_: [] for id_ in ids}
    total = top = 0
    above: NDArray[np.int64] | None = None
    for band in _closed_below(rows):
        if above is None:
            above = np.full(band.shape[1], _OUTSIDE, np.int64)
        if band.ndim != 2 or band.shape[1] != len(above) or band.dtype.kind not in "biu":
            raise InputError(f"bands of a mask must be (h, {len(above)}) class ids, not {band.shape} of {band.dtype}")
        points = _Points.of(above, band, top)
        for id_ in ids:
            corners = points.corners(id_)
            total += len(corners.y)
            found[id_].append(corners)
        if total > _MOST_CORNERS:
            raise TooManyCorners(
                f"the mask has more than {_MOST_CORNERS:,} corners, too many to outline; "
                "take a smaller level of its pyramid, or smooth it"
            )
        above, top = band[-1].astype(np.int64), top + len(band)
    return {
        id_: _Corners(
            *(
                np.concatenate([getattr(part, name) for part in parts] or [np.zeros(0, np.int32)])
                for name in _Corners.__dataclass_fields__
            )
        )
        for id_, parts in found.items()
    }


_OUTSIDE = -1  # the id of what lies around the mask


def _closed_below(rows: Iterable[NDArray[np.integer]]) -> Iterator[NDArray[np.integer]]:
    """Bands that have rows, and a last row of what lies below the mask."""
    width = None
    for band in rows:
        if len(band):
            yield band
            width = band.shape[1]
    if width is not None:
        yield np.full((1, width), _OUTSIDE, np.int64)


@dataclass(frozen=True, eq=False)
class _Points:
    """The points of the pixel grid on the upper edges of a band's rows around which not all four pixels are of one id.

    Attributes:
        y: ``(M,)``.
        x: ``(M,)``.
        around: ``(4, M)`` ids to the upper left, upper right, lower left and lower right.
        run: ``(M,)`` where the run of the pixel to the lower left begins.
    """

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    around: NDArray[np.int64]
    run: NDArray[np.int64]

    @classmethod
    def of(cls, above: NDArray[np.int64], band: NDArray[np.integer], top: int) -> _Points:
        height, width = band.shape
        # A column of what lies outside on either side, and the row above, in the smallest type that holds it.
        narrow = {1: np.int16, 2: np.int32}.get(band.dtype.itemsize if band.dtype.kind != "i" else 0, np.int64)
        ids = np.full((height + 1, width + 2), _OUTSIDE, narrow)
        ids[0, 1:-1], ids[1:, 1:-1] = above, band
        changes = ids[:, 1:] != ids[:, :-1]
        mixed = ids[1:, 1:] != ids[:-1, 1:]
        mixed |= changes[:-1]
        mixed |= changes[1:]
        places = np.flatnonzero(mixed)
        row, x = np.divmod(places, width + 1)
        around = np.stack([ids[row + down, x + right] for down in (0, 1) for right in (0, 1)]).astype(np.int64)
        starts = np.flatnonzero(around[2] != around[3])
        before = np.searchsorted(starts, np.arange(len(x))) - 1
        run = x[starts[before]] if len(starts) else np.zeros_like(x)
        return cls(row + top, x, around, run)

    def corners(self, id_: int) -> _Corners:
        """The corners of a class."""
        upper_left, upper_right, lower_left, lower_right = self.around == id_
        count = upper_left.astype(np.int8) + upper_right + lower_left + lower_right
        # The pixel that is alone, of the class or not of it, has the corner; in a draughtboard two have one each.
        one, three = count == 1, count == 3
        slash, backslash = (
            (count == 2) & (upper_right == lower_left) & (upper_right != upper_left) & pixel
            for pixel in (upper_right, upper_left)
        )
        alone = [
            (one & pixel) | (three & ~pixel) | (diagonal & pixel)
            for pixel, diagonal in (
                (upper_left, backslash),
                (upper_right, slash),
                (lower_left, slash),
                (lower_right, backslash),
            )
        ]
        found = []
        for place, chosen in enumerate(alone):
            at = np.flatnonzero(chosen)
            right, down = bool(place % 2), bool(place // 2)
            below = (lower_right if right else lower_left)[at]
            found.append((at, np.full(len(at), right), np.full(len(at), down), right == below))
        at, rights, downs, leaves = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((rights, at))
        at = at[order]
        return _Corners(
            self.y[at].astype(np.int32),
            self.x[at].astype(np.int32),
            rights[order],
            downs[order],
            leaves[order],
            self.run[at].astype(np.int32),
        )


def _link(corners: _Corners) -> Rings:
    """Link the corners of a class up to rings, outer ones with their holes."""
    count = len(corners.y)
    y, x = corners.y.astype(np.int64), corners.x.astype(np.int64)
    # Along a row, and down a column, the first and the second corner share an edge, the third and the fourth, ...
    beside = np.empty(count, np.int64)
    beside[0::2], beside[1::2] = np.arange(1, count, 2), np.arange(0, count, 2)
    column = np.lexsort((corners.down, y, x))
    along = np.empty(count, np.int64)
    along[column[0::2]], along[column[1::2]] = column[1::2], column[0::2]
    chain, starts = _cycles(np.where(corners.leaves, beside, along))
    points = np.stack([x, y], axis=1)[chain]
    ring = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, count)))
    of_corner = np.empty(count, np.int64)
    of_corner[chain] = ring
    # The first corner of a ring is its uppermost, then leftmost. Where the outline leaves it to the right, the class is
    # below, in the ring. Else the ring is a hole, and the class is to its left, in a run that begins at another edge.
    first = chain[starts]
    hole = ~corners.leaves[first]
    parent = np.arange(len(starts))
    tops = column[0::2]
    stride = int(y.max(initial=0)) + 1
    edges = x[tops] * stride + y[tops]
    query = corners.run[first[hole]].astype(np.int64) * stride + y[first[hole]]
    parent[hole] = of_corner[tops[np.searchsorted(edges, query, side="right") - 1]]
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    return _split(points, starts, parent)


def _cycles(following: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cycles of a permutation one after the other, each from its smallest number on, and where each begins."""
    after = following.tolist()
    seen = bytearray(len(after))
    chain: list[int] = []
    starts: list[int] = []
    for first in range(len(after)):
        if not seen[first]:
            starts.append(len(chain))
            here = first
            while not seen[here]:
                seen[here] = 1
                chain.append(here)
                here = after[here]
    return np.array(chain, np.int64), np.array(starts, np.int64)


def _split(points: NDArray[np.int64], starts: NDArray[np.int64], parent: NDArray[np.int64]) -> Rings:
    """Split rings where they touch themselves, so that each point is in a ring once."""
    ends = np.append(starts[1:], len(points))
    ring = np.repeat(np.arange(len(starts)), ends - starts)
    stride = int(points[:, 1].max(initial=0)) + 1
    places = points[:, 0] * stride + points[:, 1]
    order = np.lexsort((places, ring))
    twice = (places[order][1:] == places[order][:-1]) & (ring[order][1:] == ring[order][:-1])
    touching = np.unique(ring[order][1:][twice])
    order = np.argsort(places, kind="stable")
    pinned = np.zeros(len(points), np.bool_)
    again = places[order][1:] == places[order][:-1]
    pinned[order[1:][again]] = pinned[order[:-1][again]] = True
    pieces: list[NDArray[np.int64]] = []
    owners: list[int] = []
    loose = np.ones(len(starts), np.bool_)
    loose[touching] = False
    for one in range(len(starts)):
        members = np.arange(starts[one], ends[one])
        for piece in [members] if loose[one] else _loops(members, places):
            pieces.append(piece)
            owners.append(int(parent[one]))
    chain = np.concatenate([np.zeros(0, np.int64), *pieces])
    sizes = np.array([len(piece) for piece in pieces], np.int64)
    return Rings.of(points[chain], sizes, np.array(owners, np.int64), pinned[chain])


def _loops(members: NDArray[np.int64], places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut a ring that comes through a point twice into rings that do not."""
    loops: list[NDArray[np.int64]] = []
    path: list[int] = []
    at: dict[int, int] = {}
    for member, place in zip(members.tolist(), places[members].tolist(), strict=True):
        if place in at:
            loop = path[at[place] :]
            del path[at[place] :]
            for gone in loop:
                del at[int(places[gone])]
            loops.append(np.array(loop, np.int64))
        at[place] = len(path)
        path.append(member)
    loops.append(np.array(path, np.int64))
    return loops


def _polygons(label: str, rings: Rings, scale: tuple[float, float]) -> Iterator[Polygon]:
    """Outer rings with their holes."""
    outer: dict[int, list[NDArray[np.float64]]] = {}
    for one in np.flatnonzero(rings.areas() > 0).tolist():
        outer.setdefault(int(rings.owner[one]), []).append(rings.ring(one) * scale[::-1])
    for one in np.flatnonzero(rings.areas() < 0).tolist():
        outer[int(rings.owner[one])].append(rings.ring(one) * scale[::-1])
    for found in outer.values():
        yield Polygon(label, tuple(found))
