"""transformers' DINOv3 ViT: rotary positions, class token and registers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from patchtree.models.adapt.hf_base import HfAdapted
from patchtree.tokens import Tokens


class HfDinov3(HfAdapted):
    """DINOv3 ViT on tokens: keys and queries are turned by the leaf's centre, as a share of the whole image.

    In training the centres are shifted, jittered and rescaled as the original's are, once a batch.
    """

    exact = "at every grid"
    approximate = "leaves of several sizes: rotary positions know a leaf's centre, not its size"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.prefix = 1 + self.backbone.embeddings.register_tokens.shape[1]

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches after the class token and registers, and the cosine and sine of their turns."""
        backbone = self.backbone
        inner, rope = backbone.embeddings, backbone.rope_embeddings
        x = self.project(tokens, inner.patch_embeddings)
        before = torch.cat([inner.cls_token, inner.register_tokens], dim=1)
        x = torch.cat([before.expand(len(x), -1, -1), x], dim=1)

        place = 2 * tokens.centre / tokens.extent[:, None] - 1
        if rope.training:
            from transformers.models.dinov3_vit.modeling_dinov3_vit import augment_patches_center_coordinates

            config = rope.config
            place = augment_patches_center_coordinates(
                place, config.pos_embed_shift, config.pos_embed_jitter, config.pos_embed_rescale
            )
        turn = (2 * math.pi * place[..., None] * rope.inv_freq.float()).flatten(2).tile(2)
        turn = torch.cat([turn.new_zeros(len(x), self.prefix, turn.shape[-1]), turn], dim=1)  # the prefix is not turned
        return x, (turn.cos().to(x.dtype), turn.sin().to(x.dtype))

    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one of the backbone's layers."""
        turns = tuple(part[:, None] for part in beside)
        out: Tensor = self.layers[number](x, self.to_mask(mask, x), position_embeddings=turns)
        return out

    def finish(self, x: Tensor) -> Tensor:
        """Apply the last norm."""
        out: Tensor = self.backbone.norm(x)
        return out

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Give the class token."""
        return x[:, 0]
