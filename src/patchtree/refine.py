"""Refine: from detail and a budget to a tree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.detail import check_grids
from patchtree.errors import InputError
from patchtree.tree import Tree, grid_shape, grow, morton


def refine(
    details: Sequence[NDArray[np.float64]],
    shape: tuple[int, ...],
    patch_size: int,
    budget: int | None = None,
    threshold: float | None = None,
    balanced: bool = False,
) -> Tree:
    """Split the cells with the most detail, as far as the budget and the threshold allow.

    The split cells are the longest prefix of all cells with detail above the threshold, sorted by detail (ties: the
    coarser first, then Morton order), whose tree has at most ``budget`` leaves. On monotone detail that is what
    best-first refinement with a heap gives.

    >>> details = [np.array([[9.0, 1.0], [0.0, 0.0]]), np.array([[10.0]])]
    >>> refine(details, (64, 64), patch_size=16, budget=7)
    Tree(7 leaves of 16 to 32 px, patch_size=16, shape=(64, 64))
    >>> len(refine(details, (64, 64), patch_size=16, threshold=0))
    10

    Args:
        details: a monotone grid a level from 1 up (see `patchtree.detail`); the roots are of level ``len(details)``.
        shape: the image's shape in pixels.
        patch_size: pixels on a side of a patch.
        budget: the most leaves to make; None: as many as the threshold gives.
        threshold: cells with no more detail than this are not split; None: 0.
        balanced: also split cells until leaves that share a face differ by at most one level; the budget then holds
            for the balanced tree.

    Raises:
        InputError: neither a budget nor a threshold is given, the threshold is negative, the budget is below the number
            of roots, or the grids do not fit the shape.
    """
    max_level = len(details)
    counts = count_cells(shape, patch_size, max_level, budget, threshold)
    check_grids(details, shape, patch_size, max_level)
    extra = None if budget is None else budget - prod(counts[max_level])
    level, index = _rank(details, counts, extra, 0.0 if threshold is None else threshold)
    return open_ranked(level, index, shape, patch_size, max_level, budget, balanced)


def count_cells(
    shape: tuple[int, ...], patch_size: int, max_level: int, budget: int | None, threshold: float | None
) -> list[tuple[int, ...]]:
    """Count the cells along each axis of each level from 0 up, of a tree that `refine` could make.

    Raises:
        InputError: as `refine`.
    """
    if threshold is not None and not threshold >= 0:
        raise InputError(f"threshold {threshold} is not possible; give 0 or more")
    if budget is None and threshold is None:
        raise InputError("give a budget (a number of leaves) or a threshold (the least detail to split)")
    counts = [grid_shape(shape, patch_size << level) for level in range(max_level + 1)]
    roots = prod(counts[max_level])
    if budget is not None and budget < roots:
        hint = "give at least that many" + (" or a larger max_level" if roots > 1 else "")
        raise InputError(f"budget {budget} is below the number of roots, {roots}; {hint}")
    return counts


def open_ranked(
    level: NDArray[np.integer[Any]],
    index: NDArray[np.int64],
    shape: tuple[int, ...],
    patch_size: int,
    max_level: int,
    budget: int | None = None,
    balanced: bool = False,
) -> Tree:
    """Split the longest prefix of ranked cells whose tree has at most ``budget`` leaves.

    >>> open_ranked(np.array([2, 1]), np.array([[0, 0], [0, 1]]), (64, 64), patch_size=16, max_level=2)
    Tree(7 leaves of 16 to 32 px, patch_size=16, shape=(64, 64))

    Args:
        level: of each cell, ``(M,)``; a cell comes after its parent.
        index: of each cell, ``(M, d)``.
        shape: the image's shape in pixels.
        patch_size: pixels on a side of a patch.
        max_level: level of the roots.
        budget: see `refine`; None: all are split.
        balanced: see `refine`.
    """
    counts = [grid_shape(shape, patch_size << at) for at in range(max_level + 1)]
    extra = None if budget is None else budget - prod(counts[max_level])
    if extra is not None:
        # Balancing only adds leaves, so a prefix that is too long unbalanced is too long balanced.
        added = np.cumsum(_children(level, index, counts) - 1)
        taken = int(np.searchsorted(added, extra, side="right"))
        level, index = level[:taken], index[:taken]
    splits = _mark(level, index, counts)
    if balanced:
        taken = len(level)
        splits = _balance(splits)
        if extra is not None and _added(splits, counts) > extra:
            # The closure only grows with the prefix, so the longest one that fits is found by bisection.
            low, high = 0, taken
            while high - low > 1:
                middle = (low + high) // 2
                closed = _balance(_mark(level[:middle], index[:middle], counts))
                low, high = (middle, high) if _added(closed, counts) <= extra else (low, middle)
            splits = _balance(_mark(level[:low], index[:low], counts))

    def split(at: int, cells: NDArray[np.int32]) -> NDArray[np.bool_]:
        return np.asarray(splits[at][tuple(cells.T)])

    return grow(shape, patch_size, max_level, split)


def _rank(
    details: Sequence[NDArray[np.float64]], counts: Sequence[Sequence[int]], extra: int | None, floor: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort the cells that may be split, as far as the budget can reach: their levels and indices."""
    least = np.nextafter(floor, np.inf)
    if extra is not None and details:
        full = 2 ** len(counts[0])
        # Every split adds full - 1 leaves but for those of cells at the far border, which may add fewer.
        short = sum(prod(cells) - prod(n // 2 for n in finer) for finer, cells in pairwise(counts))
        reach = extra // (full - 1) + short + 1
        values = np.concatenate([grid[grid >= least] for grid in details])
        if reach < len(values):
            least = np.partition(values, len(values) - reach)[len(values) - reach]
    levels, indices, chosen = [], [], []
    for level in range(len(details), 0, -1):
        grid = details[level - 1]
        index = np.argwhere(grid >= least)
        index = index[np.argsort(morton(index))]
        levels.append(np.full(len(index), level))
        indices.append(index)
        chosen.append(grid[tuple(index.T)])
    if not details:
        return np.zeros(0, np.int64), np.zeros((0, len(counts[0])), np.int64)
    order = np.argsort(-np.concatenate(chosen), kind="stable")
    return np.concatenate(levels)[order], np.concatenate(indices)[order]


def _children(
    level: NDArray[np.integer[Any]], index: NDArray[np.int64], counts: Sequence[Sequence[int]]
) -> NDArray[np.int64]:
    """Count the children inside the image of cells of any levels."""
    finer = np.array(counts)[level - 1]
    return np.asarray(np.minimum(2, finer - 2 * index).prod(axis=1), np.int64)


def _mark(
    level: NDArray[np.integer[Any]], index: NDArray[np.int64], counts: Sequence[Sequence[int]]
) -> list[NDArray[np.bool_]]:
    """Mark cells in a boolean grid a level."""
    grids = [np.zeros(cells, bool) for cells in counts]
    for at, grid in enumerate(grids):
        grid[tuple(index[level == at].T)] = True
    return grids


def _balance(splits: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """Split cells until the parents of the face neighbours of every split cell are split too."""
    splits = [grid.copy() for grid in splits]
    for finer, coarser in pairwise(splits[1:]):
        touched = finer.copy()
        for axis in range(finer.ndim):
            wide, across = touched.swapaxes(0, axis), finer.swapaxes(0, axis)
            wide[1:] |= across[:-1]
            wide[:-1] |= across[1:]
        for axis, length in enumerate(touched.shape):
            touched = np.logical_or.reduceat(touched, np.arange(0, length, 2), axis=axis)
        coarser |= touched
    return splits


def _added(splits: list[NDArray[np.bool_]], counts: Sequence[Sequence[int]]) -> int:
    """Count the leaves that the marked splits add to the roots."""
    total = 0
    for level in range(1, len(splits)):
        sums = splits[level].astype(np.int64)
        for finer, cells in zip(counts[level - 1], counts[level], strict=True):
            sums = np.tensordot(np.minimum(2, finer - 2 * np.arange(cells)), sums, axes=(0, 0))
        total += int(sums) - int(np.count_nonzero(splits[level]))
    return total
