"""Cut an image into patches, and paint values on leaves back into an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.pyramid import by_channels, pyramid
from patchtree.tree import Tree

_Cells = tuple[NDArray[np.int32], NDArray[Any]]
_Sorted = tuple[NDArray[np.int32], NDArray[Any], NDArray[np.int32], NDArray[np.int64]]


def cut(image: NDArray[Any], tree: Tree) -> NDArray[Any]:
    """Average every leaf of an image to ``p x p`` pixels.

    A leaf of level ``l`` is a block of the image halved ``l`` times, so this is one gather a level. Patch pixels that
    reach over the image's far border are the mean of what lies inside; those wholly outside repeat the nearest.
    Integers are rounded once (8-bit ones twice, above level 1: at most one grey level off), booleans by majority.

    >>> image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    >>> cut(image, Tree.uniform((4, 4), patch_size=2, level=1)).tolist()
    [[[3, 5], [11, 13]]]

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, with a 3-D tree ``(D, H, W)`` or ``(D, H, W, C)``, of any real type.
        tree: a tree of the image's shape.

    Returns:
        ``(N, p, p)`` or ``(N, p, p, C)`` (one more ``p`` in 3-D), the image's type.

    Raises:
        InputError: the tree was made for another shape, or the image's type is none of numbers.
    """
    image = np.asarray(image)
    if image.dtype.kind not in "biuf":
        raise InputError(f"an image of type {image.dtype} cannot be cut; give booleans, integers or floats")
    if image.shape[: tree.ndim] != tree.shape or image.ndim > tree.ndim + 1:
        raise InputError(f"an image of shape {image.shape} does not fit a tree made for {tree.shape}")
    pixels = image if image.ndim > tree.ndim else image[..., None]
    out = np.empty((len(tree), *(tree.patch_size,) * tree.ndim, pixels.shape[-1]), image.dtype)
    top = int(tree.level.max(initial=0))
    for level, picture in enumerate(pyramid(pixels, top, exact=image.dtype != np.uint8)):
        here = np.flatnonzero(tree.level == level)
        if len(here):
            blocks = _gather(picture.values, tree.index[here], tree.patch_size)
            out[here] = picture.cast(blocks, image.dtype)
    return out if image.ndim > tree.ndim else out[..., 0]


def full_scale(dtype: np.dtype[Any]) -> float:
    """Give what is 1 on the scale that models see: the largest number of 8 and 16 bits without sign, else 1.

    >>> full_scale(np.dtype(np.uint8)), full_scale(np.dtype(np.float32))
    (255.0, 1.0)
    """
    return float(np.iinfo(dtype).max) if dtype.name in ("uint8", "uint16") else 1.0


def count_labels(mask: NDArray[Any], tree: Tree, classes: int, ignore: int | None = None) -> NDArray[np.float32]:
    """Count the pixels of each class under each patch pixel.

    The counts over their sum are the soft label of a patch pixel, their sum is its weight. Pixels outside the image and
    those of the ignored id are counted nowhere.

    >>> mask = np.array([[0, 0, 1, 1], [0, 2, 1, 1]])
    >>> count_labels(mask, Tree.uniform((2, 4), patch_size=2, level=1), classes=3).tolist()
    [[[[3.0, 0.0, 1.0], [0.0, 4.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]]

    Args:
        mask: class ids, ``(H, W)`` or ``(D, H, W)``, each below ``classes`` or equal to ``ignore``.
        tree: a tree of the mask's shape.
        classes: number of classes, ``K``.
        ignore: the id of pixels without a label.

    Returns:
        ``(N, p, p, K)`` float32, whole numbers.

    Raises:
        InputError: the tree was made for another shape, or an id is not a class.
    """
    mask = np.asarray(mask)
    if mask.shape != tree.shape:
        raise InputError(f"a mask of shape {mask.shape} does not fit a tree made for {tree.shape}")
    weights = tree.weights()
    counts = np.zeros((*weights.shape, classes), np.float32)
    # What is of no other class is of the first, which most pixels are of: it is not counted.
    counts[..., 0] = weights
    left = mask.size
    for label in sorted({*range(classes), *(() if ignore is None else (ignore,))} - {0}):
        member = mask == label
        if number := int(np.count_nonzero(member)):
            found = np.where(weights > 0, _count(member, tree), 0)
            counts[..., 0] -= found
            left -= number
            if label != ignore:
                counts[..., label] = found
    if ignore == 0:
        counts[..., 0] = 0
    if left != np.count_nonzero(mask == 0):
        wrong = sorted(set(np.unique(mask).tolist()) - set(range(classes)) - {ignore})
        raise InputError(
            f"the mask holds id {wrong[0]}, which is none of the {classes} classes; add it to the labels, or give "
            f"ignore={wrong[0]} if it means no label"
        )
    return counts


def _count(member: NDArray[np.bool_], tree: Tree) -> NDArray[np.float32]:
    """Count the true pixels under each patch pixel, exactly: by halving sums, with nothing outside the image."""
    counts = np.empty((len(tree), *(tree.patch_size,) * tree.ndim), np.float32)
    for level, (sums, unit) in enumerate(sum_blocks(member, int(tree.level.max()))):
        here = np.flatnonzero(tree.level == level)
        if len(here):
            counts[here] = _gather(sums[..., None], tree.index[here], tree.patch_size)[..., 0] // np.uint8(unit)
    return counts


def sum_blocks(member: NDArray[np.bool_], levels: int) -> Iterator[tuple[NDArray[Any], int]]:
    """Count the true pixels in blocks of 1, 2, 4, ... pixels on a side: yield the counts, and what they are to be
    divided by.

    >>> [(sums.tolist(), unit) for sums, unit in sum_blocks(np.eye(2, dtype=bool), levels=1)]
    [([[240, 0], [0, 240]], 240), ([[120]], 60)]
    """
    import cv2

    sums: NDArray[Any] = member.view(np.uint8)
    unit = 1
    if levels and member.ndim == 2:
        # Means of four are quick in 8 bits, and whole numbers twice: 240, 60, 15.
        sums, unit = sums * np.uint8(240), 240
    yield sums, unit
    for level in range(1, levels + 1):
        if unit % 4 == 0:
            below, right = (length % 2 for length in sums.shape)
            if below or right:
                sums = np.asarray(cv2.copyMakeBorder(sums, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0))
            sums = np.asarray(cv2.resize(sums, (sums.shape[1] // 2, sums.shape[0] // 2), interpolation=cv2.INTER_AREA))
            unit //= 4
        else:
            if unit > 1:
                sums, unit = sums // np.uint8(unit), 1
            sums = _halve_sums(sums, np.min_scalar_type(1 << member.ndim * level))
        yield sums, unit


def _halve_sums(sums: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Add blocks of two numbers along every axis, with zeros beyond the far border."""
    if any(length % 2 for length in sums.shape):
        sums = np.pad(sums, [(0, length % 2) for length in sums.shape])
    for axis in range(sums.ndim - 1):
        lines = sums.swapaxes(0, axis)
        sums = np.add(lines[::2], lines[1::2], dtype=dtype).swapaxes(0, axis)
    if sums.itemsize > 2 or not sums.flags.c_contiguous:
        return np.asarray(np.add(sums[..., ::2], sums[..., 1::2], dtype=dtype))
    # Two neighbours in a row are one number of twice as many bytes: numpy adds every other number far more slowly.
    bits = 8 * sums.itemsize
    pairs = sums.view(f"u{2 * sums.itemsize}")
    return np.asarray((pairs & ((1 << bits) - 1)) + (pairs >> bits), dtype)


def paint(
    values: NDArray[Any], tree: Tree, region: tuple[int, ...] | None = None, smooth: bool = False
) -> NDArray[Any]:
    """Write values per leaf or per patch pixel back to the image's own grid; the inverse of `cut`.

    >>> tree = Tree.uniform((2, 3), patch_size=2)
    >>> paint(np.array([7, 8]), tree).tolist()
    [[7, 7, 8], [7, 7, 8]]
    >>> image = np.arange(6).reshape(2, 3)
    >>> np.array_equal(paint(cut(image, tree), tree), image)
    True

    Args:
        values: ``(N, p, p, ...)``, one a patch pixel, or ``(N, ...)``, one a leaf (``(N, p, p, p, ...)`` in 3-D). A
            coarser grid ``(N, g, g, ...)`` will do where ``g`` divides ``p``; so features of a leaf that are
            themselves ``g x g`` must be flattened.
        tree: the tree that the values belong to.
        region: part of the image to paint, ``(y0, x0, y1, x1)`` in pixels; None paints all of it.
        smooth: interpolate linearly between the values of a level, and across levels, instead of repeating the nearest
            value. For probabilities and features, not for labels.

    Returns:
        ``(H, W, ...)`` or ``(D, H, W, ...)``, or the region's part of it; the values' type.

    Raises:
        InputError: the values do not fit the tree, or the region is not a part of the image.
    """
    return painter(values, tree, smooth).paint(region)


def band(shape: tuple[int, ...], top: int, bottom: int) -> tuple[int, ...]:
    """Give the region of an image that is some of its rows, or of a volume some of its slices.

    >>> band((4, 5, 6), top=1, bottom=3)
    (1, 0, 0, 3, 5, 6)
    """
    rest = shape[1:]
    return (top, *(0,) * len(rest), bottom, *rest)


def painter(values: NDArray[Any], tree: Tree, smooth: bool = False) -> Painter:
    """Do once what painting many regions of an image has in common.

    >>> painter(np.array([7, 8]), Tree.uniform((2, 3), patch_size=2)).paint((0, 1, 1, 3)).tolist()
    [[7, 8]]

    Args:
        values: see `paint`.
        tree: see `paint`.
        smooth: see `paint`.

    Raises:
        InputError: the values do not fit the tree.
    """
    values = np.asarray(values)
    if not values.ndim or len(values) != len(tree):
        raise InputError(f"values of shape {values.shape} do not fit a tree of {len(tree)} leaves")
    if smooth and values.dtype.kind != "f":
        raise InputError(f"values of type {values.dtype} cannot be painted smoothly; give floats, or smooth=False")
    grid = values.shape[1 : 1 + tree.ndim]
    gridded = len(grid) == tree.ndim and len(set(grid)) == 1 and grid[0] > 0 and tree.patch_size % grid[0] == 0
    side, rest = (grid[0], values.shape[1 + tree.ndim :]) if gridded else (1, values.shape[1:])
    cells = values.reshape(len(tree), *(side,) * tree.ndim, -1)
    levels = [_sort_rows(*level) for level in (_with_parents if smooth else _leaves)(cells, tree)]
    return Painter(levels, tree, smooth, rest)


@dataclass(frozen=True, eq=False)
class Painter:
    """Values on a tree, made ready by `painter`.

    Attributes:
        levels: the cells that have values, finest first.
        tree: that they belong to.
        smooth: whether they are interpolated.
        rest: shape of the values of a pixel.
    """

    levels: list[_Sorted]
    tree: Tree
    smooth: bool
    rest: tuple[int, ...]

    def paint(self, region: tuple[int, ...] | None = None) -> NDArray[Any]:
        """Paint a part of the image, as `patchtree.paint` does."""
        low, high = _region(self.tree, region)
        painted, origin, level = self.finest(region)
        side = self.levels[0][1].shape[1]
        for finer in range(level - 1, -1, -1):
            origin = 2 * origin
            painted = _crop(_enlarge(painted, 2, self.smooth), np.zeros_like(origin), self.extent(finer) - origin)
        factor = self.tree.patch_size // side
        if factor > 1:
            painted, origin = _enlarge(painted, factor, self.smooth), origin * factor
        painted = np.ascontiguousarray(_crop(painted, low - origin, high - low))
        return painted.reshape(*painted.shape[:-1], *self.rest)

    def extent(self, level: int) -> NDArray[np.int64]:
        """Give the shape of a level in its own pixels, up to the end of the last cells."""
        cells = -(-np.array(self.tree.shape) // (self.tree.patch_size << level))
        return np.asarray(cells * self.levels[0][1].shape[1])

    def finest(self, region: tuple[int, ...] | None = None) -> tuple[NDArray[Any], NDArray[np.int64], int]:
        """Paint a part of the image in pixels of the finest level that has values of its own near it.

        Going down the levels, what is painted is enlarged, then overwritten in the cells that have values of their own.
        At each level only the cells near the region are painted. Two more on every side hold all the pixels that a
        smooth region is interpolated from, so that a region is painted as the same part of the whole image is. Levels
        above one where every cell has values of its own are of no use, and at the finest two pixels do for a margin.

        Returns:
            ``(h, w, C)``, its first pixel, in pixels of the level, and the level.
        """
        (low, high), levels, tree = _region(self.tree, region), self.levels, self.tree
        values, shape = levels[0][1], np.array(tree.shape)
        side, margin = values.shape[1], 2 if self.smooth else 0
        spans, near = [], []
        for level, (index, _, rows, order) in enumerate(levels):
            step = tree.patch_size << level
            first = np.maximum(low // step - margin, 0)
            last = np.minimum(-(-high // step) + margin, -(-shape // step))
            spans.append((first, last))
            here = order[slice(*np.searchsorted(rows, (first[0], last[0])))]
            rest = index[here, 1:]
            near.append(here[((rest >= first[1:]) & (rest < last[1:])).all(axis=1)])
            if len(near[-1]) == (last - first).prod():
                break
        finest = next(level for level, here in enumerate(near) if len(here))
        first, last = spans[-1]
        painted = np.zeros((*(last - first) * side, values.shape[-1]), values.dtype)
        origin = first * side
        for level in range(len(near) - 1, finest - 1, -1):
            (index, blocks, *_), (first, last), here = levels[level], spans[level], near[level]
            if level < len(near) - 1:
                painted = _crop(_enlarge(painted, 2, self.smooth), first * side - 2 * origin, (last - first) * side)
            origin = first * side
            grid = painted.reshape(*(n for cells in last - first for n in (cells, side)), -1)
            grid[_every_other(index[here] - first)] = blocks[here]
        factor = tree.patch_size // side
        unit = factor << finest
        first = np.maximum(low // unit - margin, origin)
        last = np.minimum(-(-high // unit) + margin, origin + painted.shape[:-1])
        painted, origin = _crop(painted, first - origin, last - first), first
        return painted, origin, finest


def _region(tree: Tree, region: tuple[int, ...] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    box = np.array((0,) * tree.ndim + tree.shape if region is None else region, np.int64)
    if box.shape != (2 * tree.ndim,):
        raise InputError(
            f"region {region} is not a box; give {2 * tree.ndim} numbers, the low corner, then the high one"
        )
    low, high = box[: tree.ndim], box[tree.ndim :]
    if (low < 0).any() or (high > tree.shape).any() or (low >= high).any():
        raise InputError(f"region {tuple(box.tolist())} is not a part of an image of shape {tree.shape}")
    return low, high


def _sort_rows(index: NDArray[np.int32], blocks: NDArray[Any]) -> _Sorted:
    """Add the cells' first indices, sorted, and the cells in that order."""
    order = np.argsort(index[:, 0], kind="stable")
    return index, blocks, index[order, 0], order


def _leaves(values: NDArray[Any], tree: Tree) -> list[_Cells]:
    """Sort leaves and their values by level."""
    chosen = [tree.level == level for level in range(int(tree.level.max()) + 1)]
    return [(tree.index[here], values[here]) for here in chosen]


def _with_parents(values: NDArray[Any], tree: Tree) -> list[_Cells]:
    """Add to each level the cells that were split, with the means of their children."""
    ndim, side = tree.ndim, values.shape[1]
    levels = _leaves(values, tree)
    for level in range(len(levels) - 1):
        index, blocks = levels[level]
        parents, which = np.unique(index >> 1, axis=0, return_inverse=True)
        which = which.reshape(-1)
        if not len(parents):
            continue
        canvas = np.empty((len(parents), *(2, side) * ndim, values.shape[-1]), values.dtype)
        children = np.bincount(which)
        few = children < 1 << ndim
        if few.any():
            # A child outside the image is given its parent's mean.
            total, here = np.zeros((len(parents), values.shape[-1])), few[which]
            np.add.at(total, which[here], blocks[here].mean(axis=tuple(range(1, ndim + 1))))
            canvas[few] = (total[few] / children[few, None]).reshape(-1, *(1, 1) * ndim, values.shape[-1])
        canvas[(which, *_every_other(index & 1))] = blocks
        means = _halve(canvas.reshape(len(parents), *(2 * side,) * ndim, -1))
        upper, own = levels[level + 1]
        levels[level + 1] = (np.concatenate([upper, parents]), np.concatenate([own, means]))
    return levels


def _halve(blocks: NDArray[Any]) -> NDArray[Any]:
    """Average 2 pixels along each axis, ``(M, 2 n, 2 n, C)`` -> ``(M, n, n, C)``."""
    # numpy's own mean takes three times as long where there are few channels.
    ndim = blocks.ndim - 2
    for axis in range(1, ndim + 1):
        lines = blocks.swapaxes(0, axis)
        blocks = (lines[::2] + lines[1::2]).swapaxes(0, axis)
    return np.asarray(blocks * blocks.dtype.type(0.5**ndim))


def _every_other(index: NDArray[np.int32]) -> tuple[Any, ...]:
    """Turn grid indices ``(M, d)`` into an indexing of axes (cell, pixel, cell, pixel, ...)."""
    return tuple(item for axis in index.T for item in (axis, slice(None)))[:-1]


def _crop(picture: NDArray[Any], start: NDArray[np.int64], shape: NDArray[np.int64]) -> NDArray[Any]:
    return picture[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]


def _enlarge(picture: NDArray[Any], factor: int, smooth: bool) -> NDArray[Any]:
    """Enlarge every spatial axis, by repeating or linearly; the outermost half pixels are constant."""
    if not smooth:
        # From the last axis on, as the copies of a row, of many pixels, are the quick ones to make.
        for axis in range(picture.ndim - 2, -1, -1):
            last = axis == picture.ndim - 2
            picture = _double(picture) if last and factor == 2 else np.repeat(picture, factor, axis=axis)
        return picture
    import cv2

    work: NDArray[Any] = picture.astype(np.float32 if picture.dtype.itemsize <= 4 else np.float64, copy=False)
    if picture.ndim == 4:
        planes = np.stack([_enlarge(plane, factor, smooth) for plane in work])
        return _interpolate(planes, factor).astype(picture.dtype, copy=False)
    height, width, _ = picture.shape
    if factor & (factor - 1):
        # OpenCV has places in single precision, where only powers of two divide without rounding.
        rows = _interpolate(work, factor).swapaxes(0, 1)
        return _interpolate(rows, factor).swapaxes(0, 1).astype(picture.dtype, copy=False)
    size = (width * factor, height * factor)
    out = by_channels(work, lambda few, _: cv2.resize(few, size, interpolation=cv2.INTER_LINEAR))
    return out.astype(picture.dtype, copy=False)


def _interpolate(picture: NDArray[np.floating[Any]], factor: int) -> NDArray[np.floating[Any]]:
    """Enlarge the first axis linearly; the outermost half pixels are constant."""
    import cv2

    length = len(picture)
    place = np.clip((np.arange(length * factor) + 0.5) / factor - 0.5, 0, length - 1)
    near = place.astype(np.int64)
    far = np.minimum(near + 1, length - 1)
    # A line at a time: no arrays as large as the picture in between.
    lines = np.ascontiguousarray(picture).reshape(length, picture.shape[1], -1)
    out = np.empty((length * factor, *lines.shape[1:]), picture.dtype)
    for at, (a, b, share) in enumerate(zip(near.tolist(), far.tolist(), (place - near).tolist(), strict=True)):
        cv2.addWeighted(lines[a], 1 - share, lines[b], share, 0, dst=out[at])
    return out.reshape(-1, *picture.shape[1:])


def _double(picture: NDArray[Any]) -> NDArray[Any]:
    """Repeat every pixel along the last spatial axis."""
    size = picture.shape[-1] * picture.dtype.itemsize
    if size not in (1, 2, 4):
        return np.repeat(picture, 2, axis=-2)
    # A pixel next to itself is one number of twice its bytes; numpy multiplies far quicker than it repeats.
    twice = np.multiply(picture.view(f"u{size}"), (1 << 8 * size) + 1, dtype=f"u{2 * size}")
    return np.asarray(twice.view(picture.dtype).reshape(*picture.shape[:-2], -1, picture.shape[-1]))


def _gather(values: NDArray[Any], index: NDArray[np.int32], side: int) -> NDArray[Any]:
    """Copy blocks of ``side`` pixels out of a pyramid level, ``(M, side, side, C)``, its last pixels repeated."""
    ndim = index.shape[1]
    whole = tuple(length // side for length in values.shape[:ndim])
    inner = (index < whole).all(axis=1)
    strides = tuple(side * step for step in values.strides[:ndim])
    blocks = np.lib.stride_tricks.as_strided(
        values, (*whole, *(side,) * ndim, values.shape[-1]), (*strides, *values.strides), writeable=False
    )
    if inner.all():
        return np.asarray(blocks[tuple(index.T)])
    out = np.empty((len(index), *(side,) * ndim, values.shape[-1]), values.dtype)
    out[inner] = blocks[tuple(index[inner].T)]
    places = []
    for axis in range(ndim):
        along = np.minimum(index[~inner, axis, None] * side + np.arange(side), values.shape[axis] - 1)
        places.append(along.reshape((-1,) + (1,) * axis + (side,) + (1,) * (ndim - 1 - axis)))
    out[~inner] = values[tuple(places)]
    return out
