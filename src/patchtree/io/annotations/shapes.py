"""What annotations are: polygons with a class, in the order in which they are drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchtree.errors import InputError
from patchtree.io.colours import Colour
from patchtree.io.segments import meetings

UNCLASSIFIED = "Unclassified"


@dataclass(frozen=True, eq=False)
class Polygon:
    """An area with a class: what an outer ring encloses, less what the rings of holes enclose.

    Attributes:
        label: name of the class.
        rings: ``(V, 2)`` float64 each, x and y in pixels of level 0, the image's corner at 0; the first vertex is not
            repeated at the end. The first ring is the outer one, the others are holes.
    """

    label: str
    rings: tuple[NDArray[np.float64], ...]

    @property
    def area(self) -> float:
        """The outer ring's area less the holes', in pixels of level 0.

        >>> Polygon("a", (np.array([(0, 0), (4, 0), (4, 2), (0, 2)]), np.array([(1, 1), (2, 1), (2, 2)]))).area
        7.5
        """
        outer, *holes = (abs(ring_area(ring)) for ring in self.rings)
        return outer - sum(holes)


@dataclass(frozen=True, eq=False)
class Annotations:
    """The annotations of a slide.

    Where polygons overlap, the one that is drawn last counts. A pixel belongs to a ring that encloses its centre an odd
    number of times (a centre on an edge belongs to the side of greater x, then of greater y).

    Attributes:
        polygons: in the order in which they are drawn.
        colours: of classes, red, green and blue from 0 to 255; a class need not have one.
        source: the file, for messages.
        groups: of classes that are groups in groups, those around them, the nearest first.
    """

    polygons: tuple[Polygon, ...]
    colours: dict[str, Colour] = field(default_factory=dict)
    source: str = "annotations"
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.polygons)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order in which they are first drawn."""
        return tuple(dict.fromkeys(polygon.label for polygon in self.polygons))

    def draw_in_order(self, labels: Sequence[str]) -> Annotations:
        """Draw the classes in another order, later ones over earlier ones; classes not named are drawn first.

        >>> square = (np.array([(0, 0), (2, 0), (2, 2), (0, 2)], float),)
        >>> annotations = Annotations((Polygon("necrosis", square), Polygon("tumour", square)))
        >>> annotations.draw_in_order(["tumour", "necrosis"]).labels
        ('tumour', 'necrosis')

        Raises:
            InputError: a class is named twice.
        """
        if len(set(labels)) < len(labels):
            raise InputError(f"the order of drawing {', '.join(labels)} names a class twice; name each once")
        rank = {label: place for place, label in enumerate(labels)}
        return replace(self, polygons=tuple(sorted(self.polygons, key=lambda one: rank.get(one.label, -1))))


@dataclass(frozen=True)
class Drawn:
    """One annotation as a file has it, not checked yet: a class, rings, closed or not, and the groups around it."""

    label: str
    rings: Sequence[ArrayLike]
    colour: Colour | None = None
    groups: tuple[str, ...] = ()


def assemble(source: str, drawn: Iterable[Drawn], closed: bool = False) -> Annotations:
    """Check what was read from a file, and make it `Annotations`.

    Rings of no area are left out, and a warning says so; it also says where rings cross themselves and, with
    ``closed``, where the last vertex is not the first.

    Raises:
        InputError: a coordinate is no finite number.
    """
    polygons: list[Polygon] = []
    colours: dict[str, Colour] = {}
    groups: dict[str, tuple[str, ...]] = {}
    empty = unclosed = 0
    for one in drawn:
        rings = []
        for place, vertices in enumerate(one.rings):
            ring = _vertices(source, one.label, vertices)
            unclosed += closed and len(ring) > 1 and not np.array_equal(ring[0], ring[-1])
            ring = ring[(ring != np.roll(ring, -1, axis=0)).any(axis=1)]
            if len(ring) > 2 and (ring != ring[0]).any(axis=0).all():
                rings.append(ring)
            else:
                empty += 1
                if place == 0:
                    break
        if rings:
            polygons.append(Polygon(one.label, tuple(rings)))
        if one.colour is not None:
            colours.setdefault(one.label, one.colour)
        if one.groups:
            groups[one.label] = one.groups
    if empty:
        warnings.warn(f"{source}: {empty} outlines without an area are left out", stacklevel=3)
    if unclosed:
        warnings.warn(f"{source}: {unclosed} rings are not closed; a straight line closes them", stacklevel=3)
    _warn_of_crossings(source, polygons)
    return Annotations(tuple(polygons), colours, source, groups)


def ring_area(ring: NDArray[np.float64]) -> float:
    """Signed area of a ring ``(V, 2)``, positive where x turns towards y."""
    x, y = (ring - ring[0]).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _vertices(source: str, label: str, vertices: ArrayLike) -> NDArray[np.float64]:
    try:
        ring = np.array(vertices, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: an outline of class {label!r} has damaged coordinates; export it again") from error
    if ring.size == 0:
        return np.zeros((0, 2))
    if ring.ndim != 2 or ring.shape[1] < 2 or not np.isfinite(ring).all():
        raise InputError(f"{source}: an outline of class {label!r} has damaged coordinates; export it again")
    return ring[:, :2]


def _warn_of_crossings(source: str, polygons: Sequence[Polygon]) -> None:
    rings = [(polygon.label, ring) for polygon in polygons for ring in polygon.rings]
    if not rings:
        return
    start = np.concatenate([ring for _, ring in rings])
    end = np.concatenate([np.roll(ring, -1, axis=0) for _, ring in rings])
    owner = np.repeat(np.arange(len(rings)), [len(ring) for _, ring in rings])
    one, _, crossing = meetings(start, end, owner)
    if crossing.any():
        first = one[crossing].min()
        x, y = start[first]
        warnings.warn(
            f"{source}: {len(np.unique(owner[one[crossing]]))} outlines cross themselves, the first of class "
            f"{rings[owner[first]][0]!r} near x = {x:.0f}, y = {y:.0f}; what they enclose twice counts as outside",
            stacklevel=4,
        )
