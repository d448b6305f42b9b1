"""A tree for a slide, grown by reading only what is opened."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.detail import Detail, as_detail
from patchtree.errors import InputError
from patchtree.io.slides import Slide
from patchtree.io.slides.base import Box
from patchtree.patcher import Patcher, Patches, warn_of_spare_budget
from patchtree.refine import count_cells, open_ranked
from patchtree.slides.cells import Cells
from patchtree.slides.cut import cut_halved
from patchtree.slides.halved import Halved, threads
from patchtree.tree import Tree, grid_shape, morton, root_level

# A level of at most so many pixels is read whole to begin with, so that nothing is too small to be seen.
_WHOLE_PIXELS = 1 << 20
_CHILDREN = np.array(list(product((0, 1), repeat=2)))


def patch_slide(
    patcher: Patcher,
    slide: Slide,
    min_mpp: float | None = None,
    region: Box | None = None,
    workers: int | None = None,
) -> Patches:
    """Plan the tree of a slide and cut it, as a patcher does with an image, out of the same tiles.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from patchtree.io.images import write_image
    >>> from patchtree.io.slides import open_slide
    >>> path = Path(tempfile.mkdtemp()) / "slide.tif"
    >>> write_image(path, np.kron(np.eye(8, dtype=np.uint8), np.full((50, 50), 200, np.uint8)))
    >>> patch_slide(Patcher(budget=60, detail="residual"), open_slide(path))
    Patches(58 of (16, 16, 1) uint8, Tree(58 leaves of 32 to 128 px, patch_size=16, shape=(400, 400)))

    Args:
        patcher: its options are those of `refine_slide`.
        slide: what `open_slide` gave.
        min_mpp: see `refine_slide`.
        region: see `refine_slide`.
        workers: see `refine_slide`.
    """
    halved = Halved(slide)
    with threads(workers) as pool:
        tree = _refine_all(halved, pool, patcher, min_mpp, region)
        return Patches(cut_halved(halved, tree, pool), tree)


def refine_slide(
    slide: Slide,
    patch_size: int = 16,
    budget: int | None = 1024,
    threshold: float | None = None,
    detail: str | Detail | Callable[[NDArray[Any]], NDArray[Any]] = "residual",
    max_level: int | None = None,
    balanced: bool = False,
    min_mpp: float | None = None,
    region: Box | None = None,
    workers: int | None = None,
) -> Tree:
    """Refine a slide, reading for each cell that comes up only the pyramid level just finer than it.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from patchtree.io.images import write_image
    >>> from patchtree.io.slides import open_slide
    >>> path = Path(tempfile.mkdtemp()) / "slide.tif"
    >>> write_image(path, np.kron(np.eye(8, dtype=np.uint8), np.full((50, 50), 200, np.uint8)))
    >>> refine_slide(open_slide(path), budget=60)
    Tree(58 leaves of 32 to 128 px, patch_size=16, shape=(400, 400))

    The detail of a cell is what that level adds, in units of level 0. It is measured once the cell's parent was opened,
    and never counts for more than the parent's, which is the order of best-first refinement. So the tree is the one
    that opens a cell at a time, whatever is read at once. The coarse levels are read whole, and measured as `Patcher`
    measures an image, so a slide of up to a million pixels gets the same tree.

    Args:
        slide: what `open_slide` gave.
        patch_size: pixels on a side of a patch.
        budget: the most leaves to make; None: as many as the threshold gives.
        threshold: cells with no more detail than this are not split, even within the budget.
        detail: as for `Patcher`. ``"edges"`` counts edge pixels of the finer level as that many of level 0 in a row; a
            function is given parts of one level at a time and gives a map of the same shape.
        max_level: level of the largest leaves; None lets a single cell cover the slide.
        balanced: make leaves that share a face differ by at most one level.
        min_mpp: micrometres along a pixel of the finest patches wanted.
        region: y0, x0, y1, x1 in pixels of level 0; cells wholly outside it are not split.
        workers: threads that read; None: one a core.

    Raises:
        InputError: an option is not possible, the budget is below the number of roots, `min_mpp` is given for a slide
            without a pixel size, or the slide cannot be read.
    """
    patcher = Patcher(patch_size, budget, threshold, detail, max_level, balanced)
    with threads(workers) as pool:
        return _refine_all(Halved(slide), pool, patcher, min_mpp, region)


def _refine_all(halved: Halved, pool: Executor, patcher: Patcher, min_mpp: float | None, region: Box | None) -> Tree:
    """Refine a slide, and warn where detail, and not the user, left a part of the budget."""
    tree = refine_halved(halved, pool, patcher, min_mpp, region)
    free = all(option is None for option in (patcher.threshold, min_mpp, region)) and not patcher.balanced
    # Less than one split costs is left over by chance.
    if free and patcher.budget is not None and len(tree) < patcher.budget - 3 and tree.level.any():
        warn_of_spare_budget(patcher, bool((tree.level < tree.max_level).any()))
    return tree


def finest_level(slide: Slide, min_mpp: float | None) -> int:
    """Give the level of the smallest leaves whose pixels are at least so many micrometres.

    Raises:
        InputError: the slide has no pixel size, or the number is not positive.
    """
    if min_mpp is None:
        return 0
    if not min_mpp > 0:
        raise InputError(f"min_mpp {min_mpp} is not possible; give micrometres a pixel, more than 0")
    if slide.mpp is None:
        raise InputError(f"{slide.path}: has no pixel size, which min_mpp needs; set it with mpp (--mpp)")
    # Pixel sizes are rounded in files: what is meant to be twice another is not always so.
    return max(0, math.ceil(math.log2(min_mpp / min(slide.mpp)) - 0.02))


def opened(tree: Tree, level: int) -> NDArray[np.bool_]:
    """Give the cells of a level that were opened: on a slide, where there is tissue.

    >>> opened(Tree.uniform((64, 32), patch_size=16, level=0), level=1).tolist()
    [[True], [True]]

    Returns:
        A grid of cells of ``patch_size * 2**level`` pixels, ``(ceil(H / side), ceil(W / side))``.
    """
    out = np.zeros(grid_shape(tree.shape, tree.patch_size << level), bool)
    finer = tree.level < level
    out[tuple((tree.index[finer] >> (level - tree.level[finer].astype(np.int32))[:, None]).T)] = True
    return out


@dataclass(frozen=True, eq=False)
class Coarse:
    """What is known of a slide before any of its cells is opened; trees of several regions have it in common.

    Attributes:
        first: the finest level that is measured everywhere.
        details: a grid for each level from the first one up.
        noise: of levels of the slide, as far as it was asked for.
    """

    first: int
    details: tuple[NDArray[np.float64], ...]
    noise: dict[int, float]


def measure_coarse(halved: Halved, pool: Executor, patcher: Patcher, min_mpp: float | None = None) -> Coarse:
    """Measure the cells of coarse levels, the roots at least, for `refine_halved`; keeps what was read whole."""
    top = root_level(halved.slide.shape, patcher.patch_size, patcher.max_level)
    finest = finest_level(halved.slide, min_mpp)
    return _measure_coarse(Cells(halved, patcher.patch_size, as_detail(patcher.detail), pool), top, min(finest, top))


def refine_halved(
    halved: Halved,
    pool: Executor,
    patcher: Patcher,
    min_mpp: float | None = None,
    region: Box | None = None,
    coarse: Coarse | None = None,
) -> Tree:
    """Do what `refine_slide` says, reading through a cache that others may use too.

    Args:
        halved: the slide.
        pool: threads that read.
        patcher: see `refine_slide`.
        min_mpp: see `refine_slide`.
        region: see `refine_slide`.
        coarse: what `measure_coarse` gave for the slide, the patch size, the detail, the roots and `min_mpp`.
    """
    shape, p = halved.slide.shape, patcher.patch_size
    top = root_level(shape, p, patcher.max_level)
    counts = count_cells(shape, p, top, patcher.budget, patcher.threshold)
    finest = min(finest_level(halved.slide, min_mpp), top)
    cells = Cells(halved, p, as_detail(patcher.detail), pool, None if coarse is None else coarse.noise)
    coarse = coarse or _measure_coarse(cells, top, finest)
    level, index = _rank_opened(cells, coarse, counts, finest, patcher, region)
    return open_ranked(level, index, shape, p, top, patcher.budget, patcher.balanced)


def _measure_coarse(cells: Cells, top: int, finest: int) -> Coarse:
    """Measure the cells of coarse levels, the roots at least."""
    halved = cells.halved
    whole = finest
    while whole < top and prod(halved.shape(whole)) > _WHOLE_PIXELS:
        whole += 1
    if whole < top:
        values = _read_whole(halved, whole, cells)
        halved.keep(whole, values)
        return Coarse(whole + 1, tuple(cells.measure_whole(whole, values, top - whole)), cells.noise)
    if finest == top:
        return Coarse(top + 1, (), cells.noise)
    roots = np.ones(grid_shape(halved.slide.shape, cells.patch_size << top))
    everywhere = np.argwhere(roots)
    roots[tuple(everywhere.T)] = cells.measure(top, everywhere)
    return Coarse(top, (roots,), cells.noise)


def _rank_opened(
    cells: Cells, coarse: Coarse, counts: list[tuple[int, ...]], finest: int, patcher: Patcher, region: Box | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Measure the children of every cell that is split, until no more are found: the cells in the order of `refine`.

    What is measured is a guess at first, and covers more and more of what best-first refinement opens. Cells that it
    would not have opened only cost time: the tree is read off the order when all that it opens are in it.

    Args:
        cells: what measures.
        coarse: what is known already.
        counts: cells of each level from 0 up.
        finest: the level of the smallest leaves.
        patcher: for the budget and the threshold.
        region: where to refine.

    Returns:
        The levels of the cells, ``(M,)``, and their indices, ``(M, 2)``.
    """
    floor, grid = patcher.threshold or 0.0, np.array(counts)
    level, index, value = np.zeros(0, np.int64), np.zeros((0, 2), np.int64), np.zeros(0)
    seen = np.zeros(0, bool)

    def add(at: int, found: NDArray[np.int64], details: NDArray[np.float64], known: bool) -> None:
        nonlocal level, index, value, seen
        kept = details > floor
        level = np.concatenate([level, np.full(np.count_nonzero(kept), at)])
        index = np.concatenate([index, found[kept]])
        value = np.concatenate([value, details[kept]])
        seen = np.concatenate([seen, np.full(np.count_nonzero(kept), known or at <= finest + 1)])

    for at, known in enumerate(coarse.details, coarse.first):
        found = np.argwhere(known > floor)
        found = found[_touches(found, cells.patch_size << at, region)]
        add(at, found, known[tuple(found.T)], at > coarse.first)
    while True:
        order = np.lexsort((morton(index), -level, -value))
        if patcher.budget is not None:
            added = np.minimum(2, grid[level[order] - 1] - 2 * index[order]).prod(axis=1) - 1
            spare = patcher.budget - prod(counts[-1])
            order = order[: np.searchsorted(np.cumsum(added), spare, side="right")]
        fresh = order[~seen[order]]
        if not len(fresh):
            return level[order], index[order]
        seen[fresh] = True
        for at in np.unique(level[fresh]).tolist():
            parents = fresh[level[fresh] == at]
            children = (2 * index[parents][:, None] + _CHILDREN).reshape(-1, 2)
            limit = np.repeat(value[parents], len(_CHILDREN))
            kept = (children < grid[at - 1]).all(axis=1) & _touches(children, cells.patch_size << (at - 1), region)
            children = children[kept]
            add(at - 1, children, np.minimum(cells.measure(at - 1, children), limit[kept]), known=False)


def _touches(index: NDArray[np.int64], side: int, region: Box | None) -> NDArray[np.bool_]:
    """Tell the cells of `side` pixels that have a part in the region."""
    if region is None:
        return np.ones(len(index), bool)
    low, high = np.array(region[:2]), np.array(region[2:])
    return np.asarray(((index * side < high) & ((index + 1) * side > low)).all(axis=1))


def _read_whole(halved: Halved, level: int, cells: Cells) -> NDArray[Any]:
    """Read a level by rows of tiles."""
    height, width = halved.shape(level)
    rows = halved.tile(level)
    tops = range(0, height, rows)
    return np.concatenate(list(cells.pool.map(lambda top: halved.read(level, top, 0, top + rows, width), tops)))
