"""Turning moves pixels as numpy's own turns do, whatever they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtree.turns import turn

TYPES = (np.bool_, np.uint8, np.int16, np.float16, np.uint32, np.float32, np.int64, np.float64, np.complex128)


@given(
    shape=st.tuples(st.integers(0, 9), st.integers(1, 9)),
    channels=st.sampled_from([(), (1,), (3,), (5,), (2, 2)]),
    dtype=st.sampled_from(TYPES),
    flip=st.booleans(),
    turns=st.integers(0, 3),
    step=st.sampled_from([1, 2, -1]),
)
def test_turning_is_that_of_numpy(
    shape: tuple[int, int], channels: tuple[int, ...], dtype: type, flip: bool, turns: int, step: int
) -> None:
    values = np.random.default_rng(0).integers(0, 200, (*shape, *channels)).astype(dtype)[::step, ::step]
    turned = turn(values, flip, turns)
    np.testing.assert_array_equal(turned, np.rot90(values[:, ::-1] if flip else values, turns))
    assert turned.dtype == values.dtype
    assert turned.flags["C_CONTIGUOUS"]
    assert not np.shares_memory(turned, values)


@pytest.mark.parametrize("turns", range(4))
def test_every_bit_of_a_number_is_kept(turns: int) -> None:
    bits = np.arange(12, dtype=np.uint64).reshape(3, 4) | np.uint64(0x7FF0_0000_0000_0000)
    turned = turn(bits.view(np.float64), flip=True, turns=turns)
    np.testing.assert_array_equal(turned.view(np.uint64), np.rot90(bits[:, ::-1], turns))


def test_a_side_longer_than_opencv_4_samples_is_turned() -> None:
    values = np.arange(40_000, dtype=np.uint16)[None]
    np.testing.assert_array_equal(turn(values, flip=False, turns=1)[:, 0], values[0, ::-1])
