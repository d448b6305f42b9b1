from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtree import InputError, Tree
from patchtree.tree import cover_level, morton
from strategies import SHAPES, owner, trees


@given(trees())
def test_leaves_partition_the_image(tree: Tree) -> None:
    owners = owner(tree)
    np.testing.assert_allclose(np.bincount(owners.ravel()) / tree.sizes().astype(float) ** tree.ndim, tree.inside())
    assert tree.weights().sum(dtype=float) == np.prod(tree.shape)
    shares = tree.weights().reshape(len(tree), -1).sum(1) / tree.sizes().astype(float) ** tree.ndim
    np.testing.assert_allclose(shares, tree.inside())


@given(trees())
def test_leaves_are_in_morton_order(tree: Tree) -> None:
    codes = morton(tree.index.astype(np.int64) << tree.level.astype(np.int64)[:, None])
    assert (np.diff(codes.astype(np.int64)) > 0).all()


@given(st.lists(st.tuples(*[st.integers(0, 2**20)] * 3)), st.sampled_from([2, 3]))
def test_morton_interleaves_bits(points: list[tuple[int, ...]], ndim: int) -> None:
    index = np.array([point[:ndim] for point in points], np.int64).reshape(-1, ndim)
    expected = [
        sum(
            (int(place) >> bit & 1) << (bit * ndim + ndim - 1 - axis)
            for axis, place in enumerate(row)
            for bit in range(21)
        )
        for row in index
    ]
    assert morton(index).tolist() == expected


@given(trees(), st.integers(0, 2**32 - 1))
def test_leaf_at_finds_the_owner(tree: Tree, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, tree.shape, (50, tree.ndim))
    assert (tree.leaf_at(points) == owner(tree)[tuple(points.T)]).all()
    centres = tree.centres()
    assert (tree.leaf_at(centres) == np.arange(len(tree))).all()
    far = np.array(tree.shape) + tree.patch_size * 2.0 ** (tree.max_level + 1)
    assert tree.leaf_at(np.stack([far, -np.ones(tree.ndim), far * 1e4])).tolist() == [-1, -1, -1]


@given(trees(st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(*[st.integers(1, 9)] * 3))))
def test_neighbours_share_a_face(tree: Tree) -> None:
    boxes = tree.boxes()
    low, high = boxes[:, : tree.ndim], boxes[:, tree.ndim :]
    overlap = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    touching = (overlap >= 0).all(2) & ((overlap == 0).sum(2) == 1)
    expected = np.argwhere(np.triu(touching)).tolist()
    assert tree.neighbours().tolist() == expected


@given(trees())
def test_bytes_give_the_tree_back(tree: Tree) -> None:
    data = tree.to_bytes()
    again = Tree.from_bytes(data)
    assert again == tree
    assert (hash(again), again.max_level) == (hash(tree), tree.max_level)
    assert len(data) <= 24 + 24 + len(tree)


