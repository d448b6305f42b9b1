"""transformers' CLIP, SigLIP and SigLIP 2: learned positions, pooled by class token or attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchtree.models.adapt.base import sizes
from patchtree.models.adapt.hf_base import HfAdapted, each_alone
from patchtree.models.adapt.places import sample_grid
from patchtree.tokens import Tokens


class HfClip(HfAdapted):
    """The vision model of CLIP on tokens; positions are read bicubic, as `interpolate_pos_encoding` does.

    As in the original, features of leaves are those before the last norm, and the pooled output is after it and before
    any projection to the space shared with text.
    """

    exact = "at every grid"
    approximate = "leaves of several sizes: a large leaf reads the position at its centre"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.prefix = 1

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches with positions after the class token."""
        backbone = self.backbone
        inner = backbone.embeddings
        places = inner.position_embedding.weight
        x = self.project(tokens, inner.patch_embedding)
        x = x + sample_grid(_square(places[1:]), tokens.centre, sizes(tokens), tokens.extent, antialias=False)
        before = (inner.class_embedding + places[0]).expand(len(x), 1, -1)
        return backbone.pre_layrnorm(torch.cat([before, x], dim=1)), None

    def finish(self, x: Tensor) -> Tensor:
        """Give the tokens as they are: only the pooled output has a last norm."""
        return x

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Give the normed class token."""
        out: Tensor = self.backbone.post_layernorm(x[:, 0])
        return out


class HfSiglip(HfAdapted):
    """The vision model of SigLIP on tokens; positions are read bicubic, as `interpolate_pos_encoding` does."""

    exact = "at every grid"
    approximate = "leaves of several sizes: a large leaf reads the position at its centre"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.prefix = 0

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches with positions."""
        inner = self.backbone.embeddings
        grid = _square(inner.position_embedding.weight)
        x = self.project(tokens, inner.patch_embedding)
        return x + sample_grid(grid, tokens.centre, sizes(tokens), tokens.extent, antialias=False), None

    def finish(self, x: Tensor) -> Tensor:
        """Apply the last norm."""
        out: Tensor = self.backbone.post_layernorm(x)
        return out

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Give what the attention pooling head does, if there is one, leaving padding out."""
        backbone = self.backbone
        return each_alone(backbone.head, x, valid) if backbone.use_head else None


class HfSiglip2(HfSiglip):
    """The vision model of SigLIP 2 (NaFlex) on tokens: positions are read bilinear and antialiased, as it does."""

    approximate = ""

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches with positions."""
        inner = self.backbone.embeddings
        linear = inner.patch_embedding
        side = self.patch_size
        weight = linear.weight.unflatten(1, (side, side, self.channels)).movedim(
            -1, 1
        )  # its patches have channels last
        weight = self.kernel(weight, tokens.patch_size).flatten(1)
        x = F.linear(tokens.pixels.flatten(2).to(weight.dtype), weight, linear.bias)
        grid = _square(inner.position_embedding.weight)
        return x + sample_grid(grid, tokens.centre, sizes(tokens), tokens.extent, mode="bilinear"), None


def _square(places: Tensor) -> Tensor:
    """Give positions of a square grid, ``(G * G, D)``, as ``(G, G, D)``."""
    side = round(len(places) ** 0.5)
    return places.view(side, side, -1)
