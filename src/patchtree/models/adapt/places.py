"""Positions at a leaf's true centre and scale: sampling a model's grid of position embeddings, resizing its kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_REACH = {"bilinear": 1.0, "bicubic": 2.0}


def sample_grid(
    grid: Tensor, centre: Tensor, size: Tensor, extent: Tensor, mode: str = "bicubic", antialias: bool = True
) -> Tensor:
    """Read a grid of vectors that covers the whole image at the leaves' centres.

    On a uniform tree this equals ``F.interpolate`` of the grid to one vector a leaf, with the same `mode` and
    `antialias`: with antialiasing a leaf larger than a grid cell reads the mean over what it covers, without it the
    point at its centre.

    >>> grid = torch.arange(4.0).view(2, 2, 1)
    >>> centre = torch.tensor([[[8.0, 8.0], [8.0, 24.0], [24.0, 8.0], [24.0, 24.0]]])
    >>> sample_grid(grid, centre, torch.full((1, 4), 16.0), torch.tensor([[32.0, 32.0]]))[0, :, 0].tolist()
    [0.0, 1.0, 2.0, 3.0]

    Args:
        grid: ``(Gy, Gx, D)`` (``(Gz, Gy, Gx, D)`` in 3-D).
        centre: ``(B, N, d)``, pixels of the whole image.
        size: ``(B, N)``, side of the leaves in pixels.
        extent: ``(B, d)``, the whole image's shape in pixels.
        mode: ``"bicubic"`` or ``"bilinear"``.
        antialias: widen the kernel where a leaf covers more than a grid cell.

    Returns:
        ``(B, N, D)``, in the grid's dtype; computed in float32 or better.
    """
    shape = grid.shape[:-1]
    weights = None
    for axis, cells in enumerate(shape):
        step = cells / extent[:, axis, None].float()
        along = _taps(centre[..., axis] * step, size * step, cells, mode, antialias)
        weights = along if weights is None else (weights[..., :, None] * along[..., None, :]).flatten(-2)
    assert weights is not None
    with torch.autocast(weights.device.type, enabled=False):  # it would round the positions
        out: Tensor = weights @ grid.reshape(-1, grid.shape[-1]).to(weights.dtype)
    return out.to(grid.dtype)


def _taps(centre: Tensor, scale: Tensor, cells: int, mode: str, antialias: bool) -> Tensor:
    """Give the share of every cell of one axis, ``(..., cells)``, as ``F.interpolate`` computes it."""
    if antialias:
        scale = scale.clamp(min=1.0)
        cell = torch.arange(cells, device=centre.device) + 0.5
        share = _kernel((cell - centre[..., None]) / scale[..., None], mode, -0.5)
        return share / share.sum(-1, keepdim=True)
    reach = int(_REACH[mode])
    first = (centre - 0.5).floor()
    tap = first[..., None] + torch.arange(1 - reach, reach + 1, device=centre.device)
    share = _kernel(tap - (centre[..., None] - 0.5), mode, -0.75)
    return share.new_zeros(*centre.shape, cells).scatter_add_(-1, tap.clamp(0, cells - 1).long(), share)


def _kernel(x: Tensor, mode: str, a: float) -> Tensor:
    """Give the weight of a sample at distance `x` in cells; the cubic one has the slope `a` at 1."""
    x = x.abs()
    if mode == "bilinear":
        return (1 - x).clamp(min=0)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def displacements(centre: Tensor, extent: Tensor, shape: Sequence[int]) -> Tensor:
    """Give how far each leaf's centre is from every other's, in cells of a grid that covers the whole image.

    >>> centre = torch.tensor([[[8.0, 8.0], [8.0, 24.0]]])
    >>> displacements(centre, torch.tensor([[32.0, 32.0]]), (4, 4))[0, 1].tolist()
    [[0.0, 2.0], [0.0, 0.0]]

    Args:
        centre: ``(B, N, 2)``, pixels of the whole image.
        extent: ``(B, 2)``, the whole image's shape in pixels.
        shape: cells of the grid, ``(Gy, Gx)``.

    Returns:
        ``(B, N, N, 2)``; ``[:, i, j]`` is the place of i seen from j.
    """
    place = centre * (torch.tensor(shape, device=centre.device) / extent)[:, None]
    return place[:, :, None] - place[:, None]


def relative_bias(table: Tensor, shape: Sequence[int], apart: Tensor) -> Tensor:
    """Read BEiT's table of relative position bias at any displacements, bilinear, and clamped beyond its edges.

    At the displacements of a grid's own cells this is the table's entry itself.

    >>> table = torch.arange(12.0).view(12, 1)
    >>> apart = torch.tensor([[[[0.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [0.0, 0.0]]]])
    >>> relative_bias(table, (2, 2), apart)[0, 0].tolist()
    [[11.0, 9.0, 9.0], [10.0, 4.0, 3.0], [10.0, 5.0, 4.0]]

    Args:
        table: ``((2 Gy - 1) (2 Gx - 1) + 3, H)``; the last three are those of class token to leaf, of leaf to class
            token, and of class token to itself.
        shape: cells of the grid that the table was made for, ``(Gy, Gx)``.
        apart: ``(B, N, N, 2)`` from `displacements`.

    Returns:
        ``(B, H, 1 + N, 1 + N)``, the class token first.
    """
    reach = torch.tensor([max(cells - 1, 1) for cells in reversed(shape)], device=apart.device)
    grid = table[:-3].view(*(2 * cells - 1 for cells in shape), -1).movedim(-1, 0)
    bias = F.grid_sample(
        grid.expand(len(apart), -1, -1, -1).to(apart.dtype),
        apart.flip(-1) / reach,
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    bias = F.pad(bias.to(table.dtype), (1, 0, 1, 0))
    bias[:, :, 0, :], bias[:, :, :, 0] = table[-3, :, None], table[-2, :, None]
    bias[:, :, 0, 0] = table[-1]
    return bias


def resizer(old: int, new: int) -> Tensor:
    """Give the matrix that takes one axis of a patch kernel from `old` to `new` pixels, ``(new, old)``.

    Applied along every axis, the kernel's answer to a patch enlarged from `old` to `new` pixels is that of the old
    kernel to the patch itself (when `new` is larger; the least-squares choice when it is smaller).

    >>> resizer(16, 16).equal(torch.eye(16))
    True

    Source: L. Beyer et al., FlexiViT: One Model for All Patch Sizes, CVPR 2023.
    """
    if old == new:
        return torch.eye(old)
    enlarge = F.interpolate(torch.eye(old)[None, None], size=(new, old), mode="bicubic", antialias=True)[0, 0]
    matrix: Tensor = torch.linalg.pinv(enlarge.double()).T
    return matrix.float()


def resize_kernel(weight: Tensor, matrix: Tensor) -> Tensor:
    """Resize a patch kernel along all its spatial axes, ``(D, C, P, P)`` -> ``(D, C, p, p)``, 3-D alike.

    >>> resize_kernel(torch.zeros(8, 3, 16, 16), resizer(16, 8)).shape
    torch.Size([8, 3, 8, 8])

    Args:
        weight: the kernel.
        matrix: `resizer`'s, ``(p, P)``.
    """
    for _ in range(2, weight.ndim):
        weight = torch.tensordot(weight, matrix.to(weight), dims=([2], [1]))  # the new axis comes last
    return weight
