"""A model that labels whole images: an encoder of tokens, what it pools, and a linear layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from patchtree.models.adapt.base import Adapted, Encoded, masked_mean
from patchtree.models.mesh import MeshEncoder, even_classes
from patchtree.models.segmenter import Segmenter, label_names
from patchtree.models.tuning import evaluating, trial_tokens
from patchtree.tokens import Tokens


class PooledHead(nn.Module):
    """One vector an image to the logits of its classes: the encoder's pooled output, or the mean of the leaves' tokens.

    Args:
        encoder: what gives the features.
        classes: ``K``.
    """

    depths: tuple[int, ...] = ()
    grids: tuple[int, ...] = ()

    def __init__(self, encoder: Adapted | MeshEncoder, classes: int) -> None:
        super().__init__()
        # Only the mesh is made for one size of patches.
        self.patch_size = encoder.patch_size if isinstance(encoder, MeshEncoder) else None
        pooled = _pooled_width(encoder)
        # What an original pools, it has normed.
        self.norm = nn.LayerNorm(encoder.width) if pooled is None else nn.Identity()
        self.classify = even_classes(nn.Linear(pooled or encoder.width, classes))

    def forward(self, tokens: Tokens, encoded: Encoded, ghosts: Mapping[int, Tensor]) -> Tensor:
        """Give the logits of every image, ``(B, K)``."""
        pooled = masked_mean(encoded.tokens, tokens.valid) if encoded.pooled is None else encoded.pooled
        logits: Tensor = self.classify(self.norm(pooled))
        return logits


class Classifier(Segmenter):
    """Label every image, looking at all of its leaves.

    It reads the encoder's pooled output where the original has one (class token, attention pooling, ...), else the mean
    of its tokens. Whatever trains or tunes a `Segmenter` takes one.

    >>> import numpy as np, timm
    >>> import patchtree as pt
    >>> model = pt.Classifier(pt.adapt(timm.create_model("vit_tiny_patch16_224")), labels={"benign": 0, "malignant": 1})
    >>> tree = pt.Tree.uniform((32, 48), patch_size=16)
    >>> model(pt.collate([pt.Patches(np.zeros((6, 16, 16, 3), np.uint8), tree)])).shape
    torch.Size([1, 2])

    Args:
        encoder: `adapt`'s, or the reference model's `MeshEncoder`.
        labels: class names to ids ``0 .. K - 1``, or ``K``.

    Raises:
        InputError: there are no labels.
    """

    def __init__(self, encoder: Adapted | MeshEncoder, labels: Mapping[str, int] | int) -> None:
        super().__init__(encoder, PooledHead(encoder, len(label_names(labels))), labels)

    def forward(self, tokens: Tokens, ghosts: dict[int, Tensor] | None = None) -> Tensor:
        """Give the logits of every image, ``(B, K)``; arguments and errors as those of `Segmenter`."""
        return super().forward(tokens, ghosts)


def _pooled_width(encoder: Adapted | MeshEncoder) -> int | None:
    """Give the length of an encoder's pooled output; None if it has none."""
    if isinstance(encoder, MeshEncoder):
        return None
    with evaluating(encoder), torch.no_grad():
        pooled = encoder.encode(trial_tokens(encoder.channels, encoder.patch_size, encoder.ndim)).pooled
    return None if pooled is None else pooled.shape[1]
