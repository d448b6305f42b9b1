"""The reference model: a U-Net on the mesh with a transformer at the bottom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patchtree.errors import InputError
from patchtree.models.ghosts import ghost_batch
from patchtree.models.layers import Place, ResidualConv, merge, split
from patchtree.tokens import Tokens

_STEM = 4


@dataclass(frozen=True)
class Widths:
    """How big a model is: channels at stride 4, doubled at every halving of the grid up to the transformer's width."""

    channels: int
    width: int
    depth: int
    heads: int


SIZES = {
    "tiny": Widths(channels=48, width=192, depth=2, heads=3),
    "small": Widths(channels=64, width=384, depth=6, heads=6),
    "base": Widths(channels=96, width=768, depth=12, heads=12),
}


class Segmenter(nn.Module):
    """Label every pixel of every patch, looking at all leaves of an image.

    Each leaf's ``p x p`` pixels become a grid of ``p/4 x p/4`` cells. Residual convolutions, whose borders are ghost
    cells from the leaf's true neighbours, alternate with halvings down to one token a leaf; a transformer mixes all
    tokens; the same way back, with skips, ends in a pixel shuffle.

    >>> import numpy as np
    >>> from patchtree.patcher import Patches
    >>> from patchtree.tokens import collate
    >>> from patchtree.tree import Tree
    >>> tree = Tree.uniform((32, 48), patch_size=16)
    >>> tokens = collate([Patches(np.zeros((6, 16, 16, 3), np.uint8), tree)])
    >>> Segmenter(classes=2)(tokens).shape
    torch.Size([1, 6, 16, 16, 2])

    Args:
        classes: number of classes, ``K``.
        channels: number of image channels, ``C``.
        patch_size: pixels on a side of a patch, ``p``; a power of two, 4 or more.
        size: ``"tiny"``, ``"small"`` or ``"base"``; in the last two, the transformer has the widths of ViT-S and ViT-B.
        ndim: 2 for images, 3 for volumes.
        checkpointing: recompute activations in the backward pass, which takes less memory and more time.

    Raises:
        InputError: an argument is not possible.

    Source: E. Zhang et al., Adaptive Patching for High-resolution Image Segmentation with Transformers, SC 2024, for
    the sequence; O. Ronneberger et al., U-Net, MICCAI 2015, for the shape.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        patch_size: int = 16,
        size: str = "tiny",
        ndim: int = 2,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise InputError(f"model size {size!r} is unknown; choose one of {', '.join(SIZES)}")
        if patch_size < _STEM or patch_size & (patch_size - 1):
            raise InputError(f"patch size {patch_size} does not suit the model; give a power of two, {_STEM} or more")
        if ndim not in (2, 3):
            raise InputError(f"ndim {ndim} is not possible; give 2 for images or 3 for volumes")
        if classes < 1 or channels < 1:
            raise InputError(f"{classes} classes and {channels} channels are not possible; give at least 1 of each")
        self._config = {
            "classes": classes,
            "channels": channels,
            "patch_size": patch_size,
            "size": size,
            "ndim": ndim,
            "checkpointing": checkpointing,
        }
        self.ndim, self.checkpointing = ndim, checkpointing
        self.grids = tuple(patch_size // _STEM >> stage for stage in range((patch_size // _STEM).bit_length()))
        chosen = SIZES[size]
        widths = [min(chosen.channels << stage, chosen.width) for stage in range(len(self.grids))]
        bottom = widths[-1]

        self.stem = nn.Linear(channels * _STEM**ndim, widths[0])
        self.down = nn.ModuleList(ResidualConv(width, ndim) for width in widths)
        self.coarser = nn.ModuleList(nn.Linear(fine << ndim, coarse) for fine, coarse in pairwise(widths))
        self.enter = nn.Linear(bottom, chosen.width)
        self.place = Place(chosen.width, ndim)
        self.blocks = nn.ModuleList(
            Block(chosen.width, chosen.heads, qkv_bias=True, init_values=1e-2) for _ in range(chosen.depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(chosen.width), nn.Linear(chosen.width, bottom))
        self.finer = nn.ModuleList(nn.Linear(coarse, fine << ndim) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(ResidualConv(width, ndim) for width in widths)
        self.norm = nn.LayerNorm(widths[0])
        self.head = nn.Linear(widths[0], classes * _STEM**ndim)
        # Every class is equally likely to begin with.
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def config(self) -> dict[str, Any]:
        """Give the arguments that build this model again, ready for JSON.

        >>> Segmenter(**Segmenter(classes=2).config()).config()["size"]
        'tiny'
        """
        return dict(self._config)

    def forward(self, tokens: Tokens, ghosts: dict[int, Tensor] | None = None) -> Tensor:
        """Give the logits of every patch pixel.

        Args:
            tokens: B images of N tokens.
            ghosts: ``ghost_batch(tokens.trees, N, self.grids)`` on the model's device, if made beforehand (in a
                data loader, say).

        Returns:
            ``(B, N, p, p, K)`` (``(B, N, p, p, p, K)`` in 3-D). Values on padding have no meaning.

        Raises:
            InputError: the tokens' patch size, channels or number of axes are not the model's.
        """
        batch, count = tokens.valid.shape
        self._check(tokens)
        if ghosts is None:
            ghosts = ghost_batch(tokens.trees, count, self.grids)
            ghosts = {grid: index.to(tokens.pixels.device, non_blocking=True) for grid, index in ghosts.items()}

        pixels = tokens.pixels.flatten(0, 1).movedim(1, -1)
        x = self.stem(merge(pixels.flatten(1, -2), _STEM, self.ndim))
        skips = []
        for stage, grid in enumerate(self.grids):
            if stage:
                x = self.coarser[stage - 1](merge(x, 2, self.ndim))
            x = self._run(self.down[stage], x, ghosts[grid])
            skips.append(x)

        x = x + self._mix(x.view(batch, count, -1), tokens).view(batch * count, 1, -1)

        for stage, grid in reversed(list(enumerate(self.grids))):
            x = self._run(self.up[stage], x, ghosts[grid])
            if stage:
                x = skips[stage - 1] + split(self.finer[stage - 1](x), 2, self.ndim)
        logits = split(self.head(self.norm(x)), _STEM, self.ndim)
        return logits.view(batch, count, *tokens.pixels.shape[3:], -1)

    def _mix(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Let all tokens of an image attend to each other, ``(B, N, C)``."""
        size = float(tokens.patch_size) * 2.0**tokens.level
        x = self.enter(x) + self.place(tokens.centre, size, tokens.extent)
        padded = any(len(tree) < tokens.valid.shape[1] for tree in tokens.trees)
        mask = tokens.valid[:, None, None, :] if padded else None
        for block in self.blocks:
            x = self._run(block, x, mask)
        out: Tensor = self.leave(x)
        return out

    def _run(self, part: Callable[..., Tensor], x: Tensor, *rest: Tensor | None) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(part, x, *rest, use_reentrant=False, preserve_rng_state=False)
            return out
        return part(x, *rest)

    def _check(self, tokens: Tokens) -> None:
        channels, *pixels = tokens.pixels.shape[2:]
        p, ndim = self._config["patch_size"], self.ndim
        if channels != self._config["channels"] or pixels != [p] * ndim:
            raise InputError(
                f"tokens have {channels} channels and patches of {' x '.join(map(str, pixels))} pixels, the model was "
                f"made for {self._config['channels']} and {' x '.join([str(p)] * ndim)}; make the two alike"
            )
