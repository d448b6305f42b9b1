"""Heads: from the features that an encoder gives each leaf to the logits of every pixel."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import Adapted, Encoded
from patchtree.models.layers import ResidualConv, merge, split
from patchtree.models.mesh import (
    STEM,
    EncodedMesh,
    MeshEncoder,
    WayBack,
    WayDown,
    even_classes,
    mesh_widths,
)
from patchtree.tokens import Tokens

_CHANNELS = 64


class LinearHead(nn.Module):
    """Each token alone: a matrix from its features to the logits of its pixels; takes any patch size.

    Args:
        encoder: what gives the features.
        classes: ``K``.
        patch_size: ``p``.

    Source: R. Strudel et al., Segmenter: Transformer for Semantic Segmentation, ICCV 2021 (the linear decoder).
    """

    depths: tuple[int, ...] = ()
    grids: tuple[int, ...] = ()

    def __init__(self, encoder: Adapted | MeshEncoder, classes: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size, self.ndim = patch_size, encoder.ndim
        self.norm = nn.LayerNorm(encoder.width)
        self.classify = even_classes(nn.Linear(encoder.width, classes * patch_size**encoder.ndim))

    def forward(self, tokens: Tokens, encoded: Encoded, ghosts: Mapping[int, Tensor]) -> Tensor:
        """Give the logits of every patch pixel, ``(B, N, p, p, K)``; 3-D alike."""
        logits: Tensor = self.classify(self.norm(encoded.tokens))
        return logits.view(*tokens.valid.shape, *(self.patch_size,) * self.ndim, -1)


class ReferenceHead(nn.Module):
    """The reference model around another encoder: its way down and back on the mesh, with the tokens at the bottom.

    Args:
        encoder: what gives the features.
        classes: ``K``.
        patch_size: ``p``; a power of two, 4 or more.
    """

    depths: tuple[int, ...] = ()

    def __init__(self, encoder: Adapted | MeshEncoder, classes: int, patch_size: int) -> None:
        super().__init__()
        widths = mesh_widths(patch_size, _CHANNELS, encoder.width)
        self.way_down = WayDown(widths, encoder.channels, encoder.ndim)
        self.way_back = WayBack(encoder.width, widths, classes, patch_size, encoder.ndim)
        self.patch_size, self.grids = patch_size, self.way_back.grids

    def forward(self, tokens: Tokens, encoded: Encoded, ghosts: Mapping[int, Tensor]) -> Tensor:
        """Give the logits of every patch pixel, ``(B, N, p, p, K)``; 3-D alike."""
        own = EncodedMesh(encoded.tokens, skips=self.way_down(tokens, ghosts))
        out: Tensor = self.way_back(tokens, own, ghosts)
        return out


class DepthsHead(nn.Module):
    """Several depths of the encoder into the way back: shallow blocks on fine grids, the last block on the coarsest.

    On the finest grid the leaf's own pixels are joined to them, after one convolution.

    Args:
        encoder: what gives the features.
        classes: ``K``.
        patch_size: ``p``; a power of two, 4 or more.

    Source: A. Hatamizadeh et al., UNETR: Transformers for 3D Medical Image Segmentation, WACV 2022; R. Ranftl et al.,
    Vision Transformers for Dense Prediction, ICCV 2021.
    """

    def __init__(self, encoder: Adapted | MeshEncoder, classes: int, patch_size: int) -> None:
        super().__init__()
        ndim, width = encoder.ndim, encoder.depths_width
        widths = mesh_widths(patch_size, _CHANNELS, encoder.width)
        self.way_back = WayBack(encoder.width, widths, classes, patch_size, ndim)
        self.patch_size, self.ndim, self.grids = patch_size, ndim, self.way_back.grids
        # The blocks that share the way from the first to the last evenly; the last one's tokens are the encoder's own.
        self.depths = tuple(
            max(0, (stage + 1) * encoder.depth // len(self.grids) - 1) for stage in range(len(self.grids) - 1)
        )
        self.bottom = widths[-1]
        self.stem = nn.Linear(encoder.channels * STEM**ndim, widths[0])
        self.conv = ResidualConv(widths[0], ndim)
        self.gather = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, grid**ndim * channels))
            for grid, channels in zip(self.grids[:-1], widths[:-1], strict=True)
        )

    def forward(self, tokens: Tokens, encoded: Encoded, ghosts: Mapping[int, Tensor]) -> Tensor:
        """Give the logits of every patch pixel, ``(B, N, p, p, K)``; 3-D alike."""
        pixels = tokens.pixels.flatten(0, 1).movedim(1, -1).to(self.stem.weight.dtype)
        own = self.conv(self.stem(merge(pixels.flatten(1, -2), STEM, self.ndim)), ghosts[self.grids[0]])
        skips = [
            split(gather(x).flatten(0, 1)[:, None], grid, self.ndim)
            for gather, x, grid in zip(self.gather, encoded.depths, self.grids[:-1], strict=True)
        ]
        skips.append(own.new_zeros(len(own), 1, self.bottom))
        skips[0] = skips[0] + own
        out: Tensor = self.way_back(tokens, EncodedMesh(encoded.tokens, skips=tuple(skips)), ghosts)
        return out


_HEADS: dict[str, type[LinearHead | ReferenceHead | DepthsHead]] = {
    "linear": LinearHead,
    "reference": ReferenceHead,
    "depths": DepthsHead,
}
HEADS = tuple(_HEADS)


def build_head(name: str | None, encoder: Adapted | MeshEncoder, classes: int, patch_size: int) -> nn.Module:
    """Make a head by name for an encoder; without a name, the reference head.

    The reference model's own encoder has gone down the mesh already, so its reference head is the way back alone.

    >>> build_head("linear", MeshEncoder("tiny"), classes=3, patch_size=16).grids
    ()

    Raises:
        InputError: the name is unknown, the encoder gives no features, or the patch size does not suit the head.
    """
    name = name or "reference"
    if name not in _HEADS:
        raise InputError(f"head {name!r} is unknown; choose one of {', '.join(_HEADS)}")
    if not isinstance(encoder, Adapted | MeshEncoder):
        raise InputError(
            f"{type(encoder).__name__} gives no features of tokens; give adapt(model), or no head where it gives logits"
        )
    if name == "reference" and isinstance(encoder, MeshEncoder):
        return WayBack(encoder.width, encoder.widths, classes, patch_size, encoder.ndim)
    try:
        return _HEADS[name](encoder, classes, patch_size)
    except InputError as error:
        raise InputError(f"{error}; the linear head takes any") from error
