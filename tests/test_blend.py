from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import Tree, blend
from patchtree.blend import Blend, Layer
from patchtree.foveate import Box, Window
from patchtree.tree import grow

Parts = list[tuple[Window, Tree, NDArray[np.float32]]]


@pytest.fixture(scope="module", autouse=True)
def small_cells() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blend, "_CELL", 4)
        patch.setattr(blend, "_PAINTED", 8)
        yield


@st.composite
def parts(draw: st.DrawFn) -> tuple[Parts, bool]:
    """Windows of a small slide, each with a tree of its own and probabilities that are plain in places."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 120)), draw(st.integers(1, 120))
    patch_size, classes = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(1, 4))
    top = ((max(shape) - 1) // patch_size).bit_length()
    found: Parts = []
    # Nearly as likely as each other, so that what lies around decides far into a leaf.
    plain = np.where(np.arange(classes) == rng.integers(classes, size=(4, 4, 1)), 1.02, 1) / (classes + 0.02)
    for _ in range(draw(st.integers(1, 3))):
        tree = grow(shape, patch_size, top, lambda _, cells: rng.random(len(cells)) < 0.7)
        y0, x0 = (int(rng.integers(length)) for length in shape)
        box = y0, x0, int(rng.integers(y0, shape[0])) + 1, int(rng.integers(x0, shape[1])) + 1
        box = draw(st.sampled_from([box, (0, 0, *shape)]))
        places = np.clip(tree.centres() * 4 // shape, 0, 3).astype(int)
        shares = np.broadcast_to(
            plain[places[:, 0], places[:, 1]][:, None, None], (len(tree), patch_size, patch_size, classes)
        ).copy()
        some = rng.random(len(tree)) < 0.1
        shares[some] = np.eye(classes)[rng.integers(classes, size=shares[some].shape[:3])]
        found.append((Window(box, 64, 0, int(rng.integers(1, 9)), shape), tree, shares.astype(np.float32)))
    return found, draw(st.booleans())


def slow(found: Parts, tissue: NDArray[np.bool_], smooth: bool) -> NDArray[np.float64]:
    """Paint every window whole and average, ``(H, W, K)``."""
    shape, classes = found[0][0].shape, found[0][2].shape[-1]
    total, weights = np.zeros((*shape, classes)), np.zeros((*shape, 1))
    for window, tree, shares in found:
        y0, x0, y1, x1 = window.box
        weight = window.weight(window.box)[..., None].astype(np.float64)
        total[y0:y1, x0:x1] += tree.paint(shares, smooth=smooth)[y0:y1, x0:x1] * weight
        weights[y0:y1, x0:x1] += weight
    there = (weights[..., 0] > 0) & tissue
    total[there] /= weights[there]
    total[~there] = np.eye(classes)[0]
    return total


@given(parts(), st.integers(0, 2**32))
def test_fast_painting_gives_what_painting_everything_does(case: tuple[Parts, bool], seed: int) -> None:
    (found, smooth), rng = case, np.random.default_rng(seed)
    shape = found[0][0].shape
    tissue = rng.random([-(-length // 16) for length in shape]) < 0.9
    shown = np.repeat(np.repeat(tissue, 16, 0), 16, 1)[: shape[0], : shape[1]]
    expected = slow(found, shown, smooth)
    y0, x0 = (int(rng.integers(length)) for length in shape)
    inside = y0, x0, int(rng.integers(y0, shape[0])) + 1, int(rng.integers(x0, shape[1])) + 1
    blended = Blend([Layer(window, tree, shares, smooth) for window, tree, shares in found], tissue, 16)
    boxes: list[Box] = [(0, 0, *shape), inside]
    for box in boxes:
        part = expected[box[0] : box[2], box[1] : box[3]]
        np.testing.assert_allclose(blended.probabilities(box), part, atol=1e-5)
        ids = blended.ids(box)
        assert ids.dtype == np.uint8
        # Where two classes are as likely as each other, rounding decides.
        chosen = np.take_along_axis(part, ids[..., None].astype(np.int64), -1)[..., 0]
        np.testing.assert_allclose(chosen, part.max(-1), atol=1e-5)


def test_plain_places_are_not_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree.uniform((256, 256), 8)
    shares = np.zeros((len(tree), 8, 8, 3), np.float32)
    shares[..., 2] = 1
    mixed = tree.leaf_at([[100, 100]])
    shares[mixed, :4] = (0, 1, 0)
    layer = Layer(Window((0, 0, 256, 256), 64, 0, 1, (256, 256)), tree, shares)
    painted: list[Box] = []
    fill = layer.fill
    monkeypatch.setattr(layer, "fill", lambda out, box: (painted.append(box), fill(out, box))[1])
    ids = Blend([layer], np.ones((1, 1), bool), 256).ids((0, 0, 256, 256))
    assert sorted(np.unique(ids)) == [1, 2]
    assert 0 < sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in painted) < 32**2


def test_windows_that_disagree_go_over_into_each_other_without_a_step() -> None:
    shape = 64, 200
    tree = Tree.uniform(shape, 8)
    layers = []
    for left, right, share in ((0, 120, 0.2), (80, 200, 0.8)):
        shares = np.broadcast_to(np.float32([1 - share, share]), (len(tree), 8, 8, 2))
        layers.append(Layer(Window((0, left, 64, right), 64, 8, 40, shape), tree, shares))
    row = Blend(layers, np.ones((1, 1), bool), 200).probabilities((0, 0, 64, 200))[5, :, 1]
    assert row[:80].tolist() == pytest.approx([0.2] * 80)
    assert row[120:].tolist() == pytest.approx([0.8] * 80)
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() < 1.01 * 0.6 / 40


def test_many_classes_need_wider_ids() -> None:
    shares = np.zeros((1, 1, 1, 300), np.float32)
    shares[..., 299] = 1
    layer = Layer(Window((0, 0, 1, 1), 64, 0, 1, (1, 1)), Tree.uniform((1, 1), 1), shares)
    assert Blend([layer], np.ones((1, 1), bool), 1).ids((0, 0, 1, 1)).tolist() == [[299]]
