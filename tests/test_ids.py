from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patchtree import Tree, ids
from patchtree.ids import choose, count_pairs, differences, fill_ids, likeliest, paint_ids
from patchtree.patches import Painter, painter
from patchtree.tree import grow


@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from([1, 2, 4]),
    st.integers(2, 4),
    st.booleans(),
    st.sampled_from([1, 4, 1000]),
)
# The last pixel of a level goes on where the image ends with it, though the level above it has another one there.
@example(0, (96, 96), 4, 2, True, 1)
def test_ids_are_those_of_the_painted_probabilities(
    seed: int, shape: tuple[int, int], patch_size: int, classes: int, smooth: bool, few: int
) -> None:
    rng = np.random.default_rng(seed)
    top = ((max(shape) - 1) // patch_size).bit_length()
    tree = grow(shape, patch_size, top, lambda _, cells: rng.random(len(cells)) < 0.6)
    # Nearly plain, so that what lies around decides far into a leaf, with areas where anything may be.
    shares = np.full((len(tree), patch_size, patch_size, classes), 1 / classes)
    shares += rng.normal(scale=0.01, size=shares.shape)
    shares[..., 0] += 0.03 * (rng.random((len(tree), 1, 1)) < 0.7)
    ready = painter(differences(shares.astype(np.float32)), tree, smooth)
    y0, x0 = (int(rng.integers(length)) for length in shape)
    inside = y0, x0, int(rng.integers(y0, shape[0])) + 1, int(rng.integers(x0, shape[1])) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "_FEW", few)
        patch.setattr(ids, "_PAINTED", 16)
        for region in (0, 0, *shape), inside:
            out = np.full((region[2] - region[0], region[3] - region[1]), 9, np.uint8)
            fill_ids(out, ready, classes, region)
            values = ready.paint(region)
            expected = choose(values, classes)
            ordered = np.sort(np.concatenate([values, 0 * values], -1) if classes == 2 else values, -1)
            # Only where two are equally likely, rounding may decide.
            clear = ordered[..., -1] - ordered[..., -2] > 1e-6
            np.testing.assert_array_equal(out[clear], expected[clear])
            assert clear.mean() > 0.9 or not smooth


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("smooth", [True, False])
def test_an_image_is_painted_block_by_block_as_it_is_whole(
    classes: int, smooth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    tree = grow((90, 130), 4, 5, lambda _, cells: rng.random(len(cells)) < 0.6)
    # As above: of one class but for some places.
    shares = rng.normal(1 / classes, 0.01, (len(tree), 4, 4, classes)).astype(np.float32)
    shares[..., 0] += 0.03 * (rng.random((len(tree), 1, 1)) < 0.7)
    wanted = likeliest(painter(shares, tree, smooth).paint())
    monkeypatch.setattr(ids, "_PAINTED", 16)
    whole = paint_ids(shares, tree, smooth)
    monkeypatch.setattr(ids, "_BLOCK", 37)
    in_blocks = paint_ids(shares, tree, smooth)
    monkeypatch.setattr(ids, "_NUMBERS", 11**2 * classes)
    in_small_blocks = paint_ids(shares, tree, smooth)
    assert in_blocks.dtype == np.uint8
    for found in (whole, in_blocks, in_small_blocks):
        assert np.count_nonzero(found != wanted) < 3  # where rounding decides


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    painted: list[tuple[int, ...]] = []
    paint = Painter.paint
    monkeypatch.setattr(Painter, "paint", lambda self, region: (painted.append(region), paint(self, region))[1])
    return painted


def test_only_what_is_not_decided_is_painted_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree.uniform((1024, 2048), 16, level=3)
    rng = np.random.default_rng(0)
    shares = np.zeros((len(tree), 16, 16, 3), np.float32)
    shares[..., 1] = 1
    # An area of noise, 512 pixels wide, and one of another class, whose border is short.
    noisy = tree.centres()[:, 1] < 512
    shares[noisy] = rng.random((noisy.sum(), 16, 16, 3))
    shares[tree.leaf_at([[900, 1800]])] = (0, 0, 1)
    painted = counted(monkeypatch)
    out = np.zeros(tree.shape, np.uint8)
    fill_ids(out, painter(shares, tree, smooth=True), 3, (0, 0, *tree.shape))
    assert sorted(painted) == [(0, 0, 512, 512), (512, 0, 1024, 512)]
    np.testing.assert_array_equal(out, likeliest(tree.paint(shares, smooth=True)))


def test_many_classes_need_wider_ids() -> None:
    shares = np.zeros((1, 1, 1, 300), np.float32)
    shares[..., 299] = 1
    assert likeliest(shares).tolist() == [[[299]]]
    out = np.zeros((3, 2), np.uint16)
    fill_ids(out, painter(np.repeat(shares, 1, 0), Tree.uniform((3, 2), 1, level=2), smooth=True), 300, (0, 0, 3, 2))
    assert out.tolist() == [[299, 299]] * 3


def test_pixels_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    true, found = rng.integers(0, 3, (2, 10, 10)).astype(np.uint8)
    expected = [[int(((true == a) & (found == b)).sum()) for b in range(3)] for a in range(3)]
    for size in (7, 100, 1000):
        monkeypatch.setattr(ids, "_COUNTED", size)
        assert count_pairs(true, found, 3).tolist() == expected
