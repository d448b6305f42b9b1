"""The reference model's parts: convolutions on the mesh, changes of grid, and the place of a leaf.

Cells are held as ``(L, g**d, C)``: the L leaves of a batch (padding included), the cells of each leaf's grid in array
order, and the channels last, where gathers, norms and matrix products want them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchtree.models.precision import trains_in_half
from patchtree.models.stencil import block_matrix, convolve_blocks, suits

# What a channel that is all alike is divided by, of images with a deviation of about 1.
_FLAT = 1e-3


class GhostConv(nn.Module):
    """A 3 x 3 (x 3) convolution over the mesh: the border of every leaf's grid is read from its true neighbours.

    On a uniform tree it is the convolution of the whole image, padded with zeros.

    >>> from patchtree.models.ghosts import ghost_batch
    >>> from patchtree.tree import Tree
    >>> index = ghost_batch([Tree.uniform((32, 32), 16)], length=4, grids=[2])
    >>> GhostConv(8, 12)(torch.zeros(4, 4, 8), index[2]).shape
    torch.Size([4, 4, 12])
    """

    def __init__(self, inputs: int, outputs: int, ndim: int = 2) -> None:
        super().__init__()
        self.conv: nn.Conv2d | nn.Conv3d = (nn.Conv2d if ndim == 2 else nn.Conv3d)(inputs, outputs, kernel_size=3)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Convolve ``(L, g**d, C)`` -> ``(L, g**d, K)``, with `index` from `ghost_batch`."""
        leaves, cells, channels = x.shape
        ndim = self.conv.weight.ndim - 2
        grid = side(cells, ndim)
        x = x.reshape(-1, channels)
        if grid > 1 and suits(x, self.conv.weight):
            assert self.conv.bias is not None
            return convolve_blocks(x, index, self.conv.weight, self.conv.bias)
        blocks = torch.cat([x, x.new_zeros(1, channels)]).index_select(0, index.flatten())
        if grid == 1 or (grid == 2 and trains_in_half(x)):
            assert self.conv.bias is not None
            weight, bias = block_matrix(self.conv.weight, grid), self.conv.bias.repeat(cells)
            return F.linear(blocks.view(leaves, -1), weight, bias).view(leaves, cells, -1)
        blocks = blocks.view(leaves, *(grid + 2,) * ndim, channels).movedim(-1, 1)
        out: Tensor = self.conv(blocks)
        return out.movedim(1, -1).reshape(leaves, cells, -1)


class ResidualConv(nn.Module):
    """One convolution beside the identity: norm, GELU, `GhostConv`.

    The norm is over each cell's channels, so it depends neither on padding nor on where leaves end.

    >>> ResidualConv(8)(torch.zeros(2, 4, 8), torch.zeros(2, 16, dtype=torch.long)).shape
    torch.Size([2, 4, 8])
    """

    def __init__(self, width: int, ndim: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = GhostConv(width, width, ndim)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Refine cells ``(L, g**d, C)``, with `index` from `ghost_batch`."""
        out: Tensor = x + self.conv(F.gelu(self.norm(x)), index)
        return out


class Place(nn.Module):
    """Where a leaf is and how big, as a vector: Fourier features and a small network.

    >>> centre, size, extent = torch.tensor([[[8.0, 8.0]]]), torch.tensor([[16.0]]), torch.tensor([[512.0, 768.0]])
    >>> Place(192)(centre, size, extent).shape
    torch.Size([1, 1, 192])

    Source: M. Tancik et al., Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains,
    NeurIPS 2020.
    """

    octaves = 8

    def __init__(self, width: int, ndim: int = 2) -> None:
        super().__init__()
        features = (ndim + 1) * 2 * self.octaves
        self.net = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, centre: Tensor, size: Tensor, extent: Tensor) -> Tensor:
        """Embed leaves.

        Args:
            centre: ``(B, N, d)``, pixels of the whole image.
            size: ``(B, N)``, side in pixels.
            extent: ``(B, d)``, the whole image's shape in pixels; its longer side becomes 1.

        Returns:
            ``(B, N, width)``.
        """
        place = centre / extent.amax(dim=-1)[:, None, None]
        octave = size.log2()[..., None] / 16
        # Wavelengths of 2, 1, 1/2 ... of the longer side, so that its two ends differ.
        rate = math.pi * 2.0 ** torch.arange(self.octaves, device=place.device)
        phase = (torch.cat([place, octave], dim=-1)[..., None] * rate).flatten(-2)
        waves = torch.cat([phase.sin(), phase.cos()], dim=-1)
        out: Tensor = self.net(waves.to(self.net[0].weight.dtype))  # type: ignore[arg-type]
        return out


def standardise(pixels: Tensor, valid: Tensor) -> Tensor:
    """Take each image's own mean off each of its channels, and divide by its own deviation.

    Every patch counts the same, so that what is all alike, such as glass, does not decide; padding stays 0.

    >>> pixels = torch.tensor([1.0, 3.0, 9.0]).view(1, 3, 1, 1, 1)
    >>> standardise(pixels, torch.tensor([[True, True, False]])).flatten().round(decimals=2).tolist()
    [-1.0, 1.0, 0.0]

    Args:
        pixels: ``(B, N, C, p, p)``; 3-D alike.
        valid: ``(B, N)``, False on padding.
    """
    axes = (1, *range(3, pixels.ndim))
    pixels = pixels.float()
    there = valid.view(*valid.shape, *(1,) * (pixels.ndim - 2))
    count = there.sum(1, keepdim=True).clamp(min=1) * (pixels.shape[-1] ** (pixels.ndim - 3))
    mean = (pixels * there).sum(axes, keepdim=True) / count
    around = (pixels - mean) * there
    deviation = (around.square().sum(axes, keepdim=True) / count).sqrt()
    out: Tensor = around / (deviation + _FLAT)
    return out


def merge(x: Tensor, step: int, ndim: int) -> Tensor:
    """Join blocks of ``step**d`` cells into one, ``(L, g**d, C)`` -> ``(L, (g/step)**d, step**d * C)``.

    >>> merge(torch.arange(16).view(1, 16, 1), step=2, ndim=2)[0, 0].tolist()
    [0, 1, 4, 5]
    """
    leaves, cells, channels = x.shape
    blocks = x.reshape(leaves, *(side(cells, ndim) // step, step) * ndim, channels)
    axes = range(1, 2 * ndim, 2)
    blocks = blocks.permute(0, *axes, *(axis + 1 for axis in axes), -1)
    return blocks.reshape(leaves, cells // step**ndim, step**ndim * channels)


def split(x: Tensor, step: int, ndim: int) -> Tensor:
    """Undo `merge`, ``(L, g**d, step**d * C)`` -> ``(L, (g*step)**d, C)``.

    >>> x = torch.arange(16).view(1, 16, 1)
    >>> split(merge(x, 2, ndim=2), 2, ndim=2).equal(x)
    True
    """
    leaves, cells, _ = x.shape
    blocks = x.reshape(leaves, *(side(cells, ndim),) * ndim, *(step,) * ndim, -1)
    axes = [axis for pair in zip(range(1, ndim + 1), range(ndim + 1, 2 * ndim + 1), strict=True) for axis in pair]
    return blocks.permute(0, *axes, -1).reshape(leaves, cells * step**ndim, -1)


def side(cells: int, ndim: int) -> int:
    """Give g of ``g**d`` cells.

    >>> side(64, ndim=3)
    4
    """
    return round(math.pow(cells, 1 / ndim))
