"""What several tests draw from."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree.tree import Tree, grow

SHAPES = st.one_of(
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
    st.sampled_from([(1, 1), (5000, 3), (1, 700), (64, 64)]),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)),
)


@st.composite
def trees(
    draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES, patch_sizes: tuple[int, ...] = (1, 2, 3, 4, 8)
) -> Tree:
    """A random tree of a random image."""
    shape = draw(shapes)
    patch_size = draw(st.sampled_from([p for p in patch_sizes if p * 200 >= max(shape) or p == max(patch_sizes)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]))
    top = draw(st.sampled_from([0, 1, 2, 3]))
    cover = Tree.uniform(shape, patch_size).max_level
    return grow(shape, patch_size, min(cover, top + 2), lambda level, cells: rng.random(len(cells)) < share)


def owner(tree: Tree) -> NDArray[np.int64]:
    """The leaf of every pixel, the slow and obvious way; fails where a pixel has none or two."""
    out = np.full(tree.shape, -1)
    for leaf, box in enumerate(tree.boxes()):
        inside = tuple(slice(low, high) for low, high in zip(box[: tree.ndim], box[tree.ndim :], strict=True))
        assert out[inside].size
        assert (out[inside] == -1).all()
        out[inside] = leaf
    assert (out >= 0).all()
    return out
