"""The tree: the leaves that partition an image. Geometry only, no pixels."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchtree.errors import InputError
from patchtree.files import replacing

_MAGIC = b"PTRE"
_VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class Tree:
    """Leaves that cover an image, each exactly once, in Morton (Z) order.

    A leaf of level ``l`` is a square (cube) of ``patch_size * 2**l`` pixels on a side whose corner lies at a
    multiple of its size. Leaves may reach over the image's far border; none lies wholly outside.

    >>> tree = Tree.uniform((64, 48), patch_size=16)
    >>> tree
    Tree(12 leaves of 16 px, patch_size=16, shape=(64, 48))
    >>> tree.boxes()[:2].tolist()
    [[0, 0, 16, 16], [0, 16, 16, 32]]

    `patchtree.refine`, `uniform` and `load` make trees; leaves given by hand are checked.

    Attributes:
        level: ``(N,)`` uint8, 0 is the finest.
        index: ``(N, d)`` int32, the cell's place in the grid of its own level, axes as in the image array.
        patch_size: pixels on a side that a leaf is averaged to, ``p``.
        shape: the image's shape in pixels, ``(H, W)`` or ``(D, H, W)``.
        max_level: level of the roots.

    Raises:
        InputError: the leaves do not cover the image, each pixel once, in Morton order.
    """

    level: NDArray[np.uint8]
    index: NDArray[np.int32]
    patch_size: int
    shape: tuple[int, ...]
    max_level: int

    def __post_init__(self) -> None:
        for name in ("patch_size", "max_level"):
            if not isinstance(getattr(self, name), Integral):
                raise InputError(f"{name} {getattr(self, name)!r} is not possible; give a whole number")
        shape = tuple(int(length) for length in self.shape)
        patch_size, max_level = int(self.patch_size), int(self.max_level)
        level, index = np.asarray(self.level), np.asarray(self.index)
        _check_leaves(level, index, patch_size, shape, max_level)
        # Copies: who made the arrays may change them.
        self._fill(level.astype(np.uint8), index.astype(np.int32), patch_size, shape, max_level)

    @classmethod
    def _of(
        cls, level: NDArray[np.uint8], index: NDArray[np.int32], patch_size: int, shape: tuple[int, ...], max_level: int
    ) -> Tree:
        """Make a tree of leaves that are right by construction: to check them takes as long as `uniform`."""
        tree = cls.__new__(cls)
        tree._fill(level, index, patch_size, shape, max_level)
        return tree

    def _fill(
        self,
        level: NDArray[np.uint8],
        index: NDArray[np.int32],
        patch_size: int,
        shape: tuple[int, ...],
        max_level: int,
    ) -> None:
        level.flags.writeable = index.flags.writeable = False
        self.__dict__.update(level=level, index=index, patch_size=patch_size, shape=shape, max_level=max_level)

    @classmethod
    def uniform(cls, shape: tuple[int, ...], patch_size: int, level: int = 0) -> Tree:
        """Cover an image with leaves of one size.

        >>> len(Tree.uniform((100, 100), patch_size=16, level=1))
        16
        """
        if level < 0:
            raise InputError(f"level {level} is not possible; give at least 0")
        shape = tuple(int(length) for length in shape)
        top = max(level, cover_level(shape, patch_size))
        return grow(shape, patch_size, top, lambda at, cells: np.full(len(cells), at > level))

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.level)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tree):
            return NotImplemented
        return (
            self.patch_size == other.patch_size
            and self.shape == other.shape
            and np.array_equal(self.level, other.level)
            and np.array_equal(self.index, other.index)
        )

    def __hash__(self) -> int:
        return hash((self.patch_size, self.shape, self.level.tobytes()))

    def __repr__(self) -> str:
        sizes = self.sizes()
        low, high = int(sizes.min()), int(sizes.max())
        span = f"{low} px" if low == high else f"{low} to {high} px"
        return f"Tree({len(self)} leaves of {span}, patch_size={self.patch_size}, shape={self.shape})"

    def sizes(self) -> NDArray[np.int64]:
        """Give the side of every leaf in pixels, ``(N,)``.

        >>> Tree.uniform((64, 64), 16, level=1).sizes().tolist()
        [32, 32, 32, 32]
        """
        return np.left_shift(np.int64(self.patch_size), self.level.astype(np.int64))

    def boxes(self) -> NDArray[np.int64]:
        """Give every leaf's box in pixels, ``(N, 2d)``: y0, x0, y1, x1, not clipped to the image.

        >>> Tree.uniform((20, 16), 16).boxes().tolist()
        [[0, 0, 16, 16], [16, 0, 32, 16]]
        """
        sizes = self.sizes()[:, None]
        low = self.index * sizes
        return np.concatenate([low, low + sizes], axis=1)

    def centres(self) -> NDArray[np.float64]:
        """Give every leaf's centre in pixels, ``(N, d)``; the image's corner is 0.

        >>> Tree.uniform((16, 32), 16).centres().tolist()
        [[8.0, 8.0], [8.0, 24.0]]
        """
        return np.asarray((self.index + 0.5) * self.sizes()[:, None], np.float64)

    def inside(self) -> NDArray[np.float64]:
        """Give the share of every leaf that lies inside the image, ``(N,)`` in (0, 1].

        >>> Tree.uniform((20, 16), 16).inside().tolist()
        [1.0, 0.25]
        """
        sizes = self.sizes()[:, None]
        shares = np.minimum(sizes, self.shape - self.index * sizes) / sizes
        return np.asarray(shares.prod(axis=1), np.float64)

    def weights(self) -> NDArray[np.float32]:
        """Count the image's pixels under every patch pixel, ``(N, p, p)`` (``(N, p, p, p)`` in 3-D).

        They add up to the number of pixels of the image.

        >>> float(Tree.uniform((20, 13), 16).weights().sum())
        260.0
        """
        step = np.left_shift(np.int64(1), self.level.astype(np.int64))[:, None]
        offsets = np.arange(self.patch_size)
        weights = np.ones((len(self),) + (1,) * self.ndim, np.float32)
        for axis, length in enumerate(self.shape):
            start = (self.index[:, axis, None] * np.int64(self.patch_size) + offsets) * step
            along = np.clip(length - start, 0, step).astype(np.float32)
            weights = weights * along.reshape((len(self),) + (1,) * axis + (-1,) + (1,) * (self.ndim - 1 - axis))
        return weights

    def leaf_at(self, points: ArrayLike) -> NDArray[np.int64]:
        """Find the leaf under each point.

        >>> Tree.uniform((32, 32), 16).leaf_at([[0, 0], [31, 0], [31.5, 31.5], [99, 0]]).tolist()
        [0, 2, 3, -1]

        Args:
            points: ``(M, d)`` pixel coordinates; the image's corner is 0.

        Returns:
            ``(M,)`` indices into the leaves, -1 where there is no leaf.

        Raises:
            InputError: the points have another number of axes.
        """
        places = np.asarray(points)
        if places.ndim != 2 or places.shape[1] != self.ndim:
            raise InputError(f"points of shape {places.shape} do not fit a {self.ndim}-D tree; give (M, {self.ndim})")
        # Floored before it is made whole: -0.5 lies outside.
        return self.leaf_of(np.floor_divide(places, self.patch_size).astype(np.int64))

    def leaf_of(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the leaf that holds each level-0 cell, ``(M, d)`` -> ``(M,)``, -1 where there is no leaf.

        >>> Tree.uniform((32, 32), 16).leaf_of(np.array([[1, 0], [-1, 0]])).tolist()
        [2, -1]
        """
        limit = -(-np.array(self.shape) // self.patch_size)
        limit = -(-limit >> self.max_level) << self.max_level
        known = np.all((cells >= 0) & (cells < limit), axis=1)
        codes = morton(np.where(known[:, None], cells, 0))
        found = np.searchsorted(self._starts, codes, side="right") - 1
        span = np.left_shift(np.uint64(1), (self.level * np.uint64(self.ndim)).astype(np.uint64))
        known &= (found >= 0) & (codes - self._starts[found] < span[found])
        return np.where(known, found, -1)

    def neighbours(self) -> NDArray[np.int64]:
        """List the pairs of leaves that share (part of) a face, ``(M, 2)``, ``i < j``, sorted.

        >>> Tree.uniform((32, 32), 16).neighbours().tolist()
        [[0, 1], [0, 2], [1, 3], [2, 3]]
        """
        side = np.left_shift(np.int64(1), self.level.astype(np.int64))[:, None]
        corner = self.index * side
        leaves = np.arange(len(self))
        found = []
        for axis, forward in product(range(self.ndim), (False, True)):
            step = np.zeros(self.ndim, np.int64)
            step[axis] = 1
            other = self.leaf_of(corner + (side if forward else -1) * step)
            # A smaller neighbour finds this leaf from its own side.
            seen = (other >= 0) & (self.level[other] >= self.level)
            found.append(np.stack([leaves[seen], other[seen]], axis=1))
        pairs = np.sort(np.concatenate(found), axis=1)
        keys = np.unique(pairs[:, 0] * len(self) + pairs[:, 1])
        return np.stack([keys // len(self), keys % len(self)], axis=1)

    def paint(self, values: NDArray[Any], region: tuple[int, ...] | None = None, smooth: bool = False) -> NDArray[Any]:
        """Write values per leaf or per patch pixel back to the image's own grid: see `patchtree.paint`.

        >>> tree = Tree.uniform((4, 4), patch_size=2)
        >>> tree.paint(np.arange(4)).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
        """
        from patchtree.patches import paint

        return paint(values, self, region=region, smooth=smooth)

    def to_bytes(self) -> bytes:
        """Pack the tree: a header and one bit a cell, level by level from the roots (1: split).

        >>> tree = Tree.uniform((64, 64), 16)
        >>> len(tree.to_bytes()), Tree.from_bytes(tree.to_bytes()) == tree
        (37, True)
        """
        flags = []
        for level in range(self.max_level, 0, -1):
            cells = self._starts[self.level <= level] >> np.uint64(self.ndim * level)
            cells, first = np.unique(cells, return_index=True)
            flags.append((self.level[self.level <= level])[first] < level)
        bits = np.packbits(np.concatenate(flags)) if flags else np.zeros(0, np.uint8)
        head = struct.pack("<4sBBBxIQ", _MAGIC, _VERSION, self.ndim, self.max_level, self.patch_size, len(self))
        return head + struct.pack(f"<{self.ndim}Q", *self.shape) + bits.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Tree:
        """Unpack what `to_bytes` packed.

        Raises:
            InputError: the bytes are not a tree, are cut short, or come from a newer version.
        """
        head = struct.calcsize("<4sBBBxIQ")
        if data[:4] != _MAGIC or len(data) < head:
            raise InputError("not a patchtree tree: the first bytes are not 'PTRE'; write it with Tree.save")
        _, version, ndim, max_level, patch_size, count = struct.unpack_from("<4sBBBxIQ", data)
        if version > _VERSION:
            raise InputError(f"this tree has format version {version}, newer than {_VERSION}; update patchtree")
        body = head + 8 * ndim
        if ndim not in (2, 3) or not patch_size or len(data) < body:
            raise InputError("this tree's header is damaged; write it again with Tree.save")
        shape = struct.unpack_from(f"<{ndim}Q", data, head)
        bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=body)).astype(bool)
        used = 0

        def split(level: int, index: NDArray[np.int32]) -> NDArray[np.bool_]:
            nonlocal used
            flags = bits[used : used + len(index)]
            if len(flags) < len(index):
                raise InputError("this tree is cut short; write it again with Tree.save")
            used += len(index)
            return flags

        if prod(grid_shape(shape, patch_size << max_level)) > count:
            raise InputError("this tree's header is damaged; write it again with Tree.save")
        tree = grow(shape, patch_size, max_level, split)
        if len(tree) != count:
            raise InputError(f"this tree says {count} leaves but holds {len(tree)}; write it again with Tree.save")
        return tree

    def save(self, path: str | Path) -> None:
        """Write the tree to a file, a few bits a leaf."""
        with replacing(path) as temporary:
            temporary.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Tree:
        """Read a tree from a file.

        Raises:
            InputError: the file is missing or is not a whole tree.
        """
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); name a file written by Tree.save") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @cached_property
    def _starts(self) -> NDArray[np.uint64]:
        """Morton code of each leaf's first level-0 cell, ascending."""
        return morton(self.index.astype(np.int64) << self.level.astype(np.int64)[:, None])


