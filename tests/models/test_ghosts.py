from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.models.ghosts import ghost_batch, ghosts
from patchtree.tree import Tree, grow
from strategies import trees

SHAPES_2D = st.tuples(st.integers(1, 60), st.integers(1, 60))
SHAPES_3D = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))


def slow_ghosts(tree: Tree, grid: int) -> NDArray[np.int64]:
    """Look every position up among all leaves, one by one."""
    boxes = tree.boxes().astype(float)
    low, high = boxes[:, : tree.ndim], boxes[:, tree.ndim :]
    rows = []
    for n in range(len(tree)):
        side = (high[n] - low[n]) / grid
        row = []
        for place in product(range(-1, grid + 1), repeat=tree.ndim):
            centre = low[n] + (np.array(place) + 0.5) * side
            hits = np.flatnonzero(((low <= centre) & (centre < high)).all(axis=1))
            if len(hits):
                (leaf,) = hits
                cell = ((centre - low[leaf]) * grid / (high[leaf] - low[leaf])).astype(int)
                row.append(leaf * grid**tree.ndim + np.ravel_multi_index(tuple(cell), (grid,) * tree.ndim))
            else:
                row.append(-1)
        rows.append(row)
    return np.array(rows)


@given(trees(st.one_of(SHAPES_2D, SHAPES_3D), (4,)), st.sampled_from([1, 2, 4]))
def test_equals_the_slow_search(tree: Tree, grid: int) -> None:
    found = ghosts(tree, grid)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, slow_ghosts(tree, grid))


@pytest.mark.parametrize("grid", [1, 3, 6])
def test_grid_need_not_be_a_power_of_two(grid: int) -> None:
    tree = grow((50, 31), 6, 3, lambda level, cells: cells.sum(axis=1) % 2 == 0)
    np.testing.assert_array_equal(ghosts(tree, grid), slow_ghosts(tree, grid))


@pytest.mark.parametrize("grid", [0, -1, 3, 32])
def test_grid_must_divide_the_patch_size(grid: int) -> None:
    with pytest.raises(InputError, match=f"grid {grid} does not divide the patch size 16"):
        ghosts(Tree.uniform((64, 64), 16), grid)


@given(st.lists(trees(SHAPES_2D, (4,)), min_size=1, max_size=3), st.integers(0, 3), st.sampled_from([1, 2, 4]))
def test_batch_is_every_tree_at_its_offset(batch: list[Tree], extra: int, grid: int) -> None:
    length = max(map(len, batch)) + extra
    nowhere = len(batch) * length * grid**2
    index = ghost_batch(batch, length, [grid])[grid].numpy().reshape(len(batch), length, -1)
    for b, tree in enumerate(batch):
        alone = ghosts(tree, grid)
        expected = np.where(alone < 0, nowhere, alone + b * length * grid**2)
        np.testing.assert_array_equal(index[b, : len(tree)], expected)
        assert (index[b, len(tree) :] == nowhere).all()
