"""Products of matrices are the convolution, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchtree.models import layers
from patchtree.models.layers import GhostConv
from patchtree.models.stencil import convolve_blocks, suits


@given(
    leaves=st.integers(1, 6),
    grid=st.sampled_from([2, 3, 4]),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_it_is_the_convolution_of_the_blocks(leaves: int, grid: int, inputs: int, outputs: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = GhostConv(inputs, outputs)
    x = torch.randn(leaves, grid**2, inputs)
    # One past the last cell is nothing; cells are seen by several leaves.
    index = torch.randint(0, leaves * grid**2 + 1, (leaves, (grid + 2) ** 2))
    wanted = torch.randn(leaves, grid**2, outputs)

    def run() -> list[torch.Tensor]:
        layer.zero_grad()
        given = x.clone().requires_grad_()
        out = layer(given, index)
        out.backward(wanted)
        return [out.detach(), *(part.grad for part in (given, layer.conv.weight, layer.conv.bias))]

    quick = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "suits", lambda *_: False)
        slow = run()
    for ours, theirs in zip(quick, slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_gradients_of_the_inputs_alone_and_of_the_weights_alone() -> None:
    torch.manual_seed(0)
    index = torch.randint(0, 9, (2, 16))
    for wanted in range(3):
        parts = [torch.randn(8, 3), torch.randn(5, 3, 3, 3), torch.randn(5)]
        parts[wanted].requires_grad_()
        x, weight, bias = parts
        convolve_blocks(x, index, weight, bias).sum().backward()
        assert [part.grad is not None for part in parts] == [at == wanted for at in range(3)]


def test_it_is_for_single_precision_on_a_processor() -> None:
    x, weight = torch.zeros(1, 4, 8), torch.zeros(8, 8, 3, 3)
    assert suits(x, weight)
    assert not suits(x.half(), weight.half())
    assert not suits(x, torch.zeros(8, 8, 3, 3, 3))
    assert not suits(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(x, weight)
