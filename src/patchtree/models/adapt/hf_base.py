"""What the transformers families have in common: where the backbone is, its layers, its kinds of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import Adapted

# Those that take a mask of tokens: as booleans, and as numbers to add.
_ATTENTION = ("sdpa", "eager")
_LAYERS = ("layers", "encoder.layers", "encoder.layer", "model.layer")


class HfAdapted(Adapted):
    """A vision transformer of transformers on tokens; the model given may be the backbone or hold it.

    Heads of the task stay where they are and are not run; `pool` gives the backbone's pooler output, or its class token
    if it has no pooler.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._packs = True
        found = [name for name, part in model.named_modules() if _patches(part) is not None]
        if not found:
            raise InputError(
                f"{type(model).__name__} embeds no patches of an image; give the whole model, or its vision model"
            )
        self._where = found[0]
        backbone = self.backbone
        self._layers = next(name for name in _LAYERS if _has(backbone, name))
        _ = self.attention
        config = backbone.config
        sides = config.patch_size if isinstance(config.patch_size, (tuple, list)) else (config.patch_size,) * 2
        if sides[0] != sides[1]:
            raise InputError(
                f"{type(model).__name__} has patches of {sides[0]} x {sides[1]} pixels, which are no squares"
            )
        self.width, self.depth = config.hidden_size, len(self.layers)
        self.channels, self.patch_size = config.num_channels, sides[0]

    @property
    def backbone(self) -> Any:
        """The part that goes from pixels to features."""
        return self.model.get_submodule(self._where)

    @property
    def layers(self) -> nn.ModuleList:
        """The backbone's blocks."""
        layers: nn.ModuleList = self.backbone.get_submodule(self._layers)
        return layers

    @property
    def attention(self) -> str:
        """The attention implementation that the model is set to now, ``"sdpa"`` or ``"eager"``.

        Raises:
            InputError: it is another, which takes no mask of tokens.
        """
        name: str = self.backbone.config._attn_implementation
        if name not in _ATTENTION:
            raise InputError(
                f"the model's attention is {name!r}, which takes no mask of tokens; "
                "load it with attn_implementation='sdpa', which packs a batch without padding"
            )
        return name

    @property
    def packs(self) -> bool:
        """As in `Adapted`; not while the model checkpoints its own layers, which run again outside the segments."""
        again = any(layer.gradient_checkpointing and layer.training for layer in self.layers)
        return self._packs and self.attention == "sdpa" and not again

    @packs.setter
    def packs(self, packs: bool) -> None:
        self._packs = packs

    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one of the backbone's layers."""
        out: Tensor = self.layers[number](x, self.to_mask(mask, x))
        return out

    def finish(self, x: Tensor) -> Tensor:
        """Apply the last norm, unless the model is a ``Backbone`` that was told not to."""
        backbone = self.backbone
        if hasattr(backbone, "out_features") and not getattr(backbone.config, "apply_layernorm", True):
            return x
        out: Tensor = backbone.layernorm(x)
        return out

    def to_mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """Give the mask as the attention takes it: True where there is a token, or numbers to add."""
        if mask is None or self.attention == "sdpa":
            return mask
        return torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, torch.finfo(x.dtype).min)


def each_alone(head: Callable[[Tensor], Tensor], x: Tensor, valid: Tensor | None) -> Tensor:
    """Apply a pooling that takes no mask, ``(1, N, D) -> (1, E)``, to the valid tokens of each image.

    Args:
        head: the pooling.
        x: ``(B, N, D)``.
        valid: ``(B, N)``; None if all are.

    Returns:
        ``(B, E)``.
    """
    if valid is None:
        return head(x)
    return torch.cat([head(row[own][None]) for row, own in zip(x, valid, strict=True)])


def _patches(part: nn.Module) -> Any:
    """Give the patch embedding of a backbone, None for any other module."""
    inner = getattr(part, "embeddings", None)
    return getattr(inner, "patch_embeddings", getattr(inner, "patch_embedding", None))


def _has(part: nn.Module, name: str) -> bool:
    for step in name.split("."):
        part = getattr(part, step, None)  # type: ignore[assignment]
    return part is not None
