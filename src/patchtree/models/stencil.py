"""Convolutions of many small grids as products of matrices: quicker on a processor, above all backward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve_blocks` is for this: two dimensions, and a processor that computes in float32.

    In half precision each of the nine products would be rounded; a GPU has quick convolutions and waits for each call.

    >>> suits(torch.zeros(1, 4, 8), torch.zeros(8, 8, 3, 3))
    True
    """
    plain = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and weight.ndim == 4 and plain


def block_matrix(weight: Tensor, grid: int) -> Tensor:
    """Write a convolution of blocks of ``(g + 2)**d`` cells as one matrix, which is mostly zeros unless g is small.

    >>> block_matrix(torch.ones(5, 2, 3, 3), grid=1).shape, block_matrix(torch.ones(5, 2, 3, 3), grid=2).sum().item()
    (torch.Size([5, 18]), 360.0)

    Args:
        weight: ``(K, C, 3, 3)``; 3-D alike.
        grid: cells along the side of what it gives.

    Returns:
        ``(g**d * K, (g + 2)**d * C)``.
    """
    outputs, inputs, *sides = weight.shape
    kernel = weight.movedim(1, -1)
    if grid == 1:
        return kernel.flatten(1)
    matrix = weight.new_zeros(*(grid,) * len(sides), outputs, *(grid + 2,) * len(sides), inputs)
    for cell in product(range(grid), repeat=len(sides)):
        matrix[cell][(slice(None), *(slice(at, at + 3) for at in cell))] = kernel
    return matrix.view(grid ** len(sides) * outputs, -1)


def convolve_blocks(x: Tensor, index: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gather a block of ``(g + 2)**2`` cells for each of L leaves, and convolve it to ``g**2``.

    The leaves are the innermost axis but the channels, so the cells that one tap of the kernel meets in a row of all
    blocks lie in a row in memory: nine products of matrices, forward and each way backward, of views.

    >>> index = torch.arange(16)[None]
    >>> convolve_blocks(torch.ones(16, 3), index, torch.ones(5, 3, 3, 3), torch.zeros(5))[0, :, 0].tolist()
    [27.0, 27.0, 27.0, 27.0]

    Args:
        x: ``(M, C)``, cells.
        index: ``(L, (g + 2)**2)``, of cells; M stands for zeros.
        weight: ``(K, C, 3, 3)``.
        bias: ``(K,)``.

    Returns:
        ``(L, g**2, K)``.
    """
    out: Tensor = _Convolve.apply(x, index, weight, bias)
    return out


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, index: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        leaves, cells = index.shape
        side = math.isqrt(cells)
        grid, places = side - 2, index.T.reshape(-1)
        blocks = torch.cat([x, x.new_zeros(1, x.shape[1])]).index_select(0, places)
        blocks = blocks.view(side, side, leaves, x.shape[1])
        taps = weight.permute(2, 3, 1, 0).contiguous()
        out = bias.expand(grid, grid * leaves, -1).contiguous()
        for tap, row in _rows(blocks, grid):
            _add_product(out, row, taps[tap])
        ctx.save_for_backward(blocks, places, taps)
        ctx.cells = len(x)  # type: ignore[attr-defined]
        return out.view(grid**2, leaves, len(bias)).movedim(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        blocks, places, taps = ctx.saved_tensors  # type: ignore[attr-defined]
        grid = blocks.shape[0] - 2
        gradient = gradient.movedim(0, 1).reshape(grid, grid * gradient.shape[0], gradient.shape[-1])
        to_blocks, to_taps = torch.zeros_like(blocks), torch.empty_like(taps)
        for (tap, row), (_, given) in zip(_rows(blocks, grid), _rows(to_blocks, grid), strict=True):
            _add_product(given, gradient, taps[tap].T)
            to_taps[tap] = torch.bmm(row.transpose(1, 2), gradient).sum(0)
        to_cells = blocks.new_zeros(ctx.cells + 1, blocks.shape[-1])  # type: ignore[attr-defined]
        to_cells.index_add_(0, places, to_blocks.view(len(places), -1))
        return to_cells[:-1], None, to_taps.permute(3, 2, 0, 1), gradient.sum((0, 1))


def _rows(blocks: Tensor, grid: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Give for each tap of the kernel the cells that it meets, ``(g, g * L, C)``: views of the blocks."""
    for y, x in product(range(3), repeat=2):
        yield (y, x), blocks[y : y + grid, x : x + grid].view(grid, grid * blocks.shape[2], blocks.shape[-1])


def _add_product(out: Tensor, rows: Tensor, tap: Tensor) -> None:
    """Add ``(g, M, C)`` times ``(C, K)`` to ``(g, M, K)``; torch's counter of operations does not know `baddbmm_`."""
    torch.baddbmm(out, rows, tap.expand(len(rows), -1, -1), out=out)
