"""What timm's families have in common: how a sequence begins, and what pooling makes of padding."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import Adapted, masked_mean, sizes
from patchtree.models.adapt.places import sample_grid
from patchtree.tokens import Tokens


class Timm(Adapted):
    """A model of timm's whose image enters by a patch convolution, with or without learned positions."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        embed = model.patch_embed
        if not isinstance(embed, PatchEmbed):
            raise InputError(
                f"{type(model).__name__} with the patch embedding {type(embed).__name__} looks beyond the patch; "
                "use through_mosaic(model)"
            )
        conv = embed.proj
        self.channels, self.patch_size = conv.in_channels, square(conv.kernel_size)
        refuse_dropped(model)
        self.width, self.depth, self.prefix = model.embed_dim, len(model.blocks), model.num_prefix_tokens
        self.packs, self.checkpointing = fused(model.blocks), model.grad_checkpointing

    def sequence(self, tokens: Tokens) -> Tensor:
        """Give patches with learned positions after the class token and registers, ``(B, prefix + N, D)``."""
        model: Any = self.model
        x = model.patch_embed.norm(self.project(tokens, model.patch_embed.proj))
        names = ("cls_token", "dist_token", "reg_token")
        lead = [part for name in names if (part := getattr(model, name, None)) is not None]
        before = torch.cat(lead, dim=1) if lead else x.new_zeros(1, 0, self.width)
        if model.pos_embed is not None:
            own = 0 if getattr(model, "no_embed_class", False) else self.prefix
            grid = model.pos_embed[0, own:].reshape(*model.patch_embed.grid_size, self.width)
            x = x + sample_grid(grid, tokens.centre, sizes(tokens), tokens.extent)
            before = before + model.pos_embed[:, :own] if own else before
        x = torch.cat([before.expand(len(x), -1, -1), x], dim=1)
        out: Tensor = model.pos_drop(x)
        return out

    def finish(self, x: Tensor) -> Tensor:
        """Apply the last norm, where the model has one before pooling."""
        out: Tensor = self.model.norm(x)  # type: ignore[operator]
        return out

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Give what ``forward_head(x, pre_logits=True)`` does, leaving padding out; None if the model does not pool."""
        model: Any = self.model
        if not model.global_pool:
            return None
        if valid is None or model.global_pool == "token":
            whole: Tensor = model.forward_head(x, pre_logits=True)
            return whole
        out: Tensor = model.head_drop(model.fc_norm(self._reduce(x, valid)))
        return out

    def _reduce(self, x: Tensor, valid: Tensor) -> Tensor:
        model: Any = self.model
        if self.pools_prefix:
            valid = torch.cat([valid.new_ones(len(valid), self.prefix), valid], dim=1)
        else:
            x = x[:, self.prefix :]
        pooling = getattr(model, "attn_pool", None)
        if isinstance(pooling, AttentionPoolLatent):
            out: Tensor = pooling(x, attn_mask=scores(valid[:, None, None], x))
            return out
        if pooling is not None:  # takes no mask: each image alone
            return torch.cat([pooling(row[own][None]) for row, own in zip(x, valid, strict=True)])
        if model.global_pool == "avg":
            return masked_mean(x, valid)
        most = x.masked_fill(~valid[..., None], float("-inf")).amax(1)
        return most if model.global_pool == "max" else 0.5 * (most + masked_mean(x, valid))

    @property
    def pools_prefix(self) -> bool:
        """Whether class token and registers are pooled with the leaves."""
        return bool(getattr(self.model, "pool_include_prefix", False))


def square(patch_size: tuple[int, ...]) -> int:
    """Give the side of a model's patches.

    Raises:
        InputError: they are not square.
    """
    if len(set(patch_size)) > 1:
        raise InputError(f"the model's patches are {' x '.join(map(str, patch_size))}; leaves are square")
    return patch_size[0]


def refuse_dropped(model: Any) -> None:
    """Refuse a model that leaves patches out.

    Raises:
        InputError: it was built with patch dropout.
    """
    if not isinstance(getattr(model, "patch_drop", None), nn.Identity | None):
        raise InputError("patch dropout would drop leaves; build the model with patch_drop_rate=0")


def scores(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Turn a mask, True where there is a token, into what is added to the scores; older releases add whatever comes."""
    return None if mask is None else x.new_zeros(mask.shape).masked_fill(~mask, float("-inf"))


def fused(blocks: nn.Module) -> bool:
    """Tell whether all of timm's attention calls ``F.scaled_dot_product_attention``, which can be packed."""
    return all(part.fused_attn for part in blocks.modules() if hasattr(part, "fused_attn"))
