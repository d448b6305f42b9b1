"""Batches for torch: the patches of several images as one padded sequence, or as one mosaic, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchtree.eager import eagerly
from patchtree.errors import InputError
from patchtree.patcher import Patches
from patchtree.patches import full_scale
from patchtree.tree import Tree


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of B images, each a sequence of patches with their places, padded to N.

    >>> tree = Tree.uniform((32, 32), patch_size=16)
    >>> tokens = collate([Patches(np.zeros((4, 16, 16, 3), np.uint8), tree)], length=6)
    >>> tokens.pixels.shape, tokens.valid.sum().item()
    (torch.Size([1, 6, 3, 16, 16]), 4)

    Attributes:
        pixels: ``(B, N, C, p, p)`` float32 (``(B, N, C, p, p, p)`` in 3-D), normalised; 0 on padding.
        centre: ``(B, N, d)`` float32, the leaf's centre in pixels of the whole image; 0 on padding.
        level: ``(B, N)`` int64, the leaf's level, 0 is the finest; 0 on padding.
        valid: ``(B, N)`` bool, False on padding.
        extent: ``(B, d)`` float32, the whole image's shape in pixels.
        trees: the B trees; the first ``len(tree)`` tokens of a sequence are valid.
    """

    pixels: Tensor
    centre: Tensor
    level: Tensor
    valid: Tensor
    extent: Tensor
    trees: tuple[Tree, ...]

    @property
    def patch_size(self) -> int:
        """Pixels on a side of a patch, p."""
        return self.pixels.shape[-1]

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return self.centre.shape[-1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tokens:
        """Move the tensors to a device.

        Raises:
            InputError: a type is given, or anything else that is no device; models cast pixels themselves.
        """
        if isinstance(device, torch.dtype):
            raise InputError(f"tokens have no type of their own, {device} was given; models cast pixels as they need")
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Tokens:
        """Put the tensors in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Tokens:
        return replace(
            self,
            pixels=move(self.pixels),
            centre=move(self.centre),
            level=move(self.level),
            valid=move(self.valid),
            extent=move(self.extent),
        )


def collate(
    patches: Sequence[Patches],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    length: int | None = None,
) -> Tokens:
    """Make one padded, normalised batch of the patches of several images.

    uint8 is divided by 255 and uint16 by 65535, other types are taken as they are; then each channel becomes
    ``(x - mean) / std``. Padding is exactly 0 after that.

    >>> tree = Tree.uniform((32, 48), patch_size=16)
    >>> pixels = np.full((6, 16, 16, 3), 255, np.uint8)
    >>> tokens = collate([Patches(pixels, tree)], mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), length=8)
    >>> tokens.pixels[0, :, 0, 0, 0].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    >>> tokens.centre[0, 0].tolist(), tokens.extent[0].tolist()
    ([8.0, 8.0], [32.0, 48.0])

    Args:
        patches: one item an image, pixels ``(N_i, p, p, C)`` or ``(N_i, p, p)``, which gives C = 1.
        mean: C numbers, on the scale of 0 to 1 for uint8 and uint16; without it, 0.
        std: C positive numbers on the same scale; without it, 1.
        length: N, for batches of one fixed shape; without it, the longest sequence.

    Raises:
        InputError: the batch is empty; patch sizes, channels or numbers of axes differ in it; a sequence is
            longer than `length`; `mean` or `std` does not fit the channels.
    """
    if not patches:
        raise InputError("collate was given no patches; give at least one image's")
    arrays = [_channels_first(item) for item in patches]
    shape = arrays[0].shape[1:]
    for i, array in enumerate(arrays):
        if array.shape[1:] != shape:
            raise InputError(
                f"patches {i} of the batch have (channels, pixels...) {array.shape[1:]}, the first have {shape}; "
                "batch images with the same channels and patch size"
            )
    counts = [len(array) for array in arrays]
    if mean is not None and full_scale(arrays[0].dtype) != 1 and max(mean, default=0) > 1:
        raise InputError(
            f"mean is {tuple(mean)}, which is not on the scale of 0 to 1; divide mean and std by the largest value"
        )
    shift, scale = _per_channel("mean", mean, 0.0, shape), _per_channel("std", std, 1.0, shape)
    if not bool((scale > 0).all()):
        raise InputError(f"std is {std}; give positive numbers")

    pixels = torch.zeros(len(arrays), _length(counts, length), *shape)
    for i, array in enumerate(arrays):
        own = pixels[i, : len(array)]
        np.copyto(own.numpy(), array)
        full = full_scale(array.dtype)
        own.sub_(shift * full).div_(scale * full)
    trees = tuple(item.tree for item in patches)
    centres = [tree.centres() + (item.origin or 0) for tree, item in zip(trees, patches, strict=True)]
    return Tokens(
        pixels=pixels,
        centre=pad([centre.astype(np.float32) for centre in centres], length),
        level=pad([tree.level.astype(np.int64) for tree in trees], length),
        valid=torch.arange(pixels.shape[1]) < torch.tensor(counts)[:, None],
        extent=torch.tensor([item.extent or item.tree.shape for item in patches], dtype=torch.float32),
        trees=trees,
    )


def pad(arrays: Sequence[NDArray[Any] | Tensor], length: int | None = None) -> Tensor:
    """Stack sequences of different lengths with zeros after each, ``(N_i, ...)`` -> ``(B, N, ...)``.

    >>> pad([np.array([1, 2, 3]), np.array([4])]).tolist()
    [[1, 2, 3], [4, 0, 0]]

    Args:
        arrays: the sequences, of one type, equal in all axes but the first.
        length: N; without it, the longest sequence.

    Raises:
        InputError: there is no sequence, types or axes differ, or a sequence is longer than `length`.
    """
    if not arrays:
        raise InputError("pad was given no sequences; give at least one")
    # torch takes no array that runs backwards, and warns of one that it may not write to.
    tensors = [x if isinstance(x, Tensor) else torch.from_numpy(np.require(x, requirements=("C", "W"))) for x in arrays]
    kinds = {f"{tensor.dtype} (N, {', '.join(map(str, tensor.shape[1:]))})" for tensor in tensors}
    if len(kinds) > 1:
        raise InputError(f"pad was given sequences of different kinds, {' and '.join(sorted(kinds))}; give one kind")
    count = _length([len(tensor) for tensor in tensors], length)
    out = tensors[0].new_zeros(len(tensors), count, *tensors[0].shape[1:])
    for i, tensor in enumerate(tensors):
        out[i, : len(tensor)] = tensor
    return out


def unpad(values: Tensor, tokens: Tokens) -> list[Tensor]:
    """Give each image's own values without the padding, ``(B, N, ...)`` -> B times ``(N_i, ...)``.

    >>> tree = Tree.uniform((32, 32), patch_size=16)
    >>> tokens = collate([Patches(np.zeros((4, 16, 16, 3), np.uint8), tree)], length=6)
    >>> [own.shape for own in unpad(torch.zeros(1, 6, 256), tokens)]
    [torch.Size([4, 256])]

    Raises:
        InputError: the values are of another batch: B or N differs.
    """
    if values.shape[:2] != tokens.valid.shape:
        raise InputError(f"values are {tuple(values.shape)}, the tokens {tuple(tokens.valid.shape)}: other (B, N)")
    return [own[: len(tree)] for own, tree in zip(values, tokens.trees, strict=True)]


def mosaic(tokens: Tokens) -> Tensor:
    """Lay the patches as tiles of square images, along the Morton curve, ``(B, C, S, S)``.

    S is p times the smallest power of two that holds N tiles; tiles beyond the sequence are 0. On a uniform
    tree of a square image whose side is p times a power of two, the mosaic is the image.

    >>> tree = Tree.uniform((32, 32), patch_size=16)
    >>> tokens = collate([Patches(np.zeros((4, 16, 16, 3), np.uint8), tree)])
    >>> mosaic(tokens).shape
    torch.Size([1, 3, 32, 32])

    Raises:
        InputError: the patches are 3-D.
    """
    if tokens.ndim != 2:
        raise InputError(f"a mosaic is a flat image and these patches are {tokens.ndim}-D; use them as a sequence")
    batch, count, channels, p, _ = tokens.pixels.shape
    side = _side(count)
    row, col = _curve(side)
    canvas = tokens.pixels.new_zeros(batch, channels, side, p, side, p)
    canvas.permute(0, 2, 4, 1, 3, 5)[:, row[:count], col[:count]] = tokens.pixels
    return canvas.view(batch, channels, side * p, side * p)


def unmosaic(images: Tensor, tokens: Tokens) -> Tensor:
    """Take the tiles of `mosaic` back into sequences, ``(B, K, S', S')`` -> ``(B, N, p', p', K)``.

    The images may have the mosaic's own resolution or another that the tiles divide evenly: a map at a quarter
    of the mosaic gives p' = p / 4.

    >>> tree = Tree.uniform((32, 32), patch_size=16)
    >>> tokens = collate([Patches(np.zeros((4, 16, 16, 3), np.uint8), tree)])
    >>> unmosaic(torch.zeros(1, 7, 8, 8), tokens).shape
    torch.Size([1, 4, 4, 4, 7])

    Raises:
        InputError: the images are not square, or the tiles do not divide them.
    """
    count = tokens.valid.shape[1]
    side = _side(count)
    row, col = _curve(side)
    batch, channels, height, width = images.shape
    p = width // side
    if not p or height != width or p * side != width:
        raise InputError(f"images are {height} x {width}; a mosaic of {side} x {side} tiles needs a square multiple")
    tiles = images.reshape(batch, channels, side, p, side, p)
    return tiles.permute(0, 2, 4, 3, 5, 1)[:, row[:count], col[:count]]


def _side(count: int) -> int:
    """Give the tiles on a side of the mosaic of a sequence: the smallest power of two that will do."""
    return 1 << (max(0, count - 1).bit_length() + 1) // 2


@eagerly
@lru_cache(maxsize=16)
def _curve(side: int) -> tuple[Tensor, Tensor]:
    """Give the row and column of every tile of a mosaic, along the trees' own Morton curve."""
    index = Tree.uniform((side, side), patch_size=1).index.astype(np.int64)
    return torch.from_numpy(index[:, 0]), torch.from_numpy(index[:, 1])


def _channels_first(item: Patches) -> NDArray[Any]:
    """View patches ``(N, p, p[, C])`` as ``(N, C, p, p)``."""
    if item.pixels.ndim == 1 + item.tree.ndim:
        return item.pixels[:, None]
    return np.moveaxis(item.pixels, -1, 1)


def _per_channel(name: str, values: Sequence[float] | None, default: float, shape: tuple[int, ...]) -> Tensor:
    """Give one number a channel, to broadcast over ``(C, p, p)``."""
    if values is None:
        return torch.tensor(default)
    if len(values) != shape[0]:
        raise InputError(f"{name} has {len(values)} numbers, the patches {shape[0]} channels; give one a channel")
    return torch.tensor(values, dtype=torch.float32).reshape(-1, *[1] * (len(shape) - 1))


def _length(counts: Sequence[int], length: int | None) -> int:
    """Give the length to pad to."""
    longest = max(counts)
    if length is not None and length < longest:
        raise InputError(f"length is {length}, the longest sequence {longest}; give {longest} or more")
    return longest if length is None else length
