"""transformers' ViT, DeiT, ViT-MSN, I-JEPA, Pixio, the encoder of ViT-MAE, and DINOv2: learned positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchtree.models.adapt.base import sizes
from patchtree.models.adapt.hf_base import HfAdapted
from patchtree.models.adapt.places import sample_grid
from patchtree.tokens import Tokens


class HfVit(HfAdapted):
    """ViT and its like on tokens, with or without class tokens, distillation token and registers.

    Positions are read as `interpolate_pos_encoding` does: bicubic, antialiased only in DINOv2 with registers. ViT-MAE
    sees every leaf: nothing is masked out or shuffled.
    """

    exact = "at every grid"
    approximate = "leaves of several sizes: a large leaf reads the position at its centre"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        inner = self.backbone.embeddings
        self._placed = [part for part in ("cls_token", "distillation_token") if hasattr(inner, part)]
        self._registers = hasattr(inner, "register_tokens")
        lead = self._placed + ["register_tokens"] * self._registers
        self.prefix = sum(getattr(inner, part).shape[1] for part in lead)

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches with positions after the class token, the distillation token and registers."""
        inner = self.backbone.embeddings
        patches = inner.patch_embeddings
        x = self.project(tokens, patches.projection)
        lead = [getattr(inner, part) for part in self._placed]
        before = torch.cat(lead, dim=1) if lead else x.new_zeros(1, 0, self.width)
        if inner.position_embeddings is not None:
            own = before.shape[1]
            shape = [side // self.patch_size for side in patches.image_size]
            grid = inner.position_embeddings[0, own:].unflatten(0, shape)
            x = x + sample_grid(grid, tokens.centre, sizes(tokens), tokens.extent, antialias=self._registers)
            before = before + inner.position_embeddings[:, :own]
        if self._registers:
            before = torch.cat([before, inner.register_tokens], dim=1)
        x = torch.cat([before.expand(len(x), -1, -1), x], dim=1)
        return (inner.dropout(x) if hasattr(inner, "dropout") else x), None

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Give the pooler output, or the class token if there is no pooler."""
        if self.prefix == 0:  # a pooler would read the first patch
            return None
        backbone = self.backbone
        if getattr(backbone, "pooler", None) is None:
            return x[:, : backbone.embeddings.cls_token.shape[1]].mean(1)
        out: Tensor = backbone.pooler(x)
        return out