@given(SHAPES, st.integers(1, 9), st.integers(0, 3))
def test_uniform_covers_with_one_size(shape: tuple[int, ...], patch_size: int, level: int) -> None:
    if max(shape) > 100:
        patch_size += 8
    tree = Tree.uniform(shape, patch_size, level)
    assert set(tree.sizes()) == {patch_size << level}
    assert len(tree) == np.prod([-(-length // (patch_size << level)) for length in shape])


@given(SHAPES, st.integers(1, 20))
def test_cover_level_is_the_smallest(shape: tuple[int, ...], patch_size: int) -> None:
    level = cover_level(shape, patch_size)
    assert patch_size << level >= max(shape)
    assert level == 0 or patch_size << (level - 1) < max(shape)


def test_a_tree_is_frozen() -> None:
    tree = Tree.uniform((64, 64), 16)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.patch_size = 8  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        tree.level[0] = 3


def test_equality_is_by_value() -> None:
    tree = Tree.uniform((64, 64), 16)
    assert tree == Tree.uniform((64, 64), 16)
    assert tree != Tree.uniform((64, 63), 16)
    assert tree != Tree.uniform((64, 64), 16, level=1)
    assert tree != "tree"


def test_save_and_load(tmp_path: Path) -> None:
    tree = Tree.uniform((4096, 4096), 16)
    tree.save(tmp_path / "a.tree")
    assert Tree.load(tmp_path / "a.tree") == tree
    assert (tmp_path / "a.tree").stat().st_size < 8 * len(tree)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tree"]


def test_bad_files_are_named(tmp_path: Path) -> None:
    data = Tree.uniform((256, 256), 16, level=1).to_bytes()
    path = tmp_path / "a.tree"
    with pytest.raises(InputError, match=r"a\.tree: cannot be read"):
        Tree.load(path)
    newer = data[:4] + bytes([9]) + data[5:]
    for content, word in (
        (b"", "not a patchtree tree"),
        (b"PNG" * 30, "not a"),
        (data[:-2], "cut short"),
        (newer, "newer"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"a\.tree: .*{word}"):
            Tree.load(path)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (1, 2, 3, 4)])
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cannot be split"):
        Tree.uniform(shape, 16)


def test_impossible_patch_size_is_refused() -> None:
    with pytest.raises(InputError, match="patch size 0"):
        Tree.uniform((4, 4), 0)


def test_points_of_other_dimensions_are_refused() -> None:
    for points in ([[1, 2, 3]], [1, 2], 3):
        with pytest.raises(InputError, match="do not fit a 2-D tree"):
            Tree.uniform((32, 32), 16).leaf_at(points)


def test_levels_beyond_morton_codes_are_refused() -> None:
    for level in (31, 70):
        with pytest.raises(InputError, match=f"level {level} is not possible"):
            Tree.uniform((30, 30), 16, level=level)
    tree = Tree.uniform((30, 30), 16, level=30)
    assert tree.leaf_at([[3, 3]]).tolist() == [0]
    assert 0 < tree.inside()[0] < 1
    with pytest.raises(InputError, match="level -1"):
        Tree.uniform((30, 30), 16, level=-1)


def test_any_damaged_byte_of_a_header_is_told() -> None:
    data = Tree.uniform((256, 256), 16, level=1).to_bytes()
    for place in range(36):
        for value in (0, 1, 70, 255):
            spoilt = data[:place] + bytes([value]) + data[place + 1 :]
            with contextlib.suppress(InputError):
                Tree.from_bytes(spoilt)


def test_shapes_from_numpy_will_do() -> None:
    assert len(Tree.uniform(np.array([32, 32]), 16)) == 4  # type: ignore[arg-type]


@given(trees())
def test_the_leaves_of_any_tree_may_be_given_by_hand(tree: Tree) -> None:
    level, index = tree.level.astype(int).tolist(), tree.index.astype(np.uint64)
    again = Tree(level, index, np.int64(tree.patch_size), list(tree.shape), tree.max_level)  # type: ignore[arg-type]
    assert again == tree
    assert (again.level.dtype, again.index.dtype, again.shape) == (np.uint8, np.int32, tree.shape)
    assert not any(array.flags.writeable for array in (again.level, again.index))


@given(trees(), st.data())
def test_leaves_by_hand_that_are_no_partition_are_refused(tree: Tree, data: st.DataObject) -> None:
    leaf = data.draw(st.integers(0, len(tree) - 1))
    order = np.arange(len(tree))
    for chosen in (np.delete(order, leaf), np.insert(order, leaf, leaf), np.roll(order, leaf)):
        if not np.array_equal(chosen, order):
            with pytest.raises(InputError):
                Tree(tree.level[chosen], tree.index[chosen], tree.patch_size, tree.shape, tree.max_level)
    # Beside its place, or of another size, a leaf leaves a hole or lies on others.
    for larger, step in ((0, 1), (1, 0), (-1, 0)):
        level, index = tree.level.astype(int), tree.index.astype(int)
        level[leaf] += larger
        index[leaf] += step
        if (larger, len(tree)) != (1, 1):
            with pytest.raises(InputError):
                Tree(level, index, tree.patch_size, tree.shape, tree.max_level + 1)


def test_what_is_wrong_with_leaves_by_hand_is_said() -> None:
    four = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    flat = np.zeros(4, int)
    assert Tree(flat, four, 16, (32, 32), 1) == Tree.uniform((32, 32), 16)
    for (level, index, patch_size, shape, top), words in (
        ((flat, four, 16, (48, 32), 2), "cover 4 of the 6 cells of 16 px in the image of shape"),
        ((flat[:3], four[:3], 16, (32, 32), 1), "cover 3 of the 4 cells"),
        ((flat, four, 16, (32, 16), 1), r"leaf 1, of level 0 at \(0, 1\), lies outside"),
        ((flat, four - 1, 16, (32, 32), 1), r"leaf 0, of level 0 at \(-1, -1\), lies outside"),
        ((flat, four[::-1], 16, (32, 32), 1), "leaves 0 and 1 overlap or are out of Morton order"),
        ((np.array([1, 0]), four[[0, 3]], 16, (32, 32), 1), "leaves 0 and 1 overlap"),
        ((np.array([2]), four[:1], 16, (32, 32), 1), "leaf 0 has level 2; give 0 to the roots' level, 1"),
        ((flat + 256, four, 16, (32, 32), 1), "leaf 0 has level 256"),
        ((flat, four + 0.5, 16, (32, 32), 1), "no leaves"),
        ((flat, np.zeros((4, 3), int), 16, (32, 32), 1), "no leaves"),
        ((flat[:3], four, 16, (32, 32), 1), "no leaves"),
        (([], [], 16, (32, 32), 1), "no leaves"),
        ((flat, four, 1.5, (32, 32), 1), "patch_size 1.5"),
        ((flat, four, 0, (32, 32), 1), "patch size 0"),
        ((flat, four, 16, (32, 32), 31), "level 31 is not possible"),
        ((flat, four, 16, (32,), 1), "cannot be split"),
    ):
        with pytest.raises(InputError, match=words):
            Tree(level, index, patch_size, shape, top)  # type: ignore[arg-type]


def test_a_tree_keeps_leaves_that_its_maker_changes_later() -> None:
    level, index = np.zeros(1, np.uint8), np.zeros((1, 2), np.int32)
    tree = Tree(level, index, 16, (16, 16), 0)
    level[0] = index[0, 0] = 7
    assert tree == Tree.uniform((16, 16), 16)
