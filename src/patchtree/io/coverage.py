"""Count classes under patch pixels without a full mask: of polygons, and of masks larger than memory.

Both become runs, the stretches of a pixel row that are of one class, and runs are added up under each patch pixel as a
font rasteriser adds up the spans of a glyph: where the class changes, the share of that patch pixel and the whole of
those to its right change with it. All counts are exact, and nothing grows with the area of a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.annotations import Annotations
from patchtree.io.masks import bands, read_ids
from patchtree.tree import Tree

if TYPE_CHECKING:
    from patchtree.io.slides import Slide

_WORK = 1 << 20  # places where the class changes, and rows of leaves, that are looked at in one go
_ROWS = 256  # that are drawn in one go
_NOWHERE = -1


def rasterise(
    annotations: Annotations, labels: Mapping[str, int], tree: Tree, ignore: int | None = None
) -> NDArray[np.float32]:
    """Count the pixels of each class under each patch pixel, as `patchtree.count_labels` does of the mask drawn.

    A pixel is of the class of the last polygon that holds its centre, and of class 0 where none does.

    >>> from patchtree.io.annotations import Polygon
    >>> triangle = Polygon("tumour", (np.array([(0, 0), (4, 0), (0, 4)], float),))
    >>> counts = rasterise(Annotations((triangle,)), {"background": 0, "tumour": 1}, Tree.uniform((4, 4), 2, level=1))
    >>> counts[..., 1].tolist()
    [[[4.0, 1.0], [1.0, 0.0]]]

    Args:
        annotations: polygons in pixels of the tree's image.
        labels: name to id: 0, 1, ... without gaps, and `ignore`. Names may share an id.
        tree: a tree of the slide's shape, 2-D.
        ignore: the id of pixels that are counted nowhere.

    Returns:
        ``(N, p, p, K)`` float32, whole numbers; their sum over classes is `Tree.weights` where nothing is ignored.

    Raises:
        InputError: a polygon's class is not among the labels, the ids have gaps, or the tree is not 2-D.
    """
    classes = _classes(labels, ignore)
    _check_labels(annotations, labels)
    counter = _Counter.start(tree, classes, ignore)
    edges = _Edges.of(annotations, tree.shape)
    ids = np.array([labels[polygon.label] for polygon in annotations.polygons], np.int64)
    for top, bottom in _bands(tree, edges):
        counter.add(_draw(edges, ids, (top, bottom), tree.shape[1]))
    return counter.finish()


def count_slide_labels(mask: Slide, tree: Tree, classes: int, ignore: int | None = None) -> NDArray[np.float32]:
    """Count the pixels of each class under each patch pixel of a mask that is read band by band, at level 0.

    Rows and columns without leaves are not read. See `patchtree.count_labels`, which this equals.

    Args:
        mask: class ids, in one channel or in equal ones.
        tree: a tree of the mask's shape.
        classes: number of classes, ``K``.
        ignore: the id of pixels without a label.

    Returns:
        ``(N, p, p, K)`` float32, whole numbers.

    Raises:
        InputError: the tree was made for another shape, or the mask holds something else than the ids of classes.
    """
    if mask.shape != tree.shape:
        raise InputError(f"{mask.path}: a mask of shape {mask.shape} does not fit an image of {tree.shape}")
    counter = _Counter.start(tree, classes, ignore)
    boxes = tree.boxes()
    for top, bottom in bands(mask):
        here = boxes[(boxes[:, 0] < bottom) & (boxes[:, 2] > top)]
        if len(here):
            left, right = int(here[:, 1].min()), min(int(here[:, 3].max()), tree.shape[1])
            runs = _runs(read_ids(mask, 0, (top, left, bottom, right)), top, left)
            _check_ids(mask.path, runs.ids, classes, ignore)
            counter.add(runs)
    return counter.finish()


def count_part(
    ids: NDArray[np.integer], corner: tuple[int, int], tree: Tree, classes: int, ignore: int | None = None
) -> NDArray[np.float32]:
    """Count the pixels of each class under each patch pixel, of those in a part of the image alone.

    What `patchtree.count_labels` gives for a mask that is ignored all around the part.

    >>> tree = Tree.uniform((4, 4), patch_size=2, level=1)
    >>> count_part(np.ones((2, 3), np.uint8), (0, 1), tree, classes=2)[..., 1].tolist()
    [[[2.0, 4.0], [0.0, 0.0]]]

    Args:
        ids: ``(h, w)``, each below ``classes`` or equal to ``ignore``.
        corner: row and column of the part's first pixel.
        tree: of the whole image, 2-D.
        classes: number of classes, ``K``.
        ignore: the id of pixels without a label.

    Returns:
        ``(N, p, p, K)`` float32, whole numbers.
    """
    (top, left), width = corner, tree.shape[1]
    known = ids.astype(np.int32)
    if ignore is not None:
        known[ids == ignore] = _NOWHERE
    beside = int(left > 0), int(left + ids.shape[1] < width)
    runs = _runs(np.pad(known, ((0, 0), beside), constant_values=_NOWHERE), top, left - beside[0])
    # What lies beside the part reaches to the image's borders.
    columns = np.where(runs.columns < left, 0, runs.columns)
    counter = _Counter.start(tree, classes, _NOWHERE)
    counter.add(replace(runs, columns=columns, box=(top, 0, top + len(ids), width)))
    return counter.finish()


def draw(annotations: Annotations, labels: Mapping[str, int], shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Draw the polygons on an image of a shape, ``(H, W)`` class ids; see `Annotations` for what covers what.

    >>> from patchtree.io.annotations import Polygon
    >>> triangle = Polygon("tumour", (np.array([(0, 0), (4, 0), (0, 4)], float),))
    >>> draw(Annotations((triangle,)), {"background": 0, "tumour": 1}, (3, 4)).tolist()
    [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]

    Raises:
        InputError: a polygon's class is not among the labels.
    """
    _check_labels(annotations, labels)
    height, width = shape
    out = np.zeros(shape, np.uint16)
    edges = _Edges.of(annotations, shape)
    ids = np.array([labels[polygon.label] for polygon in annotations.polygons], np.int64)
    for top in range(0, height if len(edges.ends) else 0, _ROWS):
        bottom = min(top + _ROWS, height)
        runs = _draw(edges, ids, (top, bottom), width)
        starts = (runs.rows - top) * width + runs.columns
        lengths = np.diff(starts, append=(bottom - top) * width)
        out[top:bottom] = np.repeat(runs.ids, lengths).reshape(bottom - top, width)
    return out


