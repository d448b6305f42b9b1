"""An image's coarser levels on disk, and windows patched from them: pixels that no patch needs are not read.

Level ``l`` is the image halved ``l`` times, a mip map in computer graphics. A leaf of level ``l`` takes its pixels from
that level, wherever the window's turns and angle put them: patches are turned, the window is not.

Source: L. Williams, Pyramidal parametrics, SIGGRAPH 1983.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, log2, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.augment import Window, take, to_image
from patchtree.cache import Cached
from patchtree.detail import Residual, as_detail, hidden_energy, measure_residual
from patchtree.errors import InputError
from patchtree.files import replacing
from patchtree.noise import estimate_noise
from patchtree.patcher import Patcher
from patchtree.patches import sum_blocks
from patchtree.pyramid import pyramid
from patchtree.refine import refine
from patchtree.tree import Tree, root_level

# Windows take this share of their pixels at most; with more, to turn them whole is as quick.
_FEW = 0.5
# Trees are planned on the image halved so often.
_PLANNED = 2
# Levels are made down to so many pixels on a side: no patches are smaller.
_SMALLEST = 4
# What a pixel has that is all of one class: in 8 bits as `sum_blocks` gives it, in 16 such that shares of fewer than 8
# levels are whole numbers.
_WHOLE = {np.dtype(np.uint8): 240, np.dtype(np.uint16): 3 << 14}
# What OpenCV samples at once: channels, and rows or columns of pixels or of places.
_CV_CHANNELS, _CV_SIDE = 4, 1 << 14
_ALIGNED = 64
# Images that a process has open, with three files each.
_OPEN = 48
_FILE = "mips-1.bin"


@dataclass(frozen=True, eq=False)
class Mips:
    """The levels of an image and its mask.

    Attributes:
        image: ``(h, w, C)`` each, halved 0, 1, ... times, of the image's type.
        mask: class ids ``(H, W)``; None if nothing is labelled.
        shares: for each level but the first, ``(k, h, w)``: how much of a pixel is of each of `ids`.
        ids: those of the mask but 0, the ignored one among them.
        planned: the image halved twice, ``(h, w, C)`` float32.
        hidden: squared error of showing the image by its first level, and that by the second, in each pixel of
            `planned`, ``(h, w, 2)`` float32.
        variance: of the image's noise, summed over channels.
    """

    image: tuple[NDArray[Any], ...]
    mask: NDArray[Any] | None
    shares: tuple[NDArray[Any], ...]
    ids: tuple[int, ...]
    planned: NDArray[np.float32]
    hidden: NDArray[np.float32]
    variance: float


def suits(patcher: Patcher, window: Window, channels: int) -> bool:
    """Whether a window is better patched from levels: its patches show far fewer pixels than it has.

    >>> [suits(Patcher(16, budget, detail="residual"), Window((0, 0), (1024, 1024)), 3) for budget in (1000, 4000)]
    [True, False]

    Args:
        patcher: how it is patched.
        window: the plan.
        channels: of the image.
    """
    p = patcher.patch_size
    few = patcher.budget is not None and patcher.budget * p**2 <= _FEW * prod(window.shape)
    large = min(window.shape) >= p << _PLANNED + 1
    # Cells are whole pixels of the planned level, and no larger than the smallest level that is made.
    fits = p % 2 == 0 and p >= _SMALLEST and p * p < _CV_SIDE and patcher.max_level is None
    return few and large and fits and type(as_detail(patcher.detail)) is Residual and channels <= _CV_CHANNELS


def work(images: Iterable[Cached]) -> int:
    """Say how much work it is to make the levels of images: their pixels, times the planes that are halved.

    >>> work([])
    0
    """
    return sum(prod(image.shape) * (image.channels + sum(map(bool, image.pixels))) for image in images)


def align(window: Window) -> Window:
    """Move and shrink a window by a few pixels, so that those of the planned level are not split.

    >>> align(Window((10, 21), (1023, 1024)))
    Window(corner=(8, 20), shape=(1020, 1024), angle=0.0, scale=1.0, flip=False, turns=0)
    """
    step = 1 << _PLANNED
    corner, shape = ((y // step * step, x // step * step) for y, x in (window.corner, window.shape))
    return replace(window, corner=corner, shape=shape)


@lru_cache(_OPEN)
def open_mips(source: Cached) -> Mips:
    """Open the levels of an image that `patchtree.cache` holds; they are made beside it when first asked for."""
    path = source.folder / _FILE
    if path.exists():
        return _read(path, source)
    labels = [label for label, pixels in enumerate(source.pixels) if pixels]
    mask = source.mask() if source.pixels else None
    if mask is not None and sum(source.pixels) < mask.size:  # the ignored id is none of the classes
        labels = np.unique(mask).tolist()
    mips = make_mips(source.image(), mask, labels)
    try:
        with replacing(path) as temporary:
            _write(mips, temporary)
    except (InputError, OSError):  # a cache that is full or may only be read: they stay in memory
        return mips
    return _read(path, source)


def make_mips(image: NDArray[Any], mask: NDArray[Any] | None, labels: Sequence[int] = ()) -> Mips:
    """Halve an image and the shares of its classes.

    >>> mips = make_mips(np.zeros((40, 60), np.uint8), np.eye(40, 60, dtype=np.uint8), labels=(0, 1))
    >>> [level.shape for level in mips.image], mips.ids, int(mips.shares[0].max())
    ([(40, 60, 1), (20, 30, 1), (10, 15, 1), (5, 8, 1), (3, 4, 1)], (1,), 120)

    Args:
        image: ``(H, W)`` or ``(H, W, C)``.
        mask: ``(H, W)`` class ids.
        labels: the ids that the mask has.
    """
    image = image if image.ndim == 3 else image[..., None]
    shape = image.shape[:2]
    top = max(_PLANNED, ceil(log2(max(shape) / _SMALLEST)))
    pictures = list(pyramid(image, top))
    ids: tuple[int, ...] = ()
    shares: tuple[NDArray[Any], ...] = ()
    if mask is not None:
        ids = tuple(label for label in labels if label)
        of_each = [list(_shares(mask == label, top)) for label in ids]
        shares = tuple(np.stack(level) for level in zip(*of_each, strict=True))
    planned = pictures[_PLANNED]
    return Mips(
        image=(image, *(picture.cast(picture.values, image.dtype) for picture in pictures[1:])),
        mask=mask,
        shares=shares,
        ids=ids,
        planned=planned.values.astype(np.float32) * np.float32(planned.scale),
        hidden=np.stack(hidden_energy(pictures[: _PLANNED + 1], shape), axis=-1).astype(np.float32),
        variance=float(np.sum(estimate_noise(image) ** 2)),
    )


def _shares(member: NDArray[np.bool_], top: int) -> Iterator[NDArray[Any]]:
    """Give the share of true pixels in each pixel of levels 1 to `top`, of those inside the image."""
    for level, (sums, unit) in enumerate(sum_blocks(member, top)):
        if not level:
            continue
        scale = _WHOLE[np.dtype(np.uint16)] / 4.0**level
        share = sums.copy() if unit > 1 else (sums * scale).astype(np.uint16)
        for axis, length in enumerate(member.shape):
            inside = length - (length - 1 >> level << level)
            if inside < 1 << level:
                share.swapaxes(0, axis)[-1] = np.rint(share.swapaxes(0, axis)[-1] * ((1 << level) / inside))
        yield share


def cut_window(
    mips: Mips, window: Window, patcher: Patcher, classes: int, ignore: int | None = None
) -> tuple[NDArray[Any], Tree, NDArray[np.float32]]:
    """Plan the tree of a window, cut its patches and count their labels.

    A window that is not rotated or scaled, and whose place and size are multiples of four, gives what `take`, `Patcher`
    and `count_labels` give, but for the rounding of grey levels, and for leaves above level 2, which are interpolated.
    The noise that is taken off the detail is that of the whole image, not of the window.

    >>> mips = make_mips(np.zeros((256, 256, 3), np.uint8), np.ones((256, 256), np.uint8), labels=[1])
    >>> pixels, tree, counts = cut_window(mips, Window((0, 0), (128, 256), turns=1), Patcher(detail="residual"), 2)
    >>> pixels.shape, tree.shape, counts.sum(axis=(0, 1, 2)).tolist()
    ((1, 16, 16, 3), (256, 128), [0.0, 32768.0])

    Args:
        mips: of the image.
        window: the plan.
        patcher: its detail is `Residual`.
        classes: number of classes, ``K``; 0: there is no mask.
        ignore: id of pixels without a label.

    Returns:
        The patches ``(N, p, p, C)``, their tree, and the pixels of each class in each patch pixel ``(N, p, p, K)``.
    """
    matrix, p = to_image(window), patcher.patch_size
    tree = _plan(mips, window, patcher)
    pixels = np.empty((len(tree), p, p, mips.image[0].shape[2]), mips.image[0].dtype)
    counts = np.zeros((len(tree), p, p, classes), np.float32)
    weights = tree.weights()
    for level in np.unique(tree.level).tolist():
        here = np.flatnonzero(tree.level == level)
        where = _locate(tree, here, level, matrix)
        pixels[here] = _sample(mips.image[level], where)
        if classes:
            counts[here] = _count(mips, level, where, weights[here], classes, ignore)
    return pixels, tree, counts


def _count(
    mips: Mips, level: int, where: NDArray[np.float32], weights: NDArray[np.float32], classes: int, ignore: int | None
) -> NDArray[np.float32]:
    """Count the pixels of each class in patch pixels of a level, ``(n, p, p, K)``."""
    counts = np.zeros((*weights.shape, classes), np.float32)
    rest = weights
    ids = _sample(mips.mask, where, nearest=True)[..., 0] if level == 0 and mips.mask is not None else None
    for at, label in enumerate(mips.ids):
        if ids is None:
            share = _sample(mips.shares[level - 1][at], where)[..., 0]
            found = share * (weights / np.float32(_WHOLE[share.dtype]))
        else:
            found = np.where(ids == label, weights, np.float32(0))
        rest = rest - found
        if label != ignore:
            counts[..., label] = found
    if ignore != 0:
        np.maximum(rest, 0, out=counts[..., 0])
    return counts


def _plan(mips: Mips, window: Window, patcher: Patcher) -> Tree:
    """Make the tree of a window by what its levels hide."""
    step, p = 1 << _PLANNED, patcher.patch_size
    corner, size = ((y // step, x // step) for y, x in (window.corner, window.shape))
    small = replace(window, corner=corner, shape=size)
    planned, hidden = take(mips.planned, small), take(mips.hidden, small)
    shape = (step * planned.shape[0], step * planned.shape[1])
    detail = as_detail(patcher.detail)
    assert isinstance(detail, Residual)
    variance = mips.variance if detail.noise is None else planned.shape[2] * detail.noise**2
    levels = root_level(shape, p, None)
    known = [_sum_cells(hidden[..., at], (p << at + 1) // step) for at in range(min(levels, _PLANNED))]
    pictures = pyramid(planned, max(0, levels - _PLANNED), shape=shape, halved=_PLANNED)
    details = measure_residual(pictures, p, shape, variance, _PLANNED, known)
    return refine(details, shape, p, patcher.budget, patcher.threshold, patcher.balanced)


def _sum_cells(values: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Sum blocks of `side`, fewer at the far border."""
    import cv2

    below, right = (-length % side for length in values.shape)
    whole = cv2.copyMakeBorder(values, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0)
    size = (whole.shape[1] // side, whole.shape[0] // side)
    return side**2 * cv2.resize(whole, size, interpolation=cv2.INTER_AREA).astype(np.float64)


def _locate(tree: Tree, here: NDArray[np.int64], level: int, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Say where leaves' patch pixels lie in a level of the image, ``(2, n, p, p)``: x and y, pixel i centred at i."""
    p = tree.patch_size
    y, x = (
        np.minimum((tree.index[here, axis, None] * p + np.arange(p) + 0.5) * (1 << level), tree.shape[axis] - 0.5)
        for axis in range(2)
    )
    along, across = x[:, None, :], y[:, :, None]
    places = [row[0] * along + row[1] * across + row[2] for row in matrix]
    return np.asarray(np.stack(places) / (1 << level) - 0.5, np.float32)


def _sample(picture: NDArray[Any], where: NDArray[np.float32], nearest: bool = False) -> NDArray[Any]:
    """Read a level ``(h, w[, C])`` at the places of patch pixels, ``(n, p, p, C)``."""
    import cv2

    _, count, p, _ = where.shape
    x, y = where.reshape(2, count, p * p)
    if max(picture.shape[:2]) >= _CV_SIDE:
        # Mirrored first, so that what is cut out holds all; a short side may be mirrored several times.
        y, x = (_mirror(of, length) for of, length in zip((y, x), picture.shape, strict=False))
        top, left = int(y.min()), int(x.min())
        picture = picture[top : int(y.max()) + 2, left : int(x.max()) + 2]
        y, x = ((of - start).astype(np.float32) for of, start in ((y, top), (x, left)))
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    parts = [
        cv2.remap(picture, x[at : at + _CV_SIDE], y[at : at + _CV_SIDE], how, borderMode=cv2.BORDER_REFLECT_101)
        for at in range(0, count, _CV_SIDE)
    ]
    return np.concatenate(parts).reshape(count, p, p, -1)


def _mirror(places: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Move places outside of an axis to those inside that mirrors at its ends show."""
    end = np.float32(length - 1)
    return np.asarray(end - np.abs(end - places % (2 * end)) if end else np.zeros_like(places))


# On disk: one file, as many images have each a dozen arrays, and a process may not open so many.


def _write(mips: Mips, path: Path) -> None:
    """Write what `Cached` does not hold already."""
    arrays = [*mips.image[1:], *mips.shares, mips.planned, mips.hidden]
    about = {
        "levels": len(mips.image) - 1,
        "ids": mips.ids,
        "variance": mips.variance,
        "arrays": [(array.dtype.str, array.shape) for array in arrays],
    }
    with path.open("wb") as file:
        file.write(json.dumps(about).encode() + b"\n")
        for array in arrays:
            file.write(bytes(-file.tell() % _ALIGNED))
            file.write(np.ascontiguousarray(array).data)


def _read(path: Path, source: Cached) -> Mips:
    with path.open("rb") as file:
        about = json.loads(file.readline())
        at = file.tell()
    data, arrays = np.memmap(path, np.uint8, "r"), []
    for kind, shape in about["arrays"]:
        at += -at % _ALIGNED
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        arrays.append(np.asarray(data[at : at + size]).view(kind).reshape(shape))
        at += size
    image = source.image()
    levels, ids = about["levels"], tuple(about["ids"])
    *rest, planned, hidden = arrays
    return Mips(
        image=(image if image.ndim == 3 else image[..., None], *rest[:levels]),
        mask=source.mask() if source.pixels else None,
        shares=tuple(rest[levels:]),
        ids=ids,
        planned=planned,
        hidden=hidden,
        variance=about["variance"],
    )
