"""Blend: the predictions of windows over each other, painted box by box, only where they are not plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.foveate import Window
from patchtree.ids import Ids, choose, count_ids, differences, fill_ids, likeliest, type_of
from patchtree.io.slides.base import Box, overlap
from patchtree.patches import painter
from patchtree.tree import Tree

# Classes of a layer are known in cells of at least so many pixels, at most so many along a side.
_CELL = 64
_CELLS = 1024
# About the side in pixels of what is painted at once: smaller boxes follow borders better, but each has its price.
_PAINTED = 512


class Layer:
    """A window with the probabilities that were predicted for its tree.

    It knows where all pixels are of one class without painting them: between values whose likeliest class is the same,
    that class is the likeliest too.

    Args:
        window: what part of the tree counts.
        tree: of the whole slide.
        shares: ``(N, p, p, K)`` float32, probabilities.
        smooth: interpolate between patch pixels, see `patchtree.paint`.
    """

    def __init__(self, window: Window, tree: Tree, shares: NDArray[np.float32], smooth: bool = True) -> None:
        self.window, self.classes = window, shares.shape[-1]
        values = differences(shares)
        self.nbytes = values.nbytes * 4 // 3
        self._painter = painter(values, tree, smooth)
        step = _CELL
        while max(tree.shape) > step * _CELLS:
            step *= 2
        self._step = step
        ids = likeliest(shares).reshape(len(tree), -1)
        lowest, highest = (
            _raster(tree, values, step, reduce)
            for values, reduce in ((ids.min(axis=1), np.minimum), (ids.max(axis=1), np.maximum))
        )
        if smooth:
            reach = _reach(_raster(tree, tree.level, step, np.maximum), step)
            lowest, highest = _around(lowest, reach, step, lowest=True), _around(highest, reach, step, lowest=False)
        self._lowest, self._highest = lowest, highest
        self._finest = _raster(tree, tree.level, step, np.minimum)

    def kind(self, box: Box) -> int | None:
        """Give the class that all pixels of a box have, None where there are several, or where it is not known."""
        cells = self._cells(box)
        lowest, highest = self._lowest[cells].min(), self._highest[cells].max()
        return int(lowest) if lowest == highest else None

    def finest(self, box: Box) -> int:
        """Give the level of the finest leaf in a box, and maybe a little around it."""
        return int(self._finest[self._cells(box)].min())

    def paint(self, box: Box) -> NDArray[np.float32]:
        """Give the probabilities in a box, ``(h, w, K)``; of two classes how much more likely the second is, K = 1."""
        return self._painter.paint(box)

    def fill(self, out: Ids, box: Box) -> None:
        """Write the likeliest class of every pixel of a box, ``(h, w)``."""
        fill_ids(out, self._painter, self.classes, box)

    def _cells(self, box: Box) -> tuple[slice, slice]:
        y0, x0, y1, x1 = box
        return slice(y0 // self._step, -(-y1 // self._step)), slice(x0 // self._step, -(-x1 // self._step))


class Blend:
    """Layers over each other, each counting as its window says; where there is none, and outside tissue, class 0.

    >>> tree = Tree.uniform((4, 4), patch_size=2)
    >>> shares = np.stack([np.tile(np.float32([[0, 1], [1, 1]]), (4, 1, 1)), np.full((4, 2, 2), 0.6, np.float32)], -1)
    >>> layer = Layer(Window((0, 0, 4, 3), 64, 0, 1, (4, 4)), tree, shares, smooth=False)
    >>> Blend([layer], np.ones((1, 1), bool), 4).ids((0, 0, 2, 4)).tolist()
    [[1, 0, 1, 0], [0, 0, 0, 0]]

    Args:
        layers: in the order of their windows, which the result depends on in the last digit.
        tissue: cells of `side` pixels, ``(ceil(H / side), ceil(W / side))``.
        side: of a cell.
    """

    def __init__(self, layers: Sequence[Layer], tissue: NDArray[np.bool_], side: int) -> None:
        self.layers, self.tissue, self.side = layers, tissue, side
        self.classes = layers[0].classes

    def ids(self, box: Box) -> Ids:
        """Give the likeliest class of every pixel of a box, ``(h, w)``."""
        out: Ids = np.empty((box[2] - box[0], box[3] - box[1]), type_of(self.classes))
        self.fill(out, box)
        return out

    def fill(self, out: Ids, box: Box) -> NDArray[np.int64]:
        """Write the likeliest class of every pixel of a box, ``(h, w)``; gives the pixels of each class."""
        counts = np.zeros(self.classes, np.int64)
        out[:] = 0
        self._fill(out, box, counts)
        counts[0] = out.size - counts[1:].sum()
        return counts

    def kind(self, box: Box) -> int | None:
        """Give the class that all pixels of a box have, None where there are several, or where it is not known."""
        tissue, parts = self._tissue_cells(box), self._touching(box)
        kinds = {layer.kind(own) for layer, own in parts} if tissue.any() else set()
        if not kinds or kinds == {0}:
            return 0
        whole = tissue.all() and any(own == box for _, own in parts)
        return kinds.pop() if whole and len(kinds) == 1 else None

    def probabilities(self, box: Box) -> NDArray[np.float32]:
        """Give the probabilities at every pixel of a box, ``(h, w, K)``; outside tissue that of class 0 is 1."""
        total, weight = self._sum(box, self._touching(box))
        total /= np.where(weight == 0, np.float32(1), weight)[..., None]
        if self.classes == 2:
            total = np.concatenate([(1 - total) / 2, (1 + total) / 2], axis=-1, dtype=np.float32)
        outside = (weight == 0) | ~self._tissue(box)
        total[outside] = 0
        total[outside, 0] = 1
        return total

    def _fill(self, out: Ids, box: Box, counts: NDArray[np.int64]) -> None:
        """Write the ids of a box of zeros, in smaller and smaller parts where they are not plain, and count them."""
        kind = self.kind(box)
        if kind is not None:
            if kind:
                out[:] = kind
                counts[kind] += out.size
            return
        (y0, x0, y1, x1), tissue, parts = box, self._tissue_cells(box), self._touching(box)
        alone = parts[0] if len(parts) == 1 else None
        if max(y1 - y0, x1 - x0) > _PAINTED << (alone[0].finest(alone[1]) if alone else 0):
            if y1 - y0 >= x1 - x0:
                middle = _middle(y0, y1)
                self._fill(out[: middle - y0], (y0, x0, middle, x1), counts)
                self._fill(out[middle - y0 :], (middle, x0, y1, x1), counts)
            else:
                middle = _middle(x0, x1)
                self._fill(out[:, : middle - x0], (y0, x0, y1, middle), counts)
                self._fill(out[:, middle - x0 :], (y0, middle, y1, x1), counts)
            return
        if alone:
            layer, own = alone
            layer.fill(out[own[0] - y0 : own[2] - y0, own[1] - x0 : own[3] - x0], own)
        else:
            out[:] = choose(self._sum(box, parts)[0], self.classes)
        for row, column in np.argwhere(~tissue).tolist():
            top, left = (y0 // self.side + row) * self.side - y0, (x0 // self.side + column) * self.side - x0
            out[max(top, 0) : top + self.side, max(left, 0) : left + self.side] = 0
        counts += count_ids(out, self.classes)

    def _tissue_cells(self, box: Box) -> NDArray[np.bool_]:
        """Cut out the cells of tissue that have a part in a box."""
        y0, x0, y1, x1 = box
        return self.tissue[y0 // self.side : -(-y1 // self.side), x0 // self.side : -(-x1 // self.side)]

    def _touching(self, box: Box) -> list[tuple[Layer, Box]]:
        """List the layers that have a part in a box, each with that part."""
        return [(layer, own) for layer in self.layers if (own := overlap(layer.window.box, box)) is not None]

    def _sum(self, box: Box, parts: Sequence[tuple[Layer, Box]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Add up the layers, each by its weight, and the weights."""
        channels = 1 if self.classes == 2 else self.classes
        total = np.zeros((box[2] - box[0], box[3] - box[1], channels), np.float32)
        weights = np.zeros(total.shape[:2], np.float32)
        for layer, own in parts:
            place = slice(own[0] - box[0], own[2] - box[0]), slice(own[1] - box[1], own[3] - box[1])
            weight = layer.window.weight(own)
            total[place] += layer.paint(own) * weight[..., None]
            weights[place] += weight
        return total, weights

    def _tissue(self, box: Box) -> NDArray[np.bool_]:
        """Tell which pixels of a box are tissue."""
        rows, columns = (np.arange(box[axis], box[axis + 2]) // self.side for axis in (0, 1))
        return self.tissue[rows][:, columns]


def _middle(start: int, stop: int) -> int:
    """Give a place half way that is a multiple of the side of what is painted, if there is one."""
    middle = -(-(start + stop) // (2 * _PAINTED)) * _PAINTED
    return middle if start < middle < stop else (start + stop) // 2


def _raster(tree: Tree, values: NDArray[Any], step: int, reduce: Callable[..., NDArray[Any]]) -> NDArray[Any]:
    """Give the least (or largest) value of the leaves in each cell of `step` pixels, ``(ceil(H / step), ...)``."""
    shape = [-(-length // step) for length in tree.shape]
    boxes = tree.boxes()
    first = boxes[:, :2] // step
    last = np.minimum(-(-boxes[:, 2:] // step), shape)
    start = np.full(shape, np.iinfo(values.dtype).max if reduce is np.minimum else 0, values.dtype)
    single = (last - first == 1).all(axis=1)
    reduce.at(start, tuple(first[single].T), values[single])  # type: ignore[attr-defined]
    for (top, left), (bottom, right), value in zip(
        first[~single].tolist(), last[~single].tolist(), values[~single], strict=True
    ):
        cells = start[top:bottom, left:right]
        reduce(cells, value, out=cells)
    return start


def _reach(level: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Give the level in each cell of the coarsest leaf that has a part in how it is painted.

    A pixel is interpolated from what lies within 1.5 patch pixels of its own leaf's level; where that is in a coarser
    leaf, on from there; levels at least double, so in all it is less than 1.125 pixels to the coarsest leaf.
    """
    reach = level
    for one in np.unique(level).tolist():
        reach = np.maximum(reach, _grow(np.where(level == one, level, np.uint8(0)), ceil(1.125 * (1 << one) / step)))
    return reach


def _around(values: NDArray[Any], reach: NDArray[np.uint8], step: int, lowest: bool) -> NDArray[Any]:
    """Give the least (or largest) value of all cells that a cell's pixels are interpolated from.

    That is 1.125 pixels to the coarsest leaf (see `_reach`), 1.5 of its own pixels, and half of one that is a mean.
    """
    out = values.copy()
    for one in np.unique(reach).tolist():
        wide = _grow(values, ceil(3.125 * (1 << one) / step), shrink=lowest)
        np.copyto(out, wide, where=reach == one)
    return out


def _grow(values: NDArray[Any], radius: int, shrink: bool = False) -> NDArray[Any]:
    """Give the largest (or least) value within a radius of each cell."""
    import cv2

    change = cv2.erode if shrink else cv2.dilate
    # Along one axis after the other: a square of this side would be slow.
    for shape in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
        values = change(values, np.ones(shape, np.uint8))
    return values