@dataclass(frozen=True, eq=False)
class _Runs:
    """Stretches of one id, by row, then column; together they fill a box.

    Attributes:
        rows: ``(M,)`` pixel row of each.
        columns: ``(M,)`` its first pixel.
        ids: ``(M,)``.
        box: y0, x0, y1, x1.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    ids: NDArray[np.int64]
    box: tuple[int, int, int, int]


def _runs(ids: NDArray[np.integer], top: int, left: int) -> _Runs:
    """The runs of a mask ``(h, w)`` whose corner lies at (top, left)."""
    height, width = ids.shape
    first = np.ones(ids.shape, np.bool_)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=first[:, 1:])
    places = np.flatnonzero(first)
    rows, columns = np.divmod(places, width)
    box = (top, left, top + height, left + width)
    return _Runs(rows + top, columns + left, ids.reshape(-1)[places].astype(np.int64), box)


@dataclass(frozen=True, eq=False)
class _Counter:
    """Counts that runs are added to.

    Attributes:
        tree: whose patch pixels are counted under.
        ignore: the id that is not counted.
        changes: ``(N, p, p, K)`` int32, by how much a patch pixel's count is more than its left neighbour's.
    """

    tree: Tree
    ignore: int | None
    changes: NDArray[np.int32]

    @classmethod
    def start(cls, tree: Tree, classes: int, ignore: int | None) -> _Counter:
        if tree.ndim != 2:
            raise InputError("labels of a slide are counted under a 2-D tree; this one is 3-D")
        side = tree.patch_size
        return cls(tree, ignore, np.zeros((len(tree), side, side, classes), np.int32))

    def add(self, runs: _Runs) -> None:
        """Add the runs of a box; every leaf's part in it must lie in the box's columns."""
        _, left, _, right = runs.box
        width = right - left + 1
        keys = runs.rows * width + (runs.columns - left)
        # At the left edge of each row of each leaf: all of the row is of the class found there.
        leaves, rows = self._rows(runs.box)
        corner = self.tree.index[leaves, 1] * self.tree.sizes()[leaves]
        found = np.searchsorted(keys, rows * width + (corner - left), side="right") - 1
        self._put(leaves, rows, np.zeros_like(rows), runs.ids[found], np.int64(1) << self.tree.level[leaves])
        # Where the class changes in a row: from there on it is of another class, after the last column of none.
        last = np.empty(len(keys), np.bool_)
        last[:-1], last[-1:] = runs.rows[1:] != runs.rows[:-1], True
        ends = np.append(runs.columns[1:], right)
        ends[last] = right
        starts = np.flatnonzero(~last) + 1
        self._change(runs.rows, ends, runs.ids, -1)
        self._change(runs.rows[starts], runs.columns[starts], runs.ids[starts], 1)

    def finish(self) -> NDArray[np.float32]:
        """Give the counts; nothing can be added afterwards."""
        for column in range(1, self.tree.patch_size):
            self.changes[:, :, column] += self.changes[:, :, column - 1]
        counts = self.changes.view(np.float32)
        for leaf in range(0, len(counts), 1024):
            counts[leaf : leaf + 1024] = self.changes[leaf : leaf + 1024].copy()
        return counts

    def _rows(self, box: tuple[int, int, int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every pixel row of every leaf in a box, as pairs."""
        size = self.tree.sizes()
        corner = self.tree.index[:, 0] * size
        top, bottom = np.maximum(corner, box[0]), np.minimum(corner + size, box[2])
        leaves = np.flatnonzero(bottom > top)
        count = (bottom - top)[leaves]
        offsets = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(leaves, count), np.repeat(top[leaves], count) + offsets

    def _change(self, rows: NDArray[np.int64], columns: NDArray[np.int64], ids: NDArray[np.int64], sign: int) -> None:
        """From a column on, a row holds more or fewer pixels of a class, up to the far edge of the leaf there."""
        tree = self.tree
        leaves = tree.leaf_of(np.stack([rows, columns], 1) // tree.patch_size)
        level = tree.level[leaves].astype(np.int64)
        inner = columns - tree.index[leaves, 1] * (np.int64(tree.patch_size) << level)
        inside = (leaves >= 0) & (inner > 0)  # what changes at a leaf's edge is found there
        leaves, rows, ids, level, inner = (array[inside] for array in (leaves, rows, ids, level, inner))
        step = np.int64(1) << level
        column = inner >> level
        covered = step - (inner & (step - 1))
        self._put(leaves, rows, column, ids, sign * covered)
        more = column + 1 < tree.patch_size
        self._put(leaves[more], rows[more], column[more] + 1, ids[more], sign * (step - covered)[more])

    def _put(
        self,
        leaves: NDArray[np.int64],
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        ids: NDArray[np.int64],
        values: NDArray[np.int64],
    ) -> None:
        side, classes = self.changes.shape[2:]
        if self.ignore is not None:
            kept = ids != self.ignore
            leaves, rows, columns, ids, values = (array[kept] for array in (leaves, rows, columns, ids, values))
        level = self.tree.level[leaves].astype(np.int64)
        row = (rows - self.tree.index[leaves, 0] * (np.int64(side) << level)) >> level
        places = ((leaves * side + row) * side + columns) * classes + ids
        np.add.at(self.changes.reshape(-1), places, values.astype(np.int32))


@dataclass(frozen=True, eq=False)
class _Edges:
    """The edges of all rings that cross the middle of a pixel row, upper end first.

    Attributes:
        ends: ``(E, 4)``: x, y of the upper end, x, y of the lower one.
        rows: ``(E, 2)``: first row crossed, and the one after the last.
        ring: ``(E,)`` rings are numbered in the order of drawing.
        polygon: ``(R,)`` of each ring.
        hole: ``(R,)`` whether a ring is one.
    """

    ends: NDArray[np.float64]
    rows: NDArray[np.int64]
    ring: NDArray[np.int64]
    polygon: NDArray[np.int64]
    hole: NDArray[np.bool_]

    @classmethod
    def of(cls, annotations: Annotations, shape: tuple[int, ...]) -> _Edges:
        rings = [ring for polygon in annotations.polygons for ring in polygon.rings]
        counts = [len(polygon.rings) for polygon in annotations.polygons]
        polygon = np.repeat(np.arange(len(counts)), counts)
        hole = np.ones(len(rings), np.bool_)
        hole[np.cumsum([0, *counts[:-1]])[: len(counts)]] = False
        start = np.concatenate([np.zeros((0, 2)), *rings])
        end = np.concatenate([np.zeros((0, 2)), *(np.roll(ring, -1, axis=0) for ring in rings)])
        ring = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
        # One direction for all, so that polygons that share an edge share its rounding.
        up = (start[:, 1] < end[:, 1])[:, None]
        ends = np.concatenate([np.where(up, start, end), np.where(up, end, start)], axis=1)
        limit = float(shape[0])
        rows = np.ceil(ends[:, [1, 3]].clip(-1.0, limit + 1) - 0.5).clip(0, limit).astype(np.int64)
        crossing = rows[:, 1] > rows[:, 0]
        return cls(ends[crossing], rows[crossing], ring[crossing], polygon, hole)


def _bands(tree: Tree, edges: _Edges) -> Iterator[tuple[int, int]]:
    """Cut the image into bands of rows that are about equally much work."""
    height = tree.shape[0]
    size = tree.sizes()
    corner = tree.index[:, 0] * size
    changes = np.zeros(height + 1, np.int64)
    for rows, amount in (
        (edges.rows, 8),  # a place where a ring crosses costs that many times a row of a leaf
        (np.stack([corner, np.minimum(corner + size, height)], 1), 1),
    ):
        np.add.at(changes, rows[:, 0], amount)
        np.add.at(changes, rows[:, 1], -amount)
    work = np.cumsum(np.cumsum(changes[:-1]))
    top = 0
    while top < height:
        before = work[top - 1] if top else 0
        bottom = max(top + 1, int(np.searchsorted(work, before + _WORK, side="right")))
        yield top, bottom
        top = bottom


def _draw(edges: _Edges, ids: NDArray[np.int64], band: tuple[int, int], width: int) -> _Runs:
    """Draw the polygons on a band of rows, later ones over earlier ones."""
    top, bottom = band
    rows = np.arange(top, bottom)
    polygon, row, start, end = _spans(edges, band, width)
    stride = width + 1
    keys = np.concatenate([rows * stride, row * stride + start, row * stride + end])
    keys.sort()  # np.unique is four times as slow, by hashing
    keys = keys[(np.diff(keys, prepend=-1) > 0) & (keys % stride < width)]
    first, last = np.searchsorted(keys, row * stride + start), np.searchsorted(keys, row * stride + end)
    count = last - first
    covered = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    drawn = np.zeros(len(keys), np.int64)
    drawn[covered] = np.repeat(ids[polygon], count)  # of values for one place, the last stays
    where, columns = np.divmod(keys, stride)
    return _Runs(where, columns, drawn, (top, 0, bottom, width))


def _spans(edges: _Edges, band: tuple[int, int], width: int) -> tuple[NDArray[np.int64], ...]:
    """Polygon, row, first column and the one after the last of every stretch inside a polygon, as drawn."""
    top, bottom = band
    here = np.flatnonzero((edges.rows[:, 0] < bottom) & (edges.rows[:, 1] > top))
    first, last = edges.rows[here].clip(top, bottom).T
    count = last - first
    edge = np.repeat(here, count)
    row = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    x0, y0, x1, y1 = edges.ends[edge].T
    x = x0 + (row + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
    column = np.ceil(x.clip(-1, width + 1) - 0.5).clip(0, width).astype(np.int64)
    # Along a row, a ring is entered and left in turn.
    stride = width + 1
    ring = edges.ring[edge]
    order = np.lexsort((row * stride + column, ring))
    ring, row, column = ring[order], row[order], column[order]
    entered = np.where(np.arange(len(ring)) % 2 == 0, 1, -1)
    # A polygon is what lies in its outer ring and in none of its holes.
    polygon, hole = edges.polygon[ring], edges.hole[ring]
    order = np.lexsort((row * stride + column, polygon))
    polygon, row, column = polygon[order], row[order], column[order]
    outer, inner = np.where(hole, 0, entered)[order], np.where(hole, entered, 0)[order]
    inside = (np.cumsum(outer) > 0) & (np.cumsum(inner) == 0)
    final = np.ones(len(row), np.bool_)  # of all that happens at one place
    final[:-1] = (polygon[1:] != polygon[:-1]) | (row[1:] != row[:-1]) | (column[1:] != column[:-1])
    polygon, row, column, inside = polygon[final], row[final], column[final], inside[final]
    before = np.concatenate([[False], inside[:-1]])
    starts, ends = np.flatnonzero(inside & ~before), np.flatnonzero(~inside & before)
    return polygon[starts], row[starts], column[starts], column[ends]


def _classes(labels: Mapping[str, int], ignore: int | None) -> int:
    """How many classes labels have."""
    ids = set(labels.values()) - {ignore}
    if ids != set(range(len(ids))) or not ids:
        raise InputError(f"ids of labels are {sorted(ids)}; number the classes 0, 1, ... without gaps")
    return len(ids)


def _check_labels(annotations: Annotations, labels: Mapping[str, int]) -> None:
    """Refuse polygons of a class that has no id."""
    if unknown := [label for label in annotations.labels if label not in labels]:
        raise InputError(
            f"{annotations.source}: class {unknown[0]!r} is not among the labels ({', '.join(labels)}); "
            "add it to them with the id it stands for"
        )


def _check_ids(source: str, ids: NDArray[np.int64], classes: int, ignore: int | None) -> None:
    wrong = set(np.unique(ids).tolist()) - set(range(classes)) - {ignore}
    if wrong:
        raise InputError(
            f"{source}: holds id {min(wrong)}, which is none of the {classes} classes; add it to the labels"
        )
