"""A tree for a slide from every pixel of its level 0: the reference for what is grown by reading less."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.block_sums import fold
from patchtree.detail import Detail, DetailPyramid, Residual, Variance, as_detail, measure, measure_residual
from patchtree.io.slides import Slide
from patchtree.patcher import Patcher
from patchtree.pyramid import pyramid
from patchtree.refine import refine
from patchtree.slides.cells import Cells
from patchtree.slides.halved import Halved, threads
from patchtree.tree import Tree, grid_shape, root_level

# About the side of a block in pixels: a few of them, and what is made of them, fit the memory of any machine.
_BLOCK = 4096
# The same for sums of squares, which see no further than a cell: what is made of a block stays in the cache.
_SQUARES_BLOCK = 2048
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
    makes of the whole image, but for this: edges are followed no more than 64 pixels out of a block, and noise is
    estimated from parts of a slide of more than 4096 pixels a side.

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
    if max(shape) <= _side(_BLOCK, p):
        return measure(slide.read(0, 0, 0, *shape), patcher.detail, p, patcher.max_level)
    top = root_level(shape, p, patcher.max_level)
    detail = as_detail(patcher.detail)
    squares = isinstance(detail, Residual | Variance)
    # What is a sum over pixels is summed up; squares around a mean need the means, to go on above the block.
    block = _side(min(_BLOCK, _SQUARES_BLOCK) if squares else _BLOCK, p)
    levels = min(top, (block // p).bit_length() - 1 if squares else 1)
    details = [np.zeros(grid_shape(shape, p << level)) for level in range(1, top + 1)]
    if not levels:
        return details
    halved = Halved(slide)
    means = np.empty((*halved.shape(levels), slide.channels))
    margin = 0 if squares else -(-_HALO // (2 * p)) * 2 * p
    shared = margin > 0 or any(block % length for length in slide.levels[0].tile)
    # Blocks that share tiles follow each other.
    corners = list(product(*(range(0, length, block) for length in shape)))
    corners.sort(key=lambda corner: [place // _BLOCK for place in corner])

    with threads(workers) as pool:
        cells = Cells(halved, p, detail, pool)
        tuned = cells.tuned(0)
        variance = slide.channels * tuned.noise**2 if isinstance(tuned, Residual) and tuned.noise else 0.0

        def measure_block(corner: tuple[int, ...]) -> None:
            low = [max(place - margin, 0) for place in corner]
            high = [min(place + block + margin, length) for place, length in zip(corner, shape, strict=True)]
            values = cells.grey_levels((halved if shared else slide).read(0, *low, *high))
            pictures = list(pyramid(values, levels)) if squares else []
            if isinstance(tuned, Residual):
                found = measure_residual(pictures, p, values.shape[:-1], variance)
            else:
                found = tuned.measure(values, p, levels)
            for level, grid in enumerate(found, start=1):
                skip = [(place - start) // (p << level) for place, start in zip(corner, low, strict=True)]
                part = _part(details[level - 1], corner, p << level, block)
                part[:] = grid[skip[0] :, skip[1] :][: len(part), : part.shape[1]]
            if squares:
                _part(means, corner, 1 << levels, block)[:] = pictures[-1].values * pictures[-1].scale

        for _ in pool.map(measure_block, corners):
            pass

    for level in range(levels, top):
        details[level] += fold(details[level - 1])
    if squares and levels < top:
        if isinstance(tuned, Residual):
            pictures = pyramid(means, top - levels, shape=shape, halved=levels)
            found = measure_residual(pictures, p, shape, variance, levels)
        else:
            found = _measure_spread(means, p, shape, levels, top)
        for grid, more in zip(details[levels:], found, strict=True):
            grid += more
    return details


def _side(limit: int, p: int) -> int:
    """Give the side of the largest cell that is no larger than a limit, or of one of level 1."""
    return p << max(1, (limit // p).bit_length() - 1)


def _measure_spread(means: NDArray[np.float64], p: int, shape: tuple[int, int], level: int, top: int) -> DetailPyramid:
    """Measure how far the cells of a level are from their mean, for the cells of each level above."""
    step = 1 << level
    rows, columns = (np.minimum(step, length - np.arange(0, length, step)) for length in shape)
    pixels = fold((rows[:, None] * columns)[..., None], p, ndim=2)
    sums = fold(means * (rows[:, None] * columns)[..., None], p, ndim=2)
    details = [np.zeros(pixels.shape[:2])]
    for _ in range(level, top):
        finer = (sums**2 / pixels).sum(-1)
        sums, pixels = fold(sums, ndim=2), fold(pixels, ndim=2)
        details.append(np.maximum(fold(details[-1] + finer) - (sums**2 / pixels).sum(-1), 0))
    return details[1:]


def _part(grid: NDArray[Any], corner: tuple[int, ...], step: int, block: int) -> NDArray[Any]:
    """View what a grid of one number every `step` pixels holds of a block."""
    rows, columns = (slice(place // step, (place + block) // step) for place in corner)
    return grid[rows, columns]
