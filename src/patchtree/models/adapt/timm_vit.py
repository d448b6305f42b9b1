"""timm's VisionTransformer and DeiT: learned positions, with or without class token and registers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import Adapted, masked_mean, sizes
from patchtree.models.adapt.places import sample_grid
from patchtree.tokens import Tokens


class TimmVit(Adapted):
    """timm's ``VisionTransformer`` (ViT, DeiT, CLIP, SigLIP and DINOv2 among them) on tokens.

    Positions are read as timm's `resample_abs_pos_embed` does: bicubic, antialiased.
    """

    exact = "at every grid"
    approximate = ""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        conv = getattr(model.patch_embed, "proj", None)
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size != conv.stride:
            raise InputError(
                f"{type(model).__name__} with the patch embedding {type(model.patch_embed).__name__} looks beyond the "
                "patch; use through_mosaic(model)"
            )
        if not isinstance(model.patch_drop, nn.Identity):
            raise InputError("patch dropout would drop leaves; build the model with patch_drop_rate=0")
        self.width, self.depth, self.prefix = model.embed_dim, len(model.blocks), model.num_prefix_tokens
        self.channels, self.patch_size = conv.in_channels, conv.kernel_size[0]

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches with positions after the class token and registers."""
        model: Any = self.model
        x = model.patch_embed.norm(self.project(tokens, model.patch_embed.proj))
        lead = [
            part for part in (model.cls_token, getattr(model, "dist_token", None), model.reg_token) if part is not None
        ]
        before = torch.cat(lead, dim=1) if lead else x.new_zeros(1, 0, self.width)
        if model.pos_embed is not None:
            own = 0 if model.no_embed_class else self.prefix
            grid = model.pos_embed[0, own:].unflatten(0, model.patch_embed.grid_size)
            x = x + sample_grid(grid, tokens.centre, sizes(tokens), tokens.extent)
            before = before + model.pos_embed[:, :own] if own else before
        x = torch.cat([before.expand(len(x), -1, -1), x], dim=1)
        return model.norm_pre(model.pos_drop(x)), None

    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one of timm's blocks."""
        block: Any = self.model.blocks[number]  # type: ignore[index]
        out: Tensor = block(x, attn_mask=mask)
        return out

    def finish(self, x: Tensor) -> Tensor:
        """Apply the last norm, where the model has one before pooling."""
        out: Tensor = self.model.norm(x)  # type: ignore[operator]
        return out

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Give what ``forward_head(x, pre_logits=True)`` does, leaving padding out."""
        model: Any = self.model
        if valid is None:
            return self._head(model, x)
        if model.attn_pool is not None:
            # Each image alone: the pooling takes no mask.
            rows = [self._head(model, x[i : i + 1, : self.prefix + int(own.sum())]) for i, own in enumerate(valid)]
            return torch.cat(rows)
        if model.global_pool == "avg" and not model.pool_include_prefix:
            return model.fc_norm(masked_mean(x[:, self.prefix :], valid))  # type: ignore[no-any-return]
        return self._head(model, x)

    @staticmethod
    def _head(model: Any, x: Tensor) -> Tensor:
        out: Tensor = model.fc_norm(model.pool(x))
        return out