def cover_level(shape: tuple[int, ...], patch_size: int) -> int:
    """Give the level of the smallest single cell that covers an image.

    >>> cover_level((100, 65), patch_size=16)
    3

    Raises:
        InputError: the shape or the patch size is not possible.
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise InputError(f"an image of shape {tuple(shape)} cannot be split: it needs 2 or 3 axes of at least 1 pixel")
    if patch_size < 1:
        raise InputError(f"patch size {patch_size} is not possible; give at least 1")
    return ((int(max(shape)) - 1) // int(patch_size)).bit_length()


def root_level(shape: tuple[int, ...], patch_size: int, max_level: int | None) -> int:
    """Give the level of the roots: the one asked for, or that of a single cell that covers the image.

    >>> root_level((100, 65), 16, max_level=None), root_level((100, 65), 16, max_level=1)
    (3, 1)
    """
    return cover_level(shape, patch_size) if max_level is None else max_level


def grow(
    shape: tuple[int, ...],
    patch_size: int,
    max_level: int,
    split: Callable[[int, NDArray[np.int32]], NDArray[np.bool_]],
) -> Tree:
    """Build a tree from its roots down.

    >>> len(grow((64, 64), 16, 2, lambda level, index: np.full(len(index), level == 2)))
    4

    Args:
        shape: the image's shape in pixels.
        patch_size: pixels on a side of a patch.
        max_level: level of the roots.
        split: called for each level above 0, from the roots down, with the level and the cells that exist there,
            ``(M, d)`` in Morton order; says which of them are split.

    Raises:
        InputError: the shape, the patch size or a level is not possible.
    """
    shape, patch_size, max_level = tuple(map(int, shape)), int(patch_size), int(max_level)
    ndim = len(shape)
    _check_levels(shape, patch_size, max_level)
    limit = np.array(shape)
    children = np.array(list(product((0, 1), repeat=ndim)), np.int32)
    cells = _roots(shape, patch_size, max_level)
    levels: list[NDArray[np.uint8]] = []
    indices: list[NDArray[np.int32]] = []
    for level in range(max_level, -1, -1):
        if level:
            opened = split(level, cells)
            kept = cells[~opened]
        else:
            kept = cells
        levels.append(np.full(len(kept), level, np.uint8))
        indices.append(kept)
        if not level or len(kept) == len(cells):
            break
        cells = (cells[opened][:, None, :] * 2 + children).reshape(-1, ndim)
        size = patch_size << (level - 1)
        if (np.array(shape) % (2 * size)).any():
            cells = cells[(cells * np.int64(size) < limit).all(axis=1)]
    level_array, index = np.concatenate(levels), np.concatenate(indices)
    order = np.argsort(morton(index.astype(np.int64) << level_array.astype(np.int64)[:, None]))
    return Tree._of(level_array[order], index[order], patch_size, tuple(shape), max_level)


def morton(index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Interleave the bits of grid indices, ``(N, d)`` -> ``(N,)``; the last axis has the lowest bit.

    >>> morton(np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]])).tolist()
    [0, 1, 2, 3, 4]

    Source: G. M. Morton, A Computer Oriented Geodetic Data Base, IBM, 1966.
    """
    ndim = index.shape[1]
    masks = _SPREAD[ndim]
    code = np.zeros(len(index), np.uint64)
    for axis in range(ndim):
        bits = index[:, axis].astype(np.uint64)
        for shift, mask in masks:
            bits = (bits | (bits << shift)) & mask
        code |= bits << np.uint64(ndim - 1 - axis)
    return code


