"""Segments that meet are found whatever their place and length, as by looking at every pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree.io.segments import Strips, _meet, meetings


def every_pair(start: NDArray[np.generic], end: NDArray[np.generic], group: NDArray[np.int64]) -> set[tuple[int, ...]]:
    i, j = np.triu_indices(len(start), 1)
    i, j = i[group[i] == group[j]], j[group[i] == group[j]]
    meet, cross = _meet(start[i], end[i], start[j], end[j])
    return set(zip(i[meet].tolist(), j[meet].tolist(), cross[meet].tolist(), strict=True))


@given(
    number=st.integers(0, 60),
    size=st.sampled_from([3, 12, 400]),
    length=st.sampled_from([1, 4, 400]),
    groups=st.integers(1, 3),
    floats=st.booleans(),
    seed=st.integers(0, 999),
)
def test_pairs_are_those_of_all_pairs(
    number: int, size: int, length: int, groups: int, floats: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    start = rng.integers(-size, size, (number, 2))
    end = start + rng.integers(-length, length + 1, (number, 2))
    group = rng.integers(0, groups, number)
    if floats:
        start, end = start / 4 + 1e5, end / 4 + 1e5
    i, j, crossing = meetings(start, end, group)
    found = list(zip(i.tolist(), j.tolist(), crossing.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == every_pair(start, end, group)


@pytest.mark.parametrize("length", [0, 1, 10_000])
def test_strips_are_few_where_spans_are_long(length: int) -> None:
    low = np.arange(10_000) % 1000
    strips = Strips.of(low, low + length)
    of, strip = strips.cover(low, low + length)
    assert strips.count == (1 if length == 10_000 else 100)
    assert len(of) <= 3 * len(low)
    assert strip.min() >= 0
    assert strip.max() < strips.count
