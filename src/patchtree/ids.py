"""Class ids: the likeliest class of every pixel, painted without painting all probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.patches import Painter, painter
from patchtree.tree import Tree

Ids = NDArray[np.uint8 | np.uint16]
Region = tuple[int, int, int, int]

# One pixel in so many may be undecided, and so many in all when they are enlarged; a region with more is halved, and
# painted in full once it has no more than so many pixels on a side.
_FEW = 8
_MANY = 1 << 18
_PAINTED = 512
# The side of what is painted at once of an image: the larger, the more of it is as fine as its finest leaf. And the
# numbers that it may have.
_BLOCK, _NUMBERS = 1024, 1 << 25
# Pixels that are counted at a time, as 64-bit numbers take much room.
_COUNTED = 1 << 22
# Of four pixels in a row that three become: which, and which of the three counts 3/4, and which 1/4.
_WEIGHED = ((0, 0, 1), (1, 1, 0), (2, 1, 2), (3, 2, 1))


def type_of(classes: int) -> type[np.uint8 | np.uint16]:
    """Give the smallest type that holds the ids of so many classes.

    >>> type_of(256).__name__, type_of(257).__name__
    ('uint8', 'uint16')
    """
    return np.uint8 if classes <= 256 else np.uint16


def likeliest(shares: NDArray[np.float32]) -> Ids:
    """Give the class with the largest value, of several the first, ``(..., K)`` -> ``(...)``; fast for few classes.

    >>> likeliest(np.float32([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])).tolist()
    [1, 0]
    """
    classes = shares.shape[-1]
    if classes == 2:
        return (shares[..., 1] > shares[..., 0]).view(np.uint8)
    number = type_of(classes)
    ids: Ids = np.zeros(shares.shape[:-1], number)
    best = shares[..., 0].copy()
    for label in range(1, classes):
        # A copy first: what lies side by side is compared several times as fast.
        own = np.ascontiguousarray(shares[..., label])
        larger = (own > best).view(np.uint8)
        np.maximum(best, own, out=best)
        np.maximum(ids, larger * number(label), out=ids)
    return ids


def differences(shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keep of two classes only how much more likely the second is, ``(..., 2)`` -> ``(..., 1)``; of others all.

    >>> differences(np.float32([[0.25, 0.75]])).tolist()
    [[0.5]]
    """
    return shares[..., 1:] - shares[..., :1] if shares.shape[-1] == 2 else shares


def choose(values: NDArray[np.float32], classes: int) -> Ids:
    """Give the likeliest class from what `differences` keeps.

    >>> choose(np.float32([[0.5], [-0.5]]), classes=2).tolist()
    [1, 0]
    """
    return (values[..., 0] > 0).view(np.uint8) if classes == 2 else likeliest(values)


def count_ids(ids: Ids, classes: int) -> NDArray[np.int64]:
    """Count the pixels of each class, ``(...)`` -> ``(K,)``; fast for few classes.

    >>> count_ids(np.uint8([[0, 2, 2]]), 3).tolist()
    [1, 0, 2]
    """
    import cv2

    counts = np.zeros(classes, np.int64)
    some = cv2.countNonZero(ids.reshape(len(ids), -1))
    if classes == 2:
        counts[1] = some
    elif some:
        counts[1:] = [np.count_nonzero(ids == label) for label in range(1, classes)]
    counts[0] = ids.size - counts.sum()
    return counts


