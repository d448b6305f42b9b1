"""Foveated windows: a slide too large for one sequence, looked at part by part, each within sight of the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.slides.base import Box
from patchtree.tree import Tree, morton

# A window's side over the overlap with the next one.
_OVERLAPS = 8
# A tree's share of tokens for what lies outside its window.
_AROUND = 8
_LEAST = 64
# A window has few leaves to lose on the way down to it.
_LEAST_WINDOW = 256
# Windows of this many pixels or more have a side that is a multiple of it.
_STEP = 64


@dataclass(frozen=True)
class Window:
    """A part of a slide that is looked at closely.

    Attributes:
        box: y0, x0, y1, x1 in pixels of level 0, inside the slide.
        budget: leaves that the part is worth.
        around: leaves that show the rest of the slide; 0 where there is no rest.
        ramp: pixels over which the window fades out at its borders.
        shape: (H, W) of the slide, at whose borders nothing fades.
    """

    box: Box
    budget: int
    around: int
    ramp: int
    shape: tuple[int, int]

    def weight(self, box: Box) -> NDArray[np.float32]:
        """Give how much the window counts at the pixels of a box inside it, ``(h, w)``, more than 0.

        >>> window = Window((0, 4, 8, 12), budget=64, around=0, ramp=4, shape=(8, 20))
        >>> window.weight((0, 4, 1, 12)).tolist()
        [[0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125]]
        """
        rows, columns = (self._along(axis, box[axis], box[axis + 2]) for axis in (0, 1))
        return np.asarray(rows[:, None] * columns)

    def _along(self, axis: int, start: int, stop: int) -> NDArray[np.float32]:
        low, high = self.box[axis], self.box[axis + 2]
        place = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
        inside = np.full(stop - start, np.inf, np.float32)
        if low > 0:
            inside = place - low
        if high < self.shape[axis]:
            inside = np.minimum(inside, high - place)
        return np.asarray(np.minimum(inside / self.ramp, 1), np.float32)


def plan_windows(
    tissue: NDArray[np.bool_], side: int, shape: tuple[int, int], density: float, budget: int
) -> tuple[Window, ...]:
    """Cover the tissue of a slide by windows, each worth no more than a budget; one window if that is enough for all.

    Windows are squares of one size on a grid that begins at the slide's corner. Each overlaps the next by an eighth of
    its side; those without tissue are left out. An eighth of the budget shows the rest of the slide. The windows depend
    on the arguments alone.

    >>> tissue = np.zeros((64, 64), bool)
    >>> tissue[3:20, 3:20] = True
    >>> plan_windows(tissue, 1024, (65536, 65536), density=1 / 65536, budget=8192)
    (Window(box=(0, 0, 65536, 65536), budget=4624, around=0, ramp=1, shape=(65536, 65536)),)
    >>> [window.box for window in plan_windows(tissue, 1024, (65536, 65536), density=1 / 16384, budget=8192)]
    [(0, 0, 10816, 10816), (0, 9464, 10816, 20280), (0, 18928, 10816, 29744), ...]

    Args:
        tissue: cells of `side` pixels, True where there is something to see, ``(ceil(H / side), ceil(W / side))``.
        side: of a cell in pixels.
        shape: (H, W) of the slide.
        density: tokens that a pixel of tissue is worth.
        budget: the most tokens of a sequence.

    Returns:
        Windows from top to bottom and from left to right; none if there is no tissue.

    Raises:
        InputError: the density or the budget is not possible.
    """
    if not 0 < density < math.inf or budget < 2 * _LEAST_WINDOW:
        raise InputError(
            f"a density of {density} tokens a pixel and a budget of {budget} tokens are not possible; "
            f"give more than 0, and at least {2 * _LEAST_WINDOW}"
        )
    area = _Area(tissue, side, shape)
    total = area.count((0, 0, *shape))
    if not total:
        return ()
    if density * total <= budget:
        return (Window((0, 0, *shape), max(_LEAST, round(density * total)), 0, 1, shape),)
    around = budget // _AROUND
    length = max(math.isqrt(int((budget - around) / density)), 1)
    length -= length % _STEP if length > _STEP else 0
    ramp = max(1, length // _OVERLAPS)
    # A last window of no more than an overlap would see nothing that the one before does not.
    corners = [range(0, max(1, extent - ramp), max(1, length - ramp)) for extent in shape]
    windows = []
    for y0, x0 in product(*corners):
        box = y0, x0, min(y0 + length, shape[0]), min(x0 + length, shape[1])
        if pixels := area.count(box):
            windows.append(Window(box, max(_LEAST_WINDOW, round(density * pixels)), around, ramp, shape))
    return tuple(windows)


def merge(one: Tree, other: Tree) -> Tree:
    """Split what either of two trees of a slide splits.

    >>> one, other = Tree.uniform((64, 64), 16, level=2), Tree.uniform((64, 64), 16, level=1)
    >>> merge(one, other) == other
    True

    Raises:
        InputError: the trees are of different shapes, patch sizes or roots.
    """
    if (one.shape, one.patch_size, one.max_level) != (other.shape, other.patch_size, other.max_level):
        raise InputError(f"{one!r} and {other!r} do not go together; give trees of one slide with the same roots")
    kept = [
        _level_under(one, other) >= one.level,
        _level_under(other, one) > other.level,
    ]
    level = np.concatenate([tree.level[keep] for tree, keep in zip((one, other), kept, strict=True)])
    index = np.concatenate([tree.index[keep] for tree, keep in zip((one, other), kept, strict=True)])
    order = np.argsort(morton(index.astype(np.int64) << level.astype(np.int64)[:, None]))
    return Tree(level[order], index[order], one.patch_size, one.shape, one.max_level)


def _level_under(tree: Tree, other: Tree) -> NDArray[np.uint8]:
    """Give the level of another tree's leaf at the first cell of each leaf, ``(N,)``."""
    corner = tree.index.astype(np.int64) << tree.level.astype(np.int64)[:, None]
    return np.asarray(other.level[other.leaf_of(corner)])


class _Area:
    """Counts the pixels of tissue in boxes."""

    def __init__(self, tissue: NDArray[np.bool_], side: int, shape: tuple[int, int]) -> None:
        self.tissue, self.side, self.shape = tissue.astype(np.float64), side, shape

    def count(self, box: Box) -> int:
        rows, columns = (self._along(axis, box[axis], box[axis + 2]) for axis in (0, 1))
        return round(float(rows @ self.tissue @ columns))

    def _along(self, axis: int, start: int, stop: int) -> NDArray[np.float64]:
        """Give the pixels of each row (column) of cells between two."""
        edges = np.clip(np.arange(self.tissue.shape[axis] + 1) * self.side, start, min(stop, self.shape[axis]))
        return np.asarray(np.diff(edges), np.float64)
