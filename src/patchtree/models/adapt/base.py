"""The sequence door: what an adapted model is, whatever its family."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patchtree.errors import InputError
from patchtree.models.adapt.packing import SegmentAttention
from patchtree.models.adapt.places import resize_kernel, resizer
from patchtree.tokens import Tokens

# Gathering and scattering rows costs about as much as this share of padding does.
_WASTE = 0.05


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder gives.

    Attributes:
        tokens: ``(B, N, D)``, the features of each leaf, in the order of the tokens; no meaning on padding.
        pooled: ``(B, E)``, the original's class token or pooled output; None if it has none.
        depths: ``(B, N, D)`` each, the tokens after the blocks that were asked for, before the last norm.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    depths: tuple[Tensor, ...] = ()


class Adapted(nn.Module, ABC):
    """A model that reads tokens instead of an image; made by `adapt`, one subclass a family.

    The original is held as it is (`model`), so its weights are shared and its names stay: the state dict of this module
    is the original's, each name after ``model.``.

    Attributes:
        model: the original.
        width: features of a token, ``D``.
        depth: number of blocks.
        prefix: tokens before those of the image, such as the class token and registers.
        channels: of the image, ``C``.
        patch_size: of the model's own patches, ``P``; tokens of another size have the kernel resized.
        ndim: 2 for images, 3 for volumes.
        packs: whether its attention is ``F.scaled_dot_product_attention`` without a bias, so that the images of a batch
            can be packed into one row without padding.
        checkpointing: recompute the blocks' activations in the backward pass.
        exact: where the features are the original's on a uniform tree, one phrase for the table of models.
        approximate: where they cannot be, and why, one phrase; empty if there is nothing to say.
    """

    exact: ClassVar[str]
    approximate: ClassVar[str]

    model: nn.Module
    width: int
    depth: int
    prefix: int
    channels: int
    patch_size: int
    ndim: int = 2
    packs: bool = True
    checkpointing: bool = False
    grids: ClassVar[tuple[int, ...]] = ()

    @property
    def depths_width(self) -> int:
        """Features of a token between blocks."""
        return self.width

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._resizers: dict[tuple[int, torch.device], Tensor] = {}

    # What a family says.

    @abstractmethod
    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give the sequence that enters the blocks, ``(B, prefix + N, D)``, and what each block needs beside it.

        The second is None or, where positions act inside the blocks (rotary ones), one tensor or a tuple of tensors of
        shape ``(B, prefix + N, ...)`` or ``(B, N, ...)``.
        """

    @abstractmethod
    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one block; `mask` is ``(B, 1, 1, prefix + N)``, True where there is a token, None without padding."""

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """Apply what follows the last block to every token, such as the last norm."""

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Give the pooled output of the finished ``(B, prefix + N, D)``, if the original has one.

        `valid` is ``(B, N)``, None without padding, so that no family needs to ask the device.
        """
        return None

    # What all have in common.

    def forward(self, tokens: Tokens) -> Tensor:
        """Give the features of each leaf, ``(B, N, D)``, in the order of the tokens.

        Raises:
            InputError: no tokens are given; their channels or number of axes are not the model's, or it cannot take
                their patch size.
        """
        return self.encode(tokens).tokens

    def encode(self, tokens: Tokens, depths: Sequence[int] = ()) -> Encoded:
        """Give the features of each leaf, the pooled output, and the features after some blocks.

        Args:
            tokens: B images of N tokens.
            depths: numbers of blocks, from 0, after which features are wanted too; negative ones count from the end.

        Raises:
            InputError: as in `forward`, or the model has no such block.
        """
        self._check(tokens)
        depths = self._numbers(depths)
        x, beside = self.embed(tokens)
        count = tokens.valid.shape[1]
        lengths = [self.prefix + len(tree) for tree in tokens.trees]
        padded = any(length < self.prefix + count for length in lengths)
        valid = torch.cat([tokens.valid.new_ones(len(lengths), self.prefix), tokens.valid], dim=1) if padded else None
        packed = self.packs and padded and sum(lengths) < (1 - _WASTE) * len(lengths) * (self.prefix + count)
        packed = packed and not self._drops_rows() and not self._recomputes() and not torch.compiler.is_compiling()
        batch = x.shape
        if packed and valid is not None:
            x, beside = x[valid][None], _gather(beside, valid, self.prefix)
        mask = valid[:, None, None, :] if valid is not None and not packed else None

        def unpacked(x: Tensor) -> Tensor:
            return x if not packed else x.new_zeros(batch).masked_scatter(valid[..., None], x)  # type: ignore[index]

        kept = {}
        for number in range(self.depth):
            x = self._run(number, x, mask, beside, lengths if packed else None)
            if number in depths:
                kept[number] = unpacked(x)[:, self.prefix :]
        x = self.finish(unpacked(x))
        pooled = self.pool(x, tokens.valid if padded else None)
        return Encoded(x[:, self.prefix :], pooled, tuple(kept[number] for number in depths))

    def kernel(self, weight: Tensor, patch_size: int) -> Tensor:
        """Give the patch kernel ``(D, C, P, P)`` for patches of another size, as it is for its own."""
        old = weight.shape[-1]
        if patch_size == old:
            return weight
        key = (patch_size, weight.device)
        if key not in self._resizers:
            warnings.warn(
                f"the model's patches are {old} x {old}, the tokens' {patch_size} x {patch_size}; "
                "its patch embedding is resized",
                stacklevel=4,
            )
            self._resizers[key] = resizer(old, patch_size).to(weight.device)
        return resize_kernel(weight, self._resizers[key])

    def project(self, tokens: Tokens, conv: nn.Module) -> Tensor:
        """Apply a patch convolution of stride P to every token, ``(B, N, D)``."""
        weight = self.kernel(conv.weight, tokens.patch_size)  # type: ignore[arg-type]
        pixels = tokens.pixels.flatten(2).to(weight.dtype)
        return torch.nn.functional.linear(pixels, weight.flatten(1), conv.bias)  # type: ignore[arg-type]

    def _run(self, number: int, x: Tensor, mask: Tensor | None, beside: Any, lengths: Sequence[int] | None) -> Tensor:
        def run(x: Tensor) -> Tensor:
            if lengths is None:
                return self.block(number, x, mask, beside)
            with SegmentAttention(lengths) as attention:
                out = self.block(number, x, mask, beside)
            if not attention.used:  # the images would have seen one another
                raise RuntimeError(
                    f"block {number} computes attention without F.scaled_dot_product_attention; set packs = False"
                )
            return out

        if self.checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(run, x, use_reentrant=False)
            return out
        return run(x)

    def _drops_rows(self) -> bool:
        # Stochastic depth drops rows of the batch, and a packed batch is one row: all of its images or none.
        return self.training and any(getattr(part, "drop_prob", 0) and part.training for part in self.model.modules())

    def _recomputes(self) -> bool:
        # What torch's wrapper computes again for the backward pass would not be kept inside segments.
        return self.training and any(type(part).__name__ == "CheckpointWrapper" for part in self.model.modules())

    def _numbers(self, depths: Sequence[int]) -> tuple[int, ...]:
        for number in depths:
            if not -self.depth <= number < self.depth:
                raise InputError(
                    f"depths has {number} and the model has {self.depth} blocks; give numbers from 0 to "
                    f"{self.depth - 1}, or from -1 back to {-self.depth}"
                )
        return tuple(number % self.depth for number in depths)

    def _check(self, tokens: Tokens) -> None:
        require_tokens(tokens)
        channels = tokens.pixels.shape[2]
        if channels != self.channels or tokens.ndim != self.ndim:
            raise InputError(
                f"tokens have {channels} channels and {tokens.ndim} axes, the model was made for {self.channels} and "
                f"{self.ndim}; make the two alike"
            )