# What Morton codes of 64 bits and cell indices of 32 hold.
MOST_LEVELS = {2: 30, 3: 20}

_SPREAD: dict[int, list[tuple[np.uint64, np.uint64]]] = {
    ndim: [(np.uint64(shift), np.uint64(mask)) for shift, mask in steps]
    for ndim, steps in {
        2: [
            (16, 0x0000FFFF0000FFFF),
            (8, 0x00FF00FF00FF00FF),
            (4, 0x0F0F0F0F0F0F0F0F),
            (2, 0x3333333333333333),
            (1, 0x5555555555555555),
        ],
        3: [
            (32, 0x001F00000000FFFF),
            (16, 0x001F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ],
    }.items()
}


def _check_levels(shape: tuple[int, ...], patch_size: int, max_level: int) -> None:
    needed = max(cover_level(shape, patch_size), max_level)
    if needed > MOST_LEVELS[len(shape)]:
        raise InputError(f"level {needed} is not possible; give a max_level of at most {MOST_LEVELS[len(shape)]}")


def _check_leaves(
    level: NDArray[Any], index: NDArray[Any], patch_size: int, shape: tuple[int, ...], max_level: int
) -> None:
    """Refuse leaves that are no partition of the image in Morton order."""
    _check_levels(shape, patch_size, max_level)
    wanted = (len(level), len(shape)) if level.ndim == 1 else ("N", len(shape))
    if index.shape != wanted or level.dtype.kind not in "iu" or index.dtype.kind not in "iu":
        raise InputError(
            f"levels {level.shape} of {level.dtype} and indices {index.shape} of {index.dtype} are no leaves; "
            f"give whole numbers (N,) and (N, {len(shape)})"
        )
    level, index = level.astype(np.int64), index.astype(np.int64)
    if (wrong := (level < 0) | (level > max_level)).any():
        at = int(wrong.argmax())
        raise InputError(f"leaf {at} has level {level[at]}; give 0 to the roots' level, {max_level}")
    # Level-0 cells from here on: of those inside the image each must lie in one leaf.
    cells = -(-np.array(shape) // patch_size)
    if (wrong := ((index < 0) | (index >= -(-cells >> level[:, None]))).any(axis=1)).any():
        at = int(wrong.argmax())
        raise InputError(
            f"leaf {at}, of level {level[at]} at {tuple(index[at].tolist())}, lies outside the image of shape {shape}; "
            "leave it out"
        )
    corner = index << level[:, None]
    starts = morton(corner)
    ends = starts + (np.uint64(1) << (level * len(shape)).astype(np.uint64))
    if (wrong := ends[:-1] > starts[1:]).any():
        at = int(wrong.argmax())
        raise InputError(f"leaves {at} and {at + 1} overlap or are out of Morton order; sort them, each place once")
    covered = int(np.minimum(np.int64(1) << level[:, None], cells - corner).prod(axis=1).sum())
    if covered != prod(cells.tolist()):
        raise InputError(
            f"the leaves cover {covered} of the {prod(cells.tolist())} cells of {patch_size} px in the image of shape "
            f"{shape}; add the leaves that are missing"
        )


def grid_shape(shape: Sequence[int], side: int) -> tuple[int, ...]:
    """Count the cells of a side that cover a shape, along each axis; both in pixels.

    >>> grid_shape((100, 64), side=32)
    (4, 2)
    """
    return tuple(-(-length // side) for length in shape)


def _roots(shape: tuple[int, ...], patch_size: int, max_level: int) -> NDArray[np.int32]:
    """List the root cells in Morton order, ``(R, d)``."""
    counts = grid_shape(shape, patch_size << max_level)
    index = np.indices(counts, np.int32).reshape(len(shape), prod(counts)).T
    return index[np.argsort(morton(index.astype(np.int64)))]
