"""timm's VisionTransformer and DeiT: learned positions, with or without class token and registers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from patchtree.models.adapt.timm_common import Timm, scores
from patchtree.tokens import Tokens


class TimmVit(Timm):
    """timm's ``VisionTransformer`` (ViT, DeiT, CLIP, SigLIP and DINOv2 among them) on tokens.

    Positions are read as timm's `resample_abs_pos_embed` does: bicubic, antialiased.
    """

    exact = "every uniform tree that fills the image, as with dynamic_img_size"
    approximate = ""

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches with positions after the class token and registers."""
        return self.model.norm_pre(self.sequence(tokens)), None  # type: ignore[operator]

    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one of timm's blocks."""
        block: Any = self.model.blocks[number]  # type: ignore[index]
        out: Tensor = block(x, attn_mask=scores(mask, x))
        return out
