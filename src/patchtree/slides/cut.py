"""Cut the leaves of a tree out of a slide."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.slides import Slide
from patchtree.pyramid import Level
from patchtree.slides.halved import Halved, by_part, threads
from patchtree.tree import Tree


def cut_slide(slide: Slide, tree: Tree, workers: int | None = None) -> NDArray[Any]:
    """Average every leaf of a slide to ``p x p`` pixels, each read from the coarsest level of the file that will do.

    What `patchtree.cut` gives for the whole image, as far as the file's levels are that image halved.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from patchtree.io.images import write_image
    >>> from patchtree.io.slides import open_slide
    >>> path = Path(tempfile.mkdtemp()) / "slide.tif"
    >>> write_image(path, np.kron(np.eye(8, dtype=np.uint8), np.full((50, 50), 200, np.uint8)))
    >>> cut_slide(open_slide(path), Tree.uniform((400, 400), patch_size=4, level=6))[:, 0, 0, 0].tolist()
    [132, 0, 0, 114]

    Args:
        slide: what `open_slide` gave.
        tree: a tree of the slide's shape.
        workers: threads that read; None: one a core.

    Returns:
        ``(N, p, p, C)``, the slide's type.

    Raises:
        InputError: the tree was made for another shape, or the slide cannot be read.
    """
    with threads(workers) as pool:
        return cut_halved(Halved(slide), tree, pool)


def cut_halved(halved: Halved, tree: Tree, pool: Executor) -> NDArray[Any]:
    """Do what `cut_slide` says, in parts that are read whole."""
    slide, p = halved.slide, tree.patch_size
    if tree.shape != slide.shape:
        raise InputError(f"{slide.path}: a slide of {slide.shape} pixels does not fit a tree made for {tree.shape}")
    out = np.empty((len(tree), p, p, slide.channels), slide.dtype)

    def cut_part(level: int, leaves: NDArray[np.int64]) -> None:
        index = tree.index[leaves].astype(np.int64)
        first, last = index.min(axis=0), index.max(axis=0) + 1
        values = halved.read(level, *(first * p).tolist(), *(last * p).tolist())
        height, width = (last - first) * p
        # What reaches over the far border repeats the nearest pixels.
        beyond = ((0, height - len(values)), (0, width - values.shape[1]), (0, 0))
        values = np.pad(values, beyond, "edge") if height > len(values) or width > values.shape[1] else values
        blocks = values.reshape(height // p, p, width // p, p, -1).swapaxes(1, 2)
        out[leaves] = Level(values, 1.0).cast(blocks[tuple((index - first).T)], slide.dtype)

    jobs = []
    for level in range(int(tree.level.max(initial=0)) + 1):
        here = np.flatnonzero(tree.level == level)
        side = max(1, halved.tile(level) // p)
        jobs += [pool.submit(cut_part, level, here[leaves]) for _, leaves in by_part(tree.index[here], side)]
    for job in jobs:
        job.result()
    return out
