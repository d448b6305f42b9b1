"""torchvision's VisionTransformer: learned positions and a class token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import Adapted, sizes
from patchtree.models.adapt.places import sample_grid
from patchtree.tokens import Tokens


class TorchvisionVit(Adapted):
    """torchvision's ``VisionTransformer`` (``vit_b_16`` and its kin) on tokens.

    Positions are read as torchvision's `interpolate_embeddings` gives them to the grid of the image's finest leaves:
    bicubic, the grid's corners on the image's outermost leaves.
    """

    exact = "every uniform tree of a square image, as with interpolate_embeddings"
    approximate = ""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        conv = model.conv_proj
        if not isinstance(conv, nn.Conv2d):
            raise InputError(
                "VisionTransformer with a convolutional stem looks beyond the patch; use conv_stem_configs=None"
            )
        self.width, self.depth, self.prefix = model.hidden_dim, len(model.encoder.layers), 1
        self.channels, self.patch_size = conv.in_channels, conv.kernel_size[0]

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches with positions after the class token."""
        model: Any = self.model
        x = self.project(tokens, model.conv_proj)
        x = torch.cat([model.class_token.expand(len(x), -1, -1), x], dim=1)
        own = model.encoder.pos_embedding
        x = x + torch.cat([own[:, :1].expand(len(x), -1, -1), self._places(tokens, own[0, 1:])], dim=1)
        return model.encoder.dropout(x), None

    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one of torchvision's blocks, which take no mask themselves."""
        block: Any = self.model.encoder.layers[number]  # type: ignore[union-attr, index]
        x = x + block.dropout(_attend(block.self_attention, block.ln_1(x), mask))
        out: Tensor = x + block.mlp(block.ln_2(x))
        return out

    def finish(self, x: Tensor) -> Tensor:
        """Apply the last norm."""
        out: Tensor = self.model.encoder.ln(x)  # type: ignore[union-attr, operator]
        return out

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Give the class token, which the original's ``heads`` reads."""
        return x[:, 0]

    def _places(self, tokens: Tokens, positions: Tensor) -> Tensor:
        """Read positions at the leaves, the grid's corners on the outermost of the finest leaves."""
        cells = round(len(positions) ** 0.5)
        # Padding has level 0, which would look finest.
        finest = sizes(tokens).masked_fill(~tokens.valid, torch.inf).amin(dim=1)[:, None, None]
        steps = ((tokens.extent[:, None] / finest).ceil() - 1).clamp(min=1)
        corner = (tokens.centre / finest - 0.5) * (cells - 1) / steps
        # `sample_grid` wants pixels, and half a cell lies before a grid's first vector.
        centre = (corner + 0.5) * tokens.extent[:, None] / cells
        grid = positions.view(cells, cells, -1)
        return sample_grid(grid, centre, sizes(tokens), tokens.extent, antialias=False)


def _attend(attention: nn.MultiheadAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Do what ``attention(x, x, x)`` does in one call of scaled dot-product attention, which masks and packs."""
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.view(*x.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, mask, attention.dropout if attention.training else 0.0)
    return attention.out_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
