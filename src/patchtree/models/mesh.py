"""The mesh: grids of cells in every leaf, a way down them to one token a leaf and a way back to every pixel.

With a transformer between the two ways this is the reference model, a U-Net on the mesh; heads for other encoders use
the same ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patchtree.errors import InputError
from patchtree.models.adapt.base import Encoded, sizes
from patchtree.models.layers import Place, ResidualConv, merge, split, standardise
from patchtree.models.transformer import Block
from patchtree.tokens import Tokens

STEM = 4


@dataclass(frozen=True)
class Widths:
    """How big a model is: channels at stride 4, doubled at every halving of the grid up to the transformer's width."""

    channels: int
    width: int
    depth: int
    heads: int


SIZES = {
    "nano": Widths(channels=32, width=128, depth=2, heads=2),
    "tiny": Widths(channels=48, width=192, depth=2, heads=3),
    "small": Widths(channels=64, width=384, depth=6, heads=6),
    "base": Widths(channels=96, width=768, depth=12, heads=12),
}


@dataclass(frozen=True, eq=False)
class EncodedMesh(Encoded):
    """What an encoder on the mesh gives.

    Attributes:
        skips: the cells of each grid, finest first, ``(B * N, g**d, C)`` each; the last is one cell a leaf.
    """

    skips: tuple[Tensor, ...] = ()


