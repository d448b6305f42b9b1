"""timm's BEiT: relative position bias, with or without absolute positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchtree.models.adapt.base import spacing
from patchtree.models.adapt.places import relative_bias
from patchtree.models.adapt.timm_common import Timm
from patchtree.tokens import Tokens


class TimmBeit(Timm):
    """timm's ``Beit`` on tokens: the bias between two leaves is read at the displacement of their centres.

    Displacements count cells of the uniform grid with as many leaves. As in timm's `resize_rel_pos_bias_table`, one
    cell away is one cell away on every grid, and further ones are drawn together so that the largest fits the table.
    The bias takes ``B x heads x N x N`` numbers, in every block that has a table of its own: 3 GB in float32 for 12
    heads and 8192 leaves.
    """

    exact = "every uniform tree that fills the image, as after set_input_size"
    approximate = "relative bias between leaves of different sizes is interpolated; its memory grows as N x N"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        tables = (model.rel_pos_bias, *(block.attn for block in model.blocks))
        self.packs = all(getattr(part, "relative_position_bias_table", None) is None for part in tables)

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches after the class token, with the displacements between leaves and the bias that blocks share."""
        x = self.sequence(tokens)
        if self.packs:
            return x, None
        model: Any = self.model
        apart = displacements(tokens, model.patch_embed.grid_size)
        return x, (apart, None if model.rel_pos_bias is None else _bias(model.rel_pos_bias, apart))

    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one block; its attention is computed here, for timm's reads the table at the native grid only."""
        block: Any = self.model.blocks[number]  # type: ignore[index]
        attn = block.attn
        apart, bias = beside or (None, None)
        if apart is not None and attn.relative_position_bias_table is not None:
            own = _bias(attn, apart)
            bias = own if bias is None else own + bias
        if bias is not None:
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        first, second = (1, 1) if block.gamma_1 is None else (block.gamma_1, block.gamma_2)
        x = x + block.drop_path1(first * _attend(attn, block.norm1(x), mask))
        out: Tensor = x + block.drop_path2(second * block.mlp(block.norm2(x)))
        return out


def displacements(tokens: Tokens, native: tuple[int, int]) -> Tensor:
    """Give where in a table of relative bias each pair of leaves reads, ``(B, N, N, 2)``, in cells from its middle.

    Args:
        tokens: B images of N tokens.
        native: cells of the grid that the table was made for, ``(Gy, Gx)``.

    Source: H. Bao et al., BEiT: BERT Pre-Training of Image Transformers, ICLR 2022; the code for fine-tuning.
    """
    unit = spacing(tokens)[:, None]
    place = tokens.centre / unit[..., None]
    apart = place[:, :, None] - place[:, None]
    grid = tokens.extent / unit
    knots = _knots(native, grid).to(place)
    flat = apart.abs().flatten(1, 2).movedim(-1, 1).contiguous()  # (B, 2, N * N)
    below = (torch.searchsorted(knots, flat, right=True) - 1).clamp(max=knots.shape[-1] - 2)
    low = knots.gather(-1, below)
    steps = below + (flat - low) / (knots.gather(-1, below + 1) - low)
    return steps.movedim(1, -1).view_as(apart) * apart.sign()


def _knots(native: tuple[int, int], grid: Tensor) -> Tensor:
    """Give the displacement in cells of the grid at which each entry from the middle of the table lies, ``(B, 2, G)``.

    The steps grow by a factor that makes the last displacement of the table that of the grid, found by halving an
    interval as timm does, to the same digits. On the native grid they do not grow.
    """
    cells = torch.tensor(native, device=grid.device)
    grid = grid.double()
    low, high = torch.full_like(grid, 1.01), torch.full_like(grid, 1.5)
    factor = low
    for _ in range(_HALVINGS):
        factor = (low + high) / 2
        far = (1 - factor ** (cells - 1)) / (1 - factor) > grid - 1
        low, high = torch.where(far, low, factor), torch.where(far, factor, high)
    same = ((grid - cells).abs() < _SAME).all(1, keepdim=True)
    factor = torch.where(same, torch.ones_like(factor), factor)
    step = factor[..., None] ** torch.arange(max(2, *native) - 1, device=grid.device)
    return torch.nn.functional.pad(step.cumsum(-1), (1, 0))


_HALVINGS = 19  # from an interval of 0.49 to 1e-6
_SAME = 1e-3


def _bias(part: Any, apart: Tensor) -> Tensor:
    return relative_bias(part.relative_position_bias_table, part.window_size, apart)


def _attend(attn: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """Run timm's attention of BEiT with a bias, or mask, from outside."""
    own = None if attn.q_bias is None else torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    qkv = torch.nn.functional.linear(x, attn.qkv.weight, own)
    query, key, value = qkv.reshape(*x.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    dropped = attn.attn_drop.p if attn.training else 0.0
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(query.dtype)
    x = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias, dropped)
    out: Tensor = attn.proj_drop(attn.proj(x.transpose(1, 2).flatten(2)))
    return out
