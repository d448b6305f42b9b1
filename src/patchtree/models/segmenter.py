"""A model that labels every pixel of every patch: an encoder of tokens and a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from patchtree.errors import InputError
from patchtree.models.adapt.base import require_tokens
from patchtree.models.ghosts import ghost_batch
from patchtree.tokens import Tokens

# All but cuDNN's, which plans for each number of tokens that is new to it, in 0.1 s; hardly two batches have the same.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Segmenter(nn.Module):
    """Label every pixel of every patch, looking at all leaves of an image.

    `build_model` makes one by name. By hand, any adapted transformer and a head:

    >>> import numpy as np, timm
    >>> import patchtree as pt
    >>> from patchtree.models.heads import build_head
    >>> encoder = pt.adapt(timm.create_model("vit_tiny_patch16_224"))
    >>> model = pt.Segmenter(encoder, build_head("linear", encoder, classes=2, patch_size=16), labels=2)
    >>> tree = pt.Tree.uniform((32, 48), patch_size=16)
    >>> model(pt.collate([pt.Patches(np.zeros((6, 16, 16, 3), np.uint8), tree)])).shape
    torch.Size([1, 6, 16, 16, 2])

    Args:
        encoder: `adapt`'s, or the reference model's `MeshEncoder`; or `through_mosaic`'s, which gives logits itself.
        head: from the encoder's features to logits, see `build_head`; None if the encoder gives logits. docs/models.md
            says what either needs if it is your own.
        labels: class names to ids ``0 .. K - 1``, or ``K``.

    Attributes:
        labels: class names to ids.
        grids: cells along the side of a leaf that it needs ghost cells for; empty if it needs none.

    Raises:
        InputError: there are no labels.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module | None, labels: Mapping[str, int] | int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.labels = label_names(labels)
        grids = (*getattr(encoder, "grids", ()), *getattr(head, "grids", ()))
        self.grids: tuple[int, ...] = tuple(sorted(set(grids), reverse=True))

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass, which takes less memory and more time."""
        return any(getattr(part, "checkpointing", False) for part in self._parts())

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        for part in self._parts():
            part.checkpointing = on  # type: ignore[assignment]

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
        require_tokens(tokens)
        encoder, head = self.encoder, self.head
        logits: Tensor
        with sdpa_kernel(_ATTENTION):
            if head is None:
                logits = encoder(tokens)
                return logits
            self._check(tokens)
            if ghosts is None:
                ghosts = ghost_batch(tokens.trees, tokens.valid.shape[1], self.grids)
                ghosts = {grid: index.to(tokens.pixels.device, non_blocking=True) for grid, index in ghosts.items()}
            beside = (ghosts,) if encoder.grids else ()
            encoded = encoder.encode(tokens, head.depths, *beside)  # type: ignore[operator]
            logits = head(tokens, encoded, ghosts)
        return logits

    def _parts(self) -> list[nn.Module]:
        return [part for part in self.modules() if part is not self and hasattr(part, "checkpointing")]

    def _check(self, tokens: Tokens) -> None:
        encoder: Any = self.encoder
        head: Any = self.head
        channels, *pixels = tokens.pixels.shape[2:]
        wanted = [head.patch_size] * encoder.ndim if head.patch_size else pixels
        if channels != encoder.channels or pixels != wanted:
            raise InputError(
                f"tokens have {channels} channels and patches of {' x '.join(map(str, pixels))} pixels, the model was "
                f"made for {encoder.channels} and {' x '.join(map(str, wanted))}; make the two alike"
            )


def label_names(labels: Mapping[str, int] | int) -> dict[str, int]:
    """Give class names to ids, made up where only their number is known.

    >>> label_names(3)
    {'background': 0, 'class 1': 1, 'class 2': 2}

    Raises:
        InputError: there are none, or the ids are not 0, 1, 2, ...
    """
    if isinstance(labels, int):
        labels = {f"class {label}" if label else "background": label for label in range(labels)}
    named = dict(sorted(labels.items(), key=lambda item: item[1]))
    if not named or list(named.values()) != list(range(len(named))):
        raise InputError(f"labels {dict(labels)} are not possible; give at least one, with ids 0, 1, 2, ...")
    return named
