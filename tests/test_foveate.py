from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtree import Tree
from patchtree.errors import InputError
from patchtree.foveate import Window, merge, plan_windows
from patchtree.tree import grow


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.integers(1, 9000)), draw(st.integers(1, 9000))
    side = draw(st.sampled_from([256, 512, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tissue = rng.random([-(-length // side) for length in shape]) < draw(st.sampled_from([0, 0.05, 0.5, 1]))
    density = 1 / draw(st.sampled_from([100, 400, 2400, 4096]))
    return {"tissue": tissue, "side": side, "shape": shape, "density": density, "budget": draw(st.integers(512, 9000))}


def pixels(tissue: np.ndarray, side: int, shape: tuple[int, int]) -> np.ndarray:
    """What is tissue at every 4th pixel."""
    rows, columns = (np.arange(0, length, 4) // side for length in shape)
    return tissue[rows][:, columns]


@given(plans())
def test_windows_cover_all_tissue_and_each_has_some(plan: dict[str, Any]) -> None:
    windows = plan_windows(**plan)
    assert windows == plan_windows(**plan)
    tissue = pixels(plan["tissue"], plan["side"], plan["shape"])
    covered = np.zeros_like(tissue)
    for window in windows:
        y0, x0, y1, x1 = window.box
        assert 0 <= y0 < y1 <= plan["shape"][0]
        assert 0 <= x0 < x1 <= plan["shape"][1]
        covered[-(-y0 // 4) : -(-y1 // 4), -(-x0 // 4) : -(-x1 // 4)] = True
        cells = plan["tissue"][y0 // plan["side"] : -(-y1 // plan["side"]), x0 // plan["side"] : -(-x1 // plan["side"])]
        assert cells.any()
        assert window.budget + window.around <= plan["budget"]
        assert window.shape == plan["shape"]
    assert covered[tissue].all()
    assert list(windows) == sorted(windows, key=lambda window: window.box[:2])


def test_one_window_where_the_budget_resolves_all_tissue() -> None:
    tissue = np.zeros((8, 8), bool)
    tissue[:2, :2] = True
    plan = {"tissue": tissue, "side": 512, "shape": (4000, 4096), "density": 1 / 1024}
    [whole] = plan_windows(**plan, budget=1024)  # type: ignore[arg-type]
    assert whole == Window((0, 0, 4000, 4096), 1024, 0, 1, (4000, 4096))
    assert len(plan_windows(**plan, budget=1023)) > 1  # type: ignore[arg-type]


def test_a_window_is_worth_its_tissue() -> None:
    tissue = np.zeros((16, 16), bool)
    tissue[:, :4] = tissue[0] = True
    windows = plan_windows(tissue, 1024, (16384, 16384), density=1 / 4096, budget=4096)
    for window in windows:
        y0, x0, y1, x1 = window.box
        there = np.repeat(np.repeat(tissue, 1024, 0), 1024, 1)[y0:y1, x0:x1].sum()
        assert window.budget == max(256, round(there / 4096))
        assert window.around == 512
    assert len({window.budget for window in windows}) > 2


def test_weights_fade_into_each_other_but_not_into_the_slides_border() -> None:
    windows = plan_windows(np.ones((20, 1), bool), 512, (10240, 400), density=1 / 256, budget=1024)
    tops = [window.box for window in windows]
    assert all(one[2] - other[0] == window.ramp for (one, other), window in zip(pairwise(tops), windows, strict=False))
    total = np.zeros(10240)
    for window in windows:
        weight = window.weight(window.box)
        assert weight.dtype == np.float32
        assert (weight > 0).all()
        assert (weight == weight[:, :1]).all()
        total[window.box[0] : window.box[2]] += weight[:, 0]
    np.testing.assert_allclose(total, 1, atol=1e-6)
    box = (100, 0, 300, 400)
    np.testing.assert_array_equal(windows[0].weight(box), windows[0].weight(windows[0].box)[100:300])


@given(st.integers(0, 2**32))
def test_a_merged_tree_is_the_finer_of_two_everywhere(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 150, 2).tolist())
    top = int(rng.integers(0, 6))
    one, other = (
        grow(shape, 4, top, lambda _, cells, share=share: rng.random(len(cells)) < share) for share in (0.5, 0.7)
    )
    merged = merge(one, other)
    np.testing.assert_array_equal(
        merged.paint(merged.level), np.minimum(one.paint(one.level), other.paint(other.level))
    )
    assert merged == merge(other, one)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InputError, match="do not go together"):
        merge(Tree.uniform((64, 64), 16), Tree.uniform((64, 32), 16))
    for options in (
        {"density": 0.0, "budget": 4096},
        {"density": np.inf, "budget": 4096},
        {"density": 1, "budget": 511},
    ):
        with pytest.raises(InputError, match="give more than 0, and at least 512"):
            plan_windows(np.ones((1, 1), bool), 512, (512, 512), **options)  # type: ignore[arg-type]