def count_pairs(true: NDArray[Any], given: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Count the pixels of every true class that were given every class, ``(...)`` twice -> ``(K, K)``.

    >>> count_pairs(np.uint8([0, 0, 1]), np.uint8([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    true, given = true.reshape(-1), given.reshape(-1)
    table = np.zeros(classes**2, np.int64)
    for at in range(0, true.size, _COUNTED):
        part = slice(at, at + _COUNTED)
        table += np.bincount(true[part].astype(np.int64) * classes + given[part], minlength=classes**2)
    return table.reshape(classes, classes)


def paint_ids(shares: NDArray[np.float32], tree: Tree, smooth: bool = True) -> Ids:
    """Paint the likeliest class of every pixel of an image, ``(N, p, p, K)`` -> ``(H, W)``.

    >>> from patchtree.tree import Tree
    >>> shares = np.float32([[[[0.2, 0.8], [1, 0]], [[1, 0], [1, 0]]]])
    >>> paint_ids(shares, Tree.uniform((4, 3), patch_size=2, level=1)).tolist()
    [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]

    Args:
        shares: the probability of each class at every patch pixel.
        tree: whose patches these are.
        smooth: interpolate probabilities between patch pixels before the likeliest class is taken, see `fill_ids`.
    """
    classes, (height, width) = shares.shape[-1], tree.shape
    ready = painter(differences(shares), tree, smooth)
    ids: Ids = np.empty((height, width), type_of(classes))
    side = max(1, min(_BLOCK, math.isqrt(_NUMBERS // classes)))
    for top in range(0, height, side):
        for left in range(0, width, side):
            bottom, right = min(top + side, height), min(left + side, width)
            fill_ids(ids[top:bottom, left:right], ready, classes, (top, left, bottom, right))
    return ids


def fill_ids(out: Ids, painter: Painter, classes: int, region: Region) -> None:
    """Paint the likeliest class of every pixel of a region.

    Between values whose likeliest class is the same, that class is the likeliest too. So where the pixels around one of
    a coarse level agree with it, all that is made of it is of its class; only the others, along the borders of classes,
    are enlarged, and again only those of theirs that are not decided then.

    >>> from patchtree.patches import painter
    >>> from patchtree.tree import Tree
    >>> shares = np.float32([[[[0.2, 0.8], [1, 0]], [[1, 0], [1, 0]]]])
    >>> ready = painter(differences(shares), Tree.uniform((4, 4), patch_size=2, level=1), smooth=True)
    >>> ids = np.zeros((4, 4), np.uint8)
    >>> fill_ids(ids, ready, 2, (0, 0, 4, 4))
    >>> ids.tolist()
    [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]

    Args:
        out: where the ids go, ``(h, w)``; where two classes are equally likely but for rounding, either of them.
        painter: of what `differences` keeps of the probabilities at all patch pixels, ``(N, p, p, K)``.
        classes: K.
        region: ``(y0, x0, y1, x1)`` in pixels.
    """
    import cv2

    values, origin, level = painter.finest(region)
    low, high = np.array(region[:2]), np.array(region[2:])
    first, last = low >> level, -(-high >> level)
    # A pixel more on every side; at the image's border those there go on.
    rows, columns = (
        np.clip(np.arange(first[axis] - 1, last[axis] + 1) - origin[axis], 0, values.shape[axis] - 1) for axis in (0, 1)
    )
    values = values[rows[:, None], columns]
    ids = choose(values, classes)
    mixed = np.zeros(last - first, bool)
    if painter.smooth and level:
        nearby = np.ones((3, 3), np.uint8)
        mixed = (cv2.erode(ids, nearby) != cv2.dilate(ids, nearby))[1:-1, 1:-1]
    some = np.count_nonzero(mixed)
    if some > mixed.size // _FEW or (some * values.shape[-1]) << level > _MANY:
        _halve(out, painter, classes, region)
        return
    # What is made of whole pixels goes where it belongs at once, if it is no more than that.
    height, width = (int(length) for length in (last - first) << level)
    whole = out if out.shape == (height, width) else np.empty((height, width), out.dtype)
    # Rows are copied whole, which takes a tenth of the time of enlarging by OpenCV.
    whole.reshape(-1, 1 << level, width)[:] = np.repeat(ids[1:-1, 1:-1], 1 << level, axis=1)[:, None]
    if some:
        place, three = np.stack(np.nonzero(mixed)), np.arange(3)
        around = values[place[0] + three[:, None, None], place[1] + three[:, None]]
        _decide(whole, place, np.moveaxis(around, -1, 0), first, level, painter, classes)
    if whole is not out:
        top, left = low - (first << level)
        out[:] = whole[top : top + len(out), left : left + out.shape[1]]


def _halve(out: Ids, painter: Painter, classes: int, region: Region) -> None:
    """Paint the halves of a region, or a small one in full."""
    y0, x0, y1, x1 = region
    if max(y1 - y0, x1 - x0) <= _PAINTED:
        out[:] = choose(painter.paint(region), classes)
    elif x1 - x0 > y1 - y0:
        half = (x1 - x0) // 2
        fill_ids(out[:, :half], painter, classes, (y0, x0, y1, x0 + half))
        fill_ids(out[:, half:], painter, classes, (y0, x0 + half, y1, x1))
    else:
        half = (y1 - y0) // 2
        fill_ids(out[:half], painter, classes, (y0, x0, y0 + half, x1))
        fill_ids(out[half:], painter, classes, (y0 + half, x0, y1, x1))


def _decide(
    out: Ids,
    place: NDArray[np.int64],
    around: NDArray[np.float32],
    first: NDArray[np.int64],
    level: int,
    painter: Painter,
    classes: int,
) -> None:
    """Enlarge pixels that are not decided level by level, and write those that then are.

    Args:
        out: ids of a box, ``(h, w)``, at these pixels those of their own values.
        place: of the pixels, from the box's corner on, ``(2, M)``.
        around: values at and next to them, ``(K, 3, 3, M)``.
        first: the box's corner, in pixels of their level.
        level: of the pixels.
        painter: see `fill_ids`.
        classes: see `fill_ids`.
    """
    shown = out[tuple(place << level)]
    for finer in range(level - 1, -1, -1):
        # The four pixels that one becomes, and the next ones on every side.
        values = _double(around)
        ids = choose(values.transpose(1, 2, 3, 0), classes)
        own = ids[1:3, 1:3]
        mixed = _each_three(np.minimum, ids) != _each_three(np.maximum, ids) if finer else np.zeros(own.shape, bool)
        y, x, which = np.nonzero((own != shown) & ~mixed)
        step = 1 << finer
        blocks = out.reshape(len(out) // step, step, -1, step)
        blocks[2 * place[0, which] + y, :, 2 * place[1, which] + x] = own[y, x, which, None, None]
        if not mixed.any():
            return
        around = np.concatenate([values[:, y : y + 3, x : x + 3, mixed[y, x]] for y in (0, 1) for x in (0, 1)], -1)
        y, x, which = np.nonzero(mixed)
        place, shown, first = 2 * place[:, which] + (y, x), shown[which], 2 * first
        # Beyond the last cells, as when all is painted, the last pixel goes on.
        down, right = place == (painter.extent(finer) - 1 - first)[:, None]
        around[:, 2, :, down] = around[:, 1, :, down]
        around[:, :, 2, right] = around[:, :, 1, right]


def _double(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Enlarge 3 x 3 pixels linearly, ``(K, 3, 3, M)`` -> ``(K, 4, 4, M)``: the middle one, and half of those around."""
    near, far = values * np.float32(0.75), values * np.float32(0.25)
    values = np.empty((len(values), 3, 4, values.shape[-1]), values.dtype)
    for to, a, b in _WEIGHED:
        np.add(near[:, :, a], far[:, :, b], out=values[:, :, to])
    near, far = values * np.float32(0.75), values * np.float32(0.25)
    values = np.empty((len(values), 4, 4, values.shape[-1]), values.dtype)
    for to, a, b in _WEIGHED:
        np.add(near[:, a], far[:, b], out=values[:, to])
    return values


def _each_three(reduce: np.ufunc, ids: Ids) -> Ids:
    """Reduce ``(4, 4, M)`` over each 3 x 3, to ``(2, 2, M)``."""
    rows = reduce(reduce(ids[:2], ids[1:3]), ids[2:])
    return np.asarray(reduce(reduce(rows[:, :2], rows[:, 1:3]), rows[:, 2:]))
