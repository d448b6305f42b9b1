"""A tree for a slide from every pixel of its level 0: the reference for what is grown by reading less."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.detail import Detail, DetailPyramid, Residual, Variance, as_detail, measure
from patchtree.io.slides import Slide
from patchtree.patcher import Patcher
from patchtree.pyramid import pyramid
from patchtree.refine import refine
from patchtree.slides.cells import Cells
from patchtree.slides.halved import Halved, threads
from patchtree.tree import Tree, cover_level

# About the side of a block in pixels: a few of them, and what is made of them, fit the memory of any machine.
_BLOCK = 4096
# Pixels around a block that edges are followed into.
_HALO = 64


def refine_dense(
    slide: Slide,
    patch_size: int = 16,
    budget: int | None = 1024,
    threshold: float | None = None,
    detail: str | Detail | Callable[[NDArray[Any]], NDArray[Any]] = "residual",
    max_level: int | None = None,
    balanced: bool = False,
    workers: int | None = None,
) -> Tree:
    """Refine a slide as `Patcher` refines an image: from the detail of all of level 0, read once, block by block.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from patchtree.io.images import write_image
    >>> from patchtree.io.slides import open_slide
    >>> path = Path(tempfile.mkdtemp()) / "slide.tif"
    >>> write_image(path, np.kron(np.eye(8, dtype=np.uint8), np.full((50, 50), 200, np.uint8)))
    >>> refine_dense(open_slide(path), budget=60)
    Tree(58 leaves of 32 to 128 px, patch_size=16, shape=(400, 400))

    Blocks lie at fixed places, so the tree does not depend on the number of workers. It is the tree that `Patcher`
    makes of the whole image, but for this: edges are followed no more than 64 pixels out of a block; noise is estimated
    from parts of a slide of more than one block; and of the few cells larger than a block, the residual of those that
    reach over the far border is estimated from their pixels as if all were inside alike.

    Args:
        slide: what `open_slide` gave.
        patch_size: pixels on a side of a patch.
        budget: the most leaves to make; None: as many as the threshold gives.
        threshold: cells with no more detail than this are not split, even within the budget.
        detail: as for `Patcher`; a function is given a block and some pixels around it.
        max_level: level of the largest leaves; None lets a single cell cover the slide.
        balanced: make leaves that share a face differ by at most one level.
        workers: threads that read and measure; None: one a core.

    Raises:
        InputError: an option is not possible, the budget is below the number of roots, or the slide cannot be read.
    """
    patcher = Patcher(patch_size, budget, threshold, detail, max_level, balanced)
    details = _measure(slide, patcher, workers)
    return refine(details, slide.shape, patch_size, budget, threshold, balanced)


def _measure(slide: Slide, patcher: Patcher, workers: int | None) -> DetailPyramid:
    """Measure the cells of every level above 0."""
    shape, p = slide.shape, patcher.patch_size
    side = max(1, (_BLOCK // p).bit_length() - 1)
    block = p << side
    if max(shape) <= block:
        return measure(slide.read(0, 0, 0, *shape), patcher.detail, p, patcher.max_level)
    top = cover_level(shape, p) if patcher.max_level is None else patcher.max_level
    detail = as_detail(patcher.detail)
    squares = isinstance(detail, Residual | Variance)
    # What is a sum over pixels is summed up; squares around a mean need the means, to go on above the block.
    levels = min(top, side if squares else 1)
    details = [np.zeros([-(-length // (p << level)) for length in shape]) for level in range(1, top + 1)]
    if not levels:
        return details
    halved = Halved(slide)
    means = np.empty((*halved.shape(levels), slide.channels))
    margin = 0 if squares else -(-_HALO // (2 * p)) * 2 * p
    shared = margin > 0 or any(block % length for length in slide.levels[0].tile)
    corners = list(product(*(range(0, length, block) for length in shape)))

    with threads(workers) as pool:
        cells = Cells(halved, p, detail, pool)
        tuned = cells.tuned(0)

        def measure_block(corner: tuple[int, ...]) -> None:
            low = [max(place - margin, 0) for place in corner]
            high = [min(place + block + margin, length) for place, length in zip(corner, shape, strict=True)]
            values = cells.grey_levels((halved if shared else slide).read(0, *low, *high))
            for level, found in enumerate(tuned.measure(values, p, levels), start=1):
                skip = [(place - start) // (p << level) for place, start in zip(corner, low, strict=True)]
                part = _part(details[level - 1], corner, p << level, block)
                part[:] = found[skip[0] :, skip[1] :][: len(part), : part.shape[1]]
            if squares:
                *_, last = pyramid(values, levels, exact=False)
                _part(means, corner, 1 << levels, block)[:] = last.values * last.scale

        for _ in pool.map(measure_block, corners):
            pass

    for level in range(levels, top):
        details[level] += _fold(details[level - 1])
    if squares and levels < top:
        _add_coarse(details[levels:], tuned, means, p, levels, shape)
    return details


def _add_coarse(
    details: DetailPyramid, detail: Detail, means: NDArray[np.float64], p: int, level: int, shape: tuple[int, int]
) -> None:
    """Add what is to be seen in a level that was made of blocks to the cells of the levels above."""
    step = 1 << level
    rows, columns = (np.minimum(step, length - np.arange(0, length, step)) for length in shape)
    pixels = _fold((rows[:, None] * columns)[..., None], p)
    if isinstance(detail, Residual):
        assert detail.noise is not None
        found = Residual(detail.noise / step).measure(means, p, len(details))
        counted = _fold(np.ones(means.shape[:2]), p)
        for grid, more in zip(details, found, strict=True):
            pixels, counted = _fold(pixels), _fold(counted)
            grid += more * (pixels[..., 0] / counted)
        return
    sums = _fold(means * (rows[:, None] * columns)[..., None], p)
    more = np.zeros(pixels.shape[:2])
    for grid in details:
        finer = (sums**2 / pixels).sum(-1)
        sums, pixels = _fold(sums), _fold(pixels)
        more = np.maximum(_fold(more + finer) - (sums**2 / pixels).sum(-1), 0)
        grid += more


def _part(grid: NDArray[Any], corner: tuple[int, ...], step: int, block: int) -> NDArray[Any]:
    """View what a grid of one number every `step` pixels holds of a block."""
    rows, columns = (slice(place // step, (place + block) // step) for place in corner)
    return grid[rows, columns]


def _fold(grid: NDArray[Any], side: int = 2) -> NDArray[np.float64]:
    """Sum blocks of `side` along the first two axes; those at the far border may be partial."""
    rows, columns = (np.arange(0, length, side) for length in grid.shape[:2])
    return np.asarray(np.add.reduceat(np.add.reduceat(grid, rows, axis=0), columns, axis=1), np.float64)