def mesh_grids(patch_size: int) -> tuple[int, ...]:
    """Give the cells along a leaf's side, from a quarter of the patch's pixels down to 1.

    >>> mesh_grids(16)
    (4, 2, 1)

    Raises:
        InputError: the patch size is no power of two, or less than 4.
    """
    if patch_size < STEM or patch_size & (patch_size - 1):
        raise InputError(f"patch size {patch_size} does not suit the mesh; give a power of two, {STEM} or more")
    return tuple(patch_size // STEM >> stage for stage in range((patch_size // STEM).bit_length()))


def mesh_widths(patch_size: int, channels: int, most: int) -> list[int]:
    """Give the channels on each grid: doubled at every halving.

    >>> mesh_widths(16, channels=48, most=192)
    [48, 96, 192]
    """
    return [min(channels << stage, most) for stage in range(len(mesh_grids(patch_size)))]


class OnMesh(nn.Module):
    """A part that can recompute its layers' activations in the backward pass, which takes less memory and more time.

    Attributes:
        checkpointing: whether it does.
    """

    checkpointing: bool = False

    def run(self, part: Callable[..., Tensor], x: Tensor, *rest: Tensor | None) -> Tensor:
        """Call a layer."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(part, x, *rest, use_reentrant=False, preserve_rng_state=False)
            return out
        return part(x, *rest)


class WayDown(OnMesh):
    """From pixels to one cell a leaf: residual convolutions on the mesh that alternate with halvings of the grid.

    It sees each channel twice, as it is and by the image's own mean and deviation: stains and light differ from image
    to image, and both what they are and what they have in common tells classes apart.

    Args:
        widths: channels on each grid, finest first.
        channels: of the image, ``C``.
        ndim: 2 for images, 3 for volumes.
    """

    def __init__(self, widths: Sequence[int], channels: int, ndim: int) -> None:
        super().__init__()
        self.ndim = ndim
        self.stem = nn.Linear(2 * channels * STEM**ndim, widths[0])
        self.down = nn.ModuleList(ResidualConv(width, ndim) for width in widths)
        self.coarser = nn.ModuleList(nn.Linear(fine << ndim, coarse) for fine, coarse in pairwise(widths))

    def forward(self, tokens: Tokens, ghosts: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """Give the cells on each grid, finest first, ``(B * N, g**d, C)``."""
        seen = torch.cat([tokens.pixels, standardise(tokens.pixels, tokens.valid)], dim=2)
        pixels = seen.flatten(0, 1).movedim(1, -1).to(self.stem.weight.dtype)
        x = self.stem(merge(pixels.flatten(1, -2), STEM, self.ndim))
        skips = []
        for stage, grid in enumerate(mesh_grids(tokens.patch_size)):
            if stage:
                x = self.coarser[stage - 1](merge(x, 2, self.ndim))
            x = self.run(self.down[stage], x, ghosts[grid])
            skips.append(x)
        return tuple(skips)


class WayBack(OnMesh):
    """From tokens to the logits of every pixel: the way down in reverse, with skips, and a pixel shuffle.

    Args:
        width: features of a token.
        widths: channels on each grid, finest first.
        classes: ``K``.
        patch_size: ``p``.
        ndim: 2 for images, 3 for volumes.

    Source: O. Ronneberger et al., U-Net, MICCAI 2015, for the skips; W. Shi et al., Real-Time Single Image and Video
    Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network, CVPR 2016, for the shuffle.
    """

    depths: tuple[int, ...] = ()

    def __init__(self, width: int, widths: Sequence[int], classes: int, patch_size: int, ndim: int) -> None:
        super().__init__()
        self.patch_size, self.ndim, self.grids = patch_size, ndim, mesh_grids(patch_size)
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, widths[-1]))
        self.finer = nn.ModuleList(nn.Linear(coarse, fine << ndim) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(ResidualConv(width, ndim) for width in widths)
        self.norm = nn.LayerNorm(widths[0])
        self.classify = even_classes(nn.Linear(widths[0], classes * STEM**ndim))

    def forward(self, tokens: Tokens, encoded: EncodedMesh, ghosts: Mapping[int, Tensor]) -> Tensor:
        """Give the logits of every patch pixel, ``(B, N, p, p, K)``; 3-D alike."""
        *skips, x = encoded.skips
        x = x + self.leave(encoded.tokens).flatten(0, 1)[:, None]
        for stage, grid in reversed(list(enumerate(self.grids))):
            x = self.run(self.up[stage], x, ghosts[grid])
            if stage:
                x = skips[stage - 1] + split(self.finer[stage - 1](x), 2, self.ndim)
        logits = split(self.classify(self.norm(x)), STEM, self.ndim)
        return logits.view(*tokens.valid.shape, *(self.patch_size,) * self.ndim, -1)


def even_classes(layer: nn.Linear) -> nn.Linear:
    """Make every class equally likely to begin with."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class MeshEncoder(OnMesh):
    """The reference model's encoder: the way down, then a transformer that mixes the tokens of all leaves.

    It asks for the ghost cells of its `grids`, and gives the cells of each grid beside the tokens.

    Attributes:
        reach: outside training, attention is among runs of about so many leaves in Morton order, which lie together;
            0: among all leaves of an image.

    Args:
        size: ``"nano"``, ``"tiny"``, ``"small"`` or ``"base"``; the last two have the widths of ViT-S and ViT-B in the
            transformer.
        channels: of the image, ``C``.
        patch_size: ``p``; a power of two, 4 or more.
        ndim: 2 for images, 3 for volumes.

    Raises:
        InputError: the size is unknown, or the patch size does not suit the mesh.

    Source: E. Zhang et al., Adaptive Patching for High-resolution Image Segmentation with Transformers, SC 2024, for
    the sequence.
    """

    reach: int = 0

    def __init__(self, size: str = "tiny", channels: int = 3, patch_size: int = 16, ndim: int = 2) -> None:
        super().__init__()
        if size not in SIZES:
            raise InputError(f"size {size!r} is unknown; choose one of {', '.join(SIZES)}")
        chosen = SIZES[size]
        self.channels, self.patch_size, self.ndim = channels, patch_size, ndim
        self.width = self.depths_width = chosen.width
        self.depth, self.grids = chosen.depth, mesh_grids(patch_size)
        self.widths = mesh_widths(patch_size, chosen.channels, chosen.width)
        self.way_down = WayDown(self.widths, channels, ndim)
        self.enter = nn.Linear(self.widths[-1], chosen.width)
        self.place = Place(chosen.width, ndim)
        self.blocks = nn.ModuleList(Block(chosen.width, chosen.heads) for _ in range(chosen.depth))

    def encode(self, tokens: Tokens, depths: Sequence[int], ghosts: Mapping[int, Tensor]) -> EncodedMesh:
        """Give the features of each leaf, those after some blocks, and the cells of each grid.

        Args:
            tokens: B images of N tokens.
            depths: numbers of blocks, from 0, after which features are wanted too.
            ghosts: of the `grids`, see `ghost_batch`.
        """
        batch, count = tokens.valid.shape
        skips = self.way_down(tokens, ghosts)
        x = self.enter(skips[-1].view(batch, count, -1)) + self.place(tokens.centre, sizes(tokens), tokens.extent)
        runs = 1 if self.training or not self.reach else -(-count // self.reach)
        length = -(-count // runs)
        x, valid = (_in_runs(part, runs, length) for part in (x, tokens.valid))
        padded = runs * length > count or any(len(tree) < count for tree in tokens.trees)
        # A run of nothing but padding looks at that: attention to nothing is no number.
        mask = (valid | ~valid.any(1, keepdim=True))[:, None, None, :] if padded else None
        after = []
        for block in self.blocks:
            x = self.run(block, x, mask)
            after.append(x.view(batch, runs * length, -1)[:, :count])
        x = x.view(batch, runs * length, -1)[:, :count]
        return EncodedMesh(x, None, tuple(after[number] for number in depths), skips)


def set_reach(model: nn.Module, reach: int) -> None:
    """Set how many leaves the attention of a model's encoders on the mesh is among; see `MeshEncoder`.

    >>> encoder = MeshEncoder("tiny")
    >>> set_reach(nn.Sequential(encoder), 600)
    >>> encoder.reach
    600
    """
    for part in model.modules():
        if isinstance(part, MeshEncoder):
            part.reach = reach


def _in_runs(x: Tensor, runs: int, length: int) -> Tensor:
    """Cut sequences into runs, the last one padded, ``(B, N, ...)`` -> ``(B * runs, length, ...)``."""
    beyond = runs * length - x.shape[1]
    if beyond:
        x = torch.cat([x, x.new_zeros(len(x), beyond, *x.shape[2:])], dim=1)
    return x.reshape(-1, length, *x.shape[2:])
