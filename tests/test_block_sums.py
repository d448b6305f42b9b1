"""Sums of blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtree.block_sums import sum_squares, sum_values
from patchtree.pyramid import pyramid


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    side=st.sampled_from([1, 3, 16, 17]),
    low=st.sampled_from([0, 200, 254]),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_squares_of_8_bit_levels_are_summed_exactly(
    level: int, rows: int, columns: int, side: int, low: int, seed: int
) -> None:
    shape = (4 * rows, 4 * columns)
    image = np.random.default_rng(seed).integers(low, 256, (*shape, 3)).astype(np.uint8)
    *_, picture = pyramid(image, level)
    squares = np.square(picture.values.astype(np.float64)).sum(-1) * 4**level
    np.testing.assert_array_equal(sum_squares(picture.values, side, shape, level), sum_values(squares, side))
