"""Products of matrices are the convolution, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from patchtree.models import layers
from patchtree.models.layers import GhostConv
from patchtree.models.precision import trains_in_half
from patchtree.models.stencil import block_matrix, convolve_blocks, suits


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
    # One past the last cell is nothing; cells are seen by several leaves.
    index = torch.randint(0, leaves * grid**2 + 1, (leaves, (grid + 2) ** 2))
    parts = torch.randn(leaves * grid**2, inputs), layer.conv.weight, layer.conv.bias
    wanted = torch.randn(leaves, grid**2, outputs)

    def differentiate(convolve: Callable[..., Tensor], needed: Sequence[int]) -> list[Tensor]:
        given = [part.detach().clone().requires_grad_(at in needed) for at, part in enumerate(parts)]
        out = convolve(*given)
        return [out.detach(), *torch.autograd.grad(out, [given[at] for at in needed], wanted)]

    def slow(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        blocks = torch.cat([x, torch.zeros(1, inputs)])[index].view(leaves, grid + 2, grid + 2, inputs)
        return F.conv2d(blocks.movedim(-1, 1), weight, bias).movedim(1, -1).flatten(1, 2)

    for needed in ((0, 1, 2), (0,), (1,), (2,)):
        ours = differentiate(lambda x, weight, bias: convolve_blocks(x, index, weight, bias), needed)
        for one, other in zip(ours, differentiate(slow, needed), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_layer_is_the_same_with_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = GhostConv(3, 5), torch.randn(4, 4, 3)
    index = torch.randint(0, 17, (4, 16))
    calls = []

    def watched(*given: Tensor) -> Tensor:
        calls.append(given)
        return convolve_blocks(*given)

    monkeypatch.setattr(layers, "convolve_blocks", watched)
    quick = layer(x, index)
    assert len(calls) == 1
    monkeypatch.setattr(layers, "suits", lambda *_: False)
    torch.testing.assert_close(quick, layer(x, index), atol=1e-5, rtol=1e-5)
    assert len(calls) == 1


def test_its_multiply_adds_are_counted() -> None:
    x, weight = torch.zeros(8, 3, requires_grad=True), torch.zeros(5, 3, 3, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        convolve_blocks(x, torch.zeros(2, 16, dtype=torch.long), weight, torch.zeros(5)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 4 * 9 * 3 * 5)


def test_no_leaves_are_no_cells() -> None:
    x, index = torch.zeros(0, 3), torch.zeros(0, 16, dtype=torch.long)
    assert convolve_blocks(x, index, torch.zeros(5, 3, 3, 3), torch.zeros(5)).shape == (0, 4, 5)


def test_it_is_for_single_precision_on_a_processor() -> None:
    x, weight = torch.zeros(1, 4, 8), torch.zeros(8, 8, 3, 3)
    assert suits(x, weight)
    assert not suits(x.half(), weight.half())
    assert not suits(x, torch.zeros(8, 8, 3, 3, 3))
    assert not suits(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(x, weight)


@given(
    grid=st.integers(1, 3),
    ndim=st.sampled_from([2, 3]),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_the_matrix_of_a_block_is_its_convolution(grid: int, ndim: int, inputs: int, outputs: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(outputs, inputs, *(3,) * ndim, requires_grad=True)
    blocks = torch.randn(4, *(grid + 2,) * ndim, inputs)
    wanted = torch.randn(4, grid**ndim, outputs)
    slow = (F.conv2d if ndim == 2 else F.conv3d)(blocks.movedim(-1, 1), weight).movedim(1, -1).flatten(1, -2)
    quick = (blocks.flatten(1) @ block_matrix(weight, grid).T).view(4, grid**ndim, outputs)
    torch.testing.assert_close(quick, slow, atol=1e-4, rtol=1e-4)
    gradients = (torch.autograd.grad(out, weight, wanted)[0] for out in (quick, slow))
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_in_half_precision_grids_of_two_cells_are_trained_by_their_matrix() -> None:
    layer, x, index = GhostConv(3, 5), torch.randn(4, 4, 3), torch.randint(0, 17, (4, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert trains_in_half(x)
        trained = layer(x, index)
        with torch.no_grad():
            assert not trains_in_half(x)
            predicted = layer(x, index)
    assert trained.dtype == predicted.dtype == torch.bfloat16
    torch.testing.assert_close(trained, predicted, atol=0.05, rtol=0.05)
    gradient, *_ = torch.autograd.grad(trained.float().square().sum(), layer.conv.weight)
    same, *_ = torch.autograd.grad(layer(x, index).square().sum(), layer.conv.weight)
    torch.testing.assert_close(gradient, same, atol=0.1, rtol=0.05)
