"""Attention that does not pay for padding: the images of a batch as segments of one row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ATTENTION = torch.nn.functional.scaled_dot_product_attention


class SegmentAttention(TorchFunctionMode):
    """Within it, scaled dot-product attention stays inside segments of the sequence.

    Whatever model runs in it needs no change: its calls of ``F.scaled_dot_product_attention`` on a row of several
    images are answered as if each image were alone.

    >>> q = torch.randn(1, 2, 5, 8)
    >>> with SegmentAttention([3, 2]):
    ...     out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    >>> alone = torch.nn.functional.scaled_dot_product_attention(*[q[:, :, :3]] * 3)
    >>> torch.allclose(out[:, :, :3], alone, atol=1e-6)
    True

    Args:
        lengths: tokens of each segment; their sum is the length of the row.

    Attributes:
        used: whether there was any attention to keep inside segments.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.lengths = list(lengths)
        self.used = False
        self._learns = torch.is_grad_enabled()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer a call of torch's; all but attention as ever."""
        kwargs = kwargs or {}
        if func is not _ATTENTION:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **kwargs: Any
    ) -> Tensor:
        if attn_mask is not None:
            raise ValueError("a mask and segments exclude each other")
        if self._learns and not torch.is_grad_enabled():  # reentrant checkpoints compute it again outside of this mode
            raise ValueError(
                "checkpoints inside a block forget the segments; set checkpointing = True, or packs = False"
            )
        if query.shape[-2] != sum(self.lengths):  # such as a pooling query, which sees no row of images
            raise ValueError("attention between other things than the row's tokens cannot be kept inside segments")
        self.used = True
        parts = zip(*(torch.split(x, self.lengths, dim=-2) for x in (query, key, value)), strict=True)
        return torch.cat([_ATTENTION(q, k, v, None, *rest, **kwargs) for q, k, v in parts], dim=-2)