def require_tokens(given: object) -> None:
    """Refuse what is no batch of tokens.

    Raises:
        InputError: it is an image, patches that are not collated, or anything else.
    """
    if not isinstance(given, Tokens):
        raise InputError(
            f"the model reads Tokens and was given {type(given).__name__}; make a batch with pt.collate([patches]), "
            "where patches = pt.Patcher()(image)"
        )


def unwrapped(model: object) -> nn.Module:
    """Give the model inside of what ``torch.compile`` and ``DataParallel`` make of one.

    Raises:
        InputError: it is no model, as a name is not.
    """
    if isinstance(model, str):
        raise InputError(f"{model!r} is a name and no model; build_model(name, labels) makes one of a name")
    if not isinstance(model, nn.Module):
        raise InputError(f"a model is wanted and {type(model).__name__} is none; give a torch.nn.Module")
    if hasattr(model, "_orig_mod"):
        return unwrapped(model._orig_mod)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    return model


def sizes(tokens: Tokens) -> Tensor:
    """Give the side of each leaf in pixels, ``(B, N)``."""
    return float(tokens.patch_size) * 2.0**tokens.level


def spacing(tokens: Tokens) -> Tensor:
    """Give the side in pixels of the cells of a uniform grid with as many leaves on the same area, ``(B,)``.

    The unit of positions that count patches: on a uniform tree the side of its leaves, whatever their level; on
    others positions stay in the range that a grid of as many patches has.
    """
    side = sizes(tokens) * tokens.valid
    largest = side.amax(1)
    share = ((side / largest[:, None]) ** tokens.ndim).sum(1) / tokens.valid.sum(1)
    return largest * share ** (1 / tokens.ndim)


def masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Average ``(B, N, D)`` over the valid tokens, over all without `valid`."""
    if valid is None:
        return x.mean(1)
    share = valid.to(x.dtype)[..., None]
    return (x * share).sum(1) / share.sum(1)


def _gather(beside: Any, valid: Tensor, prefix: int) -> Any:
    """Put what stands beside a padded batch into one row."""
    if beside is None:
        return None
    if isinstance(beside, tuple):
        return tuple(_gather(part, valid, prefix) for part in beside)
    return beside[valid if beside.shape[1] == valid.shape[1] else valid[:, prefix:]][None]
