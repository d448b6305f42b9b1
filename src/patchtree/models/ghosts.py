"""Ghost cells: the border that a block of a mesh borrows from its neighbours, so that stencils see no seams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchtree.eager import eagerly
from patchtree.errors import InputError
from patchtree.tree import Tree


def ghosts(tree: Tree, grid: int) -> NDArray[np.int64]:
    """Find what lies under every leaf's cells and under the one-cell border around them.

    Every leaf is divided into ``grid**d`` equal cells; cell ``c`` of leaf ``n`` has the flat index
    ``n * grid**d + c``. A border position takes the cell that contains its centre, whatever the neighbour's size.

    >>> ghosts(Tree.uniform((32, 32), 16), grid=1)[0].reshape(3, 3).tolist()
    [[-1, -1, -1], [-1, 0, 1], [-1, 2, 3]]

    Args:
        tree: the leaves, ``N`` of them in ``d`` dimensions.
        grid: cells along the side of a leaf; divides the patch size.

    Returns:
        ``(N, (grid + 2)**d)`` flat indices, -1 where there is no leaf.

    Raises:
        InputError: the grid does not divide the patch size.

    Source: the guard cells of block-structured AMR, e.g. P. MacNeice et al., PARAMESH, Comput. Phys. Commun. 126
    (2000) 330, with nearest values across levels.
    """
    if grid < 1 or tree.patch_size % grid:
        raise InputError(f"grid {grid} does not divide the patch size {tree.patch_size}; give one that does")
    cells = grid**tree.ndim
    side = tree.sizes()[:, None] // grid
    origin = tree.index * tree.sizes()[:, None]
    offsets = np.indices((grid + 2,) * tree.ndim).reshape(tree.ndim, -1).T - 1
    border = ((offsets < 0) | (offsets == grid)).any(axis=1)
    # Cells are whole pixels, so the pixel that holds a centre (rounded down) says which cell does.
    centre = (origin[:, None] + (2 * offsets[border] + 1) * side[:, None] // 2).reshape(-1, tree.ndim)
    leaf = tree.leaf_at(centre)
    inner = (centre - origin[leaf]) // side[leaf]
    found = leaf * cells + inner @ grid ** np.arange(tree.ndim - 1, -1, -1)
    index = np.empty((len(tree), len(offsets)), np.int64)
    index[:, ~border] = np.arange(len(tree) * cells).reshape(-1, cells)
    index[:, border] = np.where(leaf < 0, -1, found).reshape(len(tree), -1)
    return index


@eagerly
def ghost_batch(trees: Sequence[Tree], length: int, grids: Iterable[int]) -> dict[int, Tensor]:
    """Find the ghost cells of a batch, ready to gather from a batch's cells laid end to end.

    The cells of image ``b`` start at ``b * length * grid**d``. Where there is no leaf, and on padding, the index is
    one past the last cell: append a row of zeros and gather.

    >>> index = ghost_batch([Tree.uniform((16, 16), 16), Tree.uniform((16, 32), 16)], length=2, grids=[1])
    >>> index[1][2:, 3:6].tolist()
    [[4, 2, 3], [2, 3, 4]]

    Args:
        trees: the trees of ``B`` images.
        length: leaves an image is padded to.
        grids: cells along the side of a leaf, each as in `ghosts`.

    Returns:
        For each grid ``(B * length, (grid + 2)**d)`` int64.
    """
    return {grid: torch.from_numpy(_batch(trees, length, grid)) for grid in grids}


def _batch(trees: Sequence[Tree], length: int, grid: int) -> NDArray[np.int64]:
    ndim = trees[0].ndim
    stride = length * grid**ndim
    index = np.full((len(trees), length, (grid + 2) ** ndim), len(trees) * stride)
    for b, tree in enumerate(trees):
        found = ghosts(tree, grid)
        np.copyto(index[b, : len(tree)], found + b * stride, where=found >= 0)
    return index.reshape(len(trees) * length, -1)
