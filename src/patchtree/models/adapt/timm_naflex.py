"""timm's NaFlexVit: sequences of patches by design, with learned, factorised or rotary positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import Adapted, sizes, spacing
from patchtree.models.adapt.places import sample_grid
from patchtree.models.adapt.timm_common import fused, refuse_dropped, scores, square
from patchtree.models.adapt.timm_rotary import Rotary
from patchtree.tokens import Tokens


class TimmNaflex(Adapted):
    """timm's ``NaFlexVit`` on tokens, embedded by its own modules; its positions, made for full grids, are sampled.

    Modes of interpolation, its antialiasing and whether it keeps the image's aspect are the model's own.
    """

    exact = "every uniform tree that fills the image, as its own path for patches"
    approximate = "rotary positions that count patches count cells of the uniform grid with as many leaves"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        embeds = model.embeds
        refuse_dropped(model)
        if embeds.pos_embed_type == "learned" and embeds.pos_embed_antialias and _corners(embeds):
            raise InputError("positions aligned at the corners are read without antialiasing; set pos_embed_antialias")
        self.channels, self.patch_size = model.in_chans, square(embeds.patch_size)
        self.width, self.depth, self.prefix = model.embed_dim, len(model.blocks), model.num_prefix_tokens
        self.packs, self.checkpointing = fused(model.blocks), model.grad_checkpointing
        self._rotary = None if model.rope is None else Rotary(model.rope)

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches with positions after the class token and registers, and the places for the rotation."""
        model: Any = self.model
        embeds = model.embeds
        x = embeds.norm(self._patches(tokens))
        if (place := self._positions(tokens)) is not None:
            x = x + place
        lead = [part.expand(len(x), -1, -1) for part in (embeds.cls_token, embeds.reg_token) if part is not None]
        x = model.norm_pre(embeds.pos_drop(torch.cat([*lead, x], dim=1)))
        return x, None if self._rotary is None else self._rotary.places(tokens, self.prefix)

    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one of timm's blocks."""
        block: Any = self.model.blocks[number]  # type: ignore[index]
        turns = {} if self._rotary is None else {"rope": self._rotary.turns(beside, number, self.prefix)}
        out: Tensor = block(x, attn_mask=scores(mask, x), **turns)
        return out

    def finish(self, x: Tensor) -> Tensor:
        """Apply the last norm, where the model has one before pooling."""
        out: Tensor = self.model.norm(x)  # type: ignore[operator]
        return out

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Give what ``forward_head(x, pre_logits=True)`` does, which leaves padding out."""
        model: Any = self.model
        if not model.global_pool:
            return None
        out: Tensor = model.forward_head(x, pre_logits=True, patch_valid=valid)
        return out

    def _patches(self, tokens: Tokens) -> Tensor:
        embeds: Any = self.model.embeds
        if not embeds.is_linear:
            return self.project(tokens, embeds.proj)
        last = getattr(embeds, "channels_last", True)
        side, old = tokens.patch_size, self.patch_size
        if side != old:
            if embeds.norm_input is not None:
                raise InputError(
                    f"the model normalises patches of {old} x {old} pixels and takes no others; "
                    f"the tokens' are {side} x {side}"
                )
            shape = (old, old, self.channels) if last else (self.channels, old, old)
            weight = embeds.proj.weight.reshape(-1, *shape)
            weight = self.kernel(weight.permute(0, 3, 1, 2) if last else weight, side)
            return nn.functional.linear(tokens.pixels.flatten(2).to(weight.dtype), weight.flatten(1), embeds.proj.bias)
        pixels = tokens.pixels.movedim(2, -1) if last else tokens.pixels
        pixels = pixels.flatten(2).to(embeds.proj.weight.dtype)
        out: Tensor = embeds.proj(pixels if embeds.norm_input is None else embeds.norm_input(pixels))
        return out

    def _positions(self, tokens: Tokens) -> Tensor | None:
        embeds: Any = self.model.embeds
        if embeds.pos_embed_type == "none":
            return None
        centre, side = tokens.centre, sizes(tokens)
        extent = tokens.extent
        if embeds.pos_embed_ar_preserving:
            extent = extent.amax(1, keepdim=True).expand_as(extent)
        if embeds.pos_embed_type == "factorized":
            tables = (embeds.pos_embed_y[0], embeds.pos_embed_x[0])
            rows, columns = (
                sample_grid(table, centre[..., i : i + 1], side, extent[:, i : i + 1], "bilinear", antialias=False)
                for i, table in enumerate(tables)
            )
            return rows + columns
        if _corners(embeds):
            centre = self._aligned(centre, extent, spacing(tokens)[:, None, None])
        smooth = embeds.pos_embed_antialias and not embeds.pos_embed_use_grid_sample
        return sample_grid(embeds.pos_embed[0], centre, side, extent, embeds.pos_embed_interp_mode, antialias=smooth)

    def _aligned(self, centre: Tensor, extent: Tensor, unit: Tensor) -> Tensor:
        """Move centres so that the first and the last patch of a grid read its corners."""
        cells = torch.tensor(self.model.embeds.pos_embed.shape[1:3], device=centre.device)  # type: ignore[union-attr,index]
        extent = extent[:, None]
        place = (centre / unit - 0.5) * (cells - 1) / (extent / unit - 1).clamp(min=1)
        return (place + 0.5) * extent / cells


def _corners(embeds: Any) -> bool:
    return bool(getattr(embeds, "pos_embed_align_corners", False))
