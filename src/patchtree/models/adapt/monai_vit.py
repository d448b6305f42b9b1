"""MONAI's ViT, on its own and as the encoder of UNETR and ViTAutoEnc, 2-D and 3-D."""

from __future__ import annotations

import warnings
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import Adapted, sizes
from patchtree.models.adapt.places import sample_grid
from patchtree.tokens import Tokens


class MonaiVit(Adapted):
    """MONAI's ``ViT``, or the transformer inside ``UNETR`` or ``ViTAutoEnc``, on tokens.

    Positions of every kind (learned, sincos, fourier) are read from the model's grid, bicubic along each axis,
    antialiased. ViT does not keep the shape of its grid: a number of positions that is a square (a cube in 3-D) is
    taken for one, unless ``model.img_size`` says more, ``(H, W)`` or ``(D, H, W)`` in pixels. The first image whose
    sides differ has that said in a warning.
    """

    exact = "uniform trees of the model's own grid"
    approximate = "other grids, which MONAI itself does not take: positions are interpolated"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        vit = self._vit
        sides, self.channels = _patches(vit.patch_embedding)
        self.ndim, self.patch_size = len(sides), sides[0]
        if set(sides) != {self.patch_size}:
            raise InputError(
                f"the model's patches are {' x '.join(map(str, sides))} pixels and leaves have equal sides; "
                "build it with one patch size for all axes"
            )
        embedding = vit.patch_embedding.position_embeddings
        self.width, self.depth, self.prefix = embedding.shape[-1], len(vit.blocks), int(hasattr(vit, "cls_token"))
        self._grid = _grid(model, embedding.shape[1], self.patch_size, self.ndim)
        self._guessed = not hasattr(model, "feat_size") and not hasattr(model, "img_size")
        # Blocks that are asked to keep their attention matrix must compute it.
        self.packs = not any(block.attn.save_attn for block in vit.blocks)

    @property
    def _vit(self) -> Any:
        return getattr(self.model, "vit", self.model)

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches with positions, after the class token where there is one."""
        self._tell(tokens)
        vit = self._vit
        x = self._patch(tokens, vit.patch_embedding)
        grid = vit.patch_embedding.position_embeddings[0].unflatten(0, self._grid)
        x = vit.patch_embedding.dropout(x + sample_grid(grid, tokens.centre, sizes(tokens), tokens.extent))
        return torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1) if self.prefix else x, None

    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one of MONAI's blocks, its attention in one call that masks and packs."""
        block = self._vit.blocks[number]
        if block.attn.save_attn:
            out: Tensor = block(x, attn_mask=None if mask is None else mask[:, 0, 0])
            return out
        x = x + _attend(block.attn, block.norm1(x), mask)
        out = x + block.mlp(block.norm2(x))
        return out

    def finish(self, x: Tensor) -> Tensor:
        """Apply the last norm."""
        out: Tensor = self._vit.norm(x)
        return out

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Give the class token, which the original's ``classification_head`` reads."""
        return x[:, 0] if self.prefix else None

    def _tell(self, tokens: Tokens) -> None:
        if self._guessed and any(len(set(tree.shape)) > 1 for tree in tokens.trees):
            self._guessed = False
            axes = "(H, W)" if self.ndim == 2 else "(D, H, W)"
            warnings.warn(
                f"the model's positions are taken for a grid of {' x '.join(map(str, self._grid))}, as MONAI's ViT "
                f"does not keep its image size; set model.img_size = {axes} to what it was built with, before adapt",
                stacklevel=4,
            )

    def _patch(self, tokens: Tokens, embedding: Any) -> Tensor:
        if embedding.proj_type == "conv":
            return self.project(tokens, embedding.patch_embeddings)
        linear = embedding.patch_embeddings[1]
        weight = linear.weight.unflatten(1, (*(self.patch_size,) * self.ndim, self.channels)).movedim(-1, 1)
        weight = self.kernel(weight, tokens.patch_size)
        return F.linear(tokens.pixels.flatten(2).to(weight.dtype), weight.flatten(1), linear.bias)


def _patches(embedding: Any) -> tuple[tuple[int, ...], int]:
    """Give the sides of the model's patches and the image's channels."""
    if embedding.proj_type == "conv":
        conv = embedding.patch_embeddings
        return conv.kernel_size, conv.in_channels
    sides = tuple(embedding.patch_embeddings[0].axes_lengths.values())
    return sides, embedding.patch_dim // prod(sides)


def _grid(model: nn.Module, count: int, patch_size: int, ndim: int) -> tuple[int, ...]:
    """Give the shape of the model's grid of positions."""
    from monai.utils.misc import ensure_tuple_rep

    if hasattr(model, "feat_size"):  # UNETR
        return tuple(model.feat_size)  # type: ignore[arg-type]
    if hasattr(model, "img_size"):  # ViTAutoEnc, or what a user set
        grid = tuple(length // patch_size for length in ensure_tuple_rep(model.img_size, ndim))
        if prod(grid) != count:
            raise InputError(
                f"model.img_size is {model.img_size}, which makes {prod(grid)} positions, and the model has {count}; "
                "set the image size that it was built with"
            )
        return grid
    side = round(count ** (1 / ndim))
    if side**ndim != count:
        axes = "(H, W)" if ndim == 2 else "(D, H, W)"
        raise InputError(
            f"the model has {count} positions, which make no {'square' if ndim == 2 else 'cube'}, and MONAI's ViT does "
            f"not keep its image size; set model.img_size = {axes} to what it was built with"
        )
    return (side,) * ndim


def _attend(attention: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Do what MONAI's self-attention block does, without its matrix of all pairs."""
    q, k, v = attention.input_rearrange(attention.qkv(x))
    dropout = attention.drop_weights.p if attention.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=attention.scale)
    out = attention.out_proj(attention.out_rearrange(out))
    return attention.drop_output(out)  # type: ignore[no-any-return]
