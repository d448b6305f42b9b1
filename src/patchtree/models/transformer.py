"""The reference model's transformer block: attention, then a small network, each added to what it was given.

It is timm's `Block` of vision transformers, to the names of its weights. To import timm, which brings torchvision and
torch's compiler, takes as long as torch itself, and prediction with the reference model needs nothing else of it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchtree.models.precision import trains_in_half

_EPSILON = 1e-6
_WIDER = 4
# Tokens up to which all scores of a sequence are held at once, where torch's own attention is slow backward.
_SHORT = 512


class Block(nn.Module):
    """A pre-norm transformer block whose two branches begin near zero.

    >>> Block(width=64, heads=2)(torch.zeros(1, 10, 64)).shape
    torch.Size([1, 10, 64])

    Args:
        width: channels of a token.
        heads: of the attention; they divide the width.
        scale: what each branch is multiplied by at first.

    Source: A. Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; layer scale: H. Touvron et al., Going
    deeper with Image Transformers, ICCV 2021.
    """

    def __init__(self, width: int, heads: int, scale: float = 1e-2) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPSILON)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width, _EPSILON)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width, scale)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give new features, ``(B, N, D)``; `mask` is False where nothing is to be looked at, ``(B, 1, 1, N)``."""
        x = x + self.ls1(self.attn(self.norm1(x), mask))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class Attention(nn.Module):
    """Every token looks at all others.

    >>> Attention(width=64, heads=2)(torch.zeros(1, 10, 64)).shape
    torch.Size([1, 10, 64])

    Args:
        width: channels of a token.
        heads: they divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give what each token gathers, ``(B, N, D)``; `mask` as of `Block`."""
        batch, count, width = x.shape
        parts = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        seen = attend(query, key, value, mask)
        out: Tensor = self.proj(seen.transpose(1, 2).reshape(batch, count, width))
        return out


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give what queries gather from values, each ``(B, heads, N, D)``; `mask` as of `Block`.

    >>> attend(*torch.eye(3).expand(3, 1, 1, 3, 3), mask=torch.tensor([[[[True, False, False]]]]))[0, 0, 2].tolist()
    [1.0, 0.0, 0.0]
    """
    if not trains_in_half(query) or query.shape[-2] > _SHORT:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    out: Tensor = scores.softmax(-1, dtype=scores.dtype) @ value
    return out


class Mlp(nn.Module):
    """Two linear layers for each token by itself, four times as wide between them.

    >>> Mlp(width=64)(torch.zeros(1, 10, 64)).shape
    torch.Size([1, 10, 64])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _WIDER * width)
        self.fc2 = nn.Linear(_WIDER * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Give new features, ``(B, N, D)``."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """Each channel times a number of its own.

    >>> LayerScale(3, 0.5)(torch.ones(3)).tolist()
    [0.5, 0.5, 0.5]
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """Give features of the same shape."""
        return x * self.gamma
