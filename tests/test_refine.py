from __future__ import annotations

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import InputError, Tree, refine
from patchtree.tree import cover_level, morton
from strategies import SHAPES, owner


def test_grids_of_another_image_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"grids of \[\(3, 2\)\] for \(64, 64\) pixels; give one a level, of \[\(2, 2\)\]"
    ):
        refine([np.zeros((3, 2))], (64, 64), patch_size=16, budget=10)


@st.composite
def pyramids(draw: st.DrawFn) -> tuple[list[NDArray[np.float64]], tuple[int, ...], int]:
    """A random monotone detail pyramid, with ties and zeros."""
    shape = draw(SHAPES)
    patch_size = draw(st.integers(1, 4)) if max(shape) < 100 else 16
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = min(cover_level(shape, patch_size), draw(st.integers(0, 12)))
    details: list[NDArray[np.float64]] = []
    for level in range(1, levels + 1):
        grid = rng.integers(0, draw(st.sampled_from([1, 3, 100])), [-(-n // (patch_size << level)) for n in shape])
        if details:
            below = details[-1]
            for axis in range(below.ndim):
                below = np.maximum.reduceat(below, np.arange(0, below.shape[axis], 2), axis=axis)
            grid = np.maximum(grid, below)
        details.append(grid.astype(float))
    return details, shape, patch_size


def heap_leaves(
    details: list[NDArray[np.float64]], shape: tuple[int, ...], patch_size: int, budget: int, threshold: float
) -> set[tuple[int, ...]]:
    """Best-first refinement with a heap, which stops at the first split that would not fit."""
    top = len(details)

    def exists(level: int, index: tuple[int, ...]) -> bool:
        return all(place * (patch_size << level) < length for place, length in zip(index, shape, strict=True))

    def entry(level: int, index: tuple[int, ...]) -> tuple[float, int, int, tuple[int, ...]]:
        value = details[level - 1][index] if level else 0.0
        return -value, -level, int(morton(np.array([index]))[0]), index

    roots = [i for i in itertools.product(*(range(-(-n // (patch_size << top))) for n in shape))]
    heap = [entry(top, index) for index in roots]
    heapq.heapify(heap)
    leaves = {(top, *index) for index in roots}
    while heap:
        value, level, _, index = heapq.heappop(heap)
        if -value <= threshold or not level:
            break
        children = [
            child
            for step in itertools.product((0, 1), repeat=len(shape))
            if exists(-level - 1, child := tuple(2 * place + s for place, s in zip(index, step, strict=True)))
        ]
        if len(leaves) - 1 + len(children) > budget:
            break
        leaves.remove((-level, *index))
        leaves |= {(-level - 1, *child) for child in children}
        for child in children:
            heapq.heappush(heap, entry(-level - 1, child))
    return leaves


def as_set(tree: Tree) -> set[tuple[int, ...]]:
    return {(int(level), *map(int, index)) for level, index in zip(tree.level, tree.index, strict=True)}


@given(pyramids(), st.integers(0, 400), st.sampled_from([0.0, 1.0, 30.0]))
def test_refine_equals_a_heap(
    pyramid: tuple[list[NDArray[np.float64]], tuple[int, ...], int], more: int, threshold: float
) -> None:
    details, shape, patch_size = pyramid
    roots = int(np.prod([-(-n // (patch_size << len(details))) for n in shape]))
    tree = refine(details, shape, patch_size, budget=roots + more, threshold=threshold)
    assert as_set(tree) == heap_leaves(details, shape, patch_size, roots + more, threshold)
    assert roots <= len(tree) <= roots + more
    owner(tree)


@given(pyramids())
def test_a_threshold_splits_all_above_it(pyramid: tuple[list[NDArray[np.float64]], tuple[int, ...], int]) -> None:
    details, shape, patch_size = pyramid
    tree = refine(details, shape, patch_size, threshold=1)
    assert as_set(tree) == heap_leaves(details, shape, patch_size, 10**9, 1)


@given(pyramids(), st.integers(0, 200))
def test_balanced_neighbours_differ_by_one_level_at_most(
    pyramid: tuple[list[NDArray[np.float64]], tuple[int, ...], int], more: int
) -> None:
    details, shape, patch_size = pyramid
    roots = int(np.prod([-(-n // (patch_size << len(details))) for n in shape]))
    tree = refine(details, shape, patch_size, budget=roots + more, balanced=True)
    owner(tree)
    assert len(tree) <= roots + more
    pairs = tree.neighbours()
    if len(pairs):
        assert np.abs(np.diff(tree.level.astype(int)[pairs], axis=1)).max() <= 1
    plain = refine(details, shape, patch_size, budget=roots + more)
    gaps = plain.neighbours()
    if not len(gaps) or np.abs(np.diff(plain.level.astype(int)[gaps], axis=1)).max() <= 1:
        assert tree == plain


def test_balanced_uses_the_budget() -> None:
    rng = np.random.default_rng(0)
    finest = rng.random((64, 64)) ** 8
    details = [finest]
    while details[-1].size > 1:
        details.append(details[-1].reshape(len(details[-1]) // 2, 2, -1, 2).sum((1, 3)))
    tree = refine(details, (2048, 2048), 16, budget=1000, balanced=True)
    assert 950 <= len(tree) <= 1000


def test_zero_detail_is_never_split() -> None:
    assert len(refine([np.zeros((2, 2)), np.zeros((1, 1))], (64, 64), 16, budget=999)) == 1


def test_any_budget_works() -> None:
    details = [np.ones((8, 8)), np.full((4, 4), 4.0), np.full((2, 2), 16.0), np.full((1, 1), 64.0)]
    for budget in range(1, 300):
        tree = refine(details, (256, 256), 16, budget=budget)
        assert budget - 2 <= len(tree) <= budget or len(tree) == 256


def test_bad_requests_are_refused() -> None:
    details = [np.ones((2, 2))]
    with pytest.raises(InputError, match="budget 3 is below the number of roots, 4"):
        refine(details, (64, 64), 16, budget=3)
    with pytest.raises(InputError, match="give a budget"):
        refine(details, (64, 64), 16)
