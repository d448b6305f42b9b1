"""The mosaic door: any model of images, its weights and code as they are, on tokens laid as one image."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import require_tokens, unwrapped
from patchtree.tokens import Tokens, mosaic, unmosaic

# Most models halve the image up to five times, and some norms want more than one pixel after that.
_MULTIPLE, _LEAST = 32, 64
# Where the maps are in what a model gives, the first of these that is there.
_NAMES = ("logits", "out", "feature_maps", "last_hidden_state")

# What libraries say of images whose size they do not take.
_OF_SIZES = re.compile(r"\b(sizes?|shapes?|height|width|divisible|resolution)\b", re.IGNORECASE)


def through_mosaic(model: nn.Module, size: int | None = None) -> ThroughMosaic:
    """Give a model of images adaptive patches: a module that reads tokens and gives logits or features of each leaf.

    The model sees the mosaic, an image whose tiles are the leaves; weights are shared, not copied. On a uniform tree of
    a square image whose side is p times a power of two (and that needs no padding) the mosaic is the image, so the
    output is the model's own. Otherwise tiles that touch in the mosaic need not touch in the image.

    >>> import numpy as np, torchvision
    >>> import patchtree as pt
    >>> model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4).eval()
    >>> tokens = pt.collate([pt.Patcher(budget=50)(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8))])
    >>> pt.through_mosaic(model)(tokens).shape
    torch.Size([1, 49, 16, 16, 4])

    Args:
        model: of images ``(B, C, S, S)``. It may give a tensor ``(B, K, h, w)`` of any resolution; torchvision's
            ``{"out": ...}``; an output of transformers with ``logits``, with queries of classes and masks (Mask2Former,
            MaskFormer), with ``feature_maps`` or ``last_hidden_state``; or a list of maps, of which the one of the
            highest resolution is taken.
        size: side in pixels of the images of a model that takes no other; the mosaic is padded with zeros to it.
            Without it, padding goes to the next multiple of 32, at least 64.

    Raises:
        InputError: `size` is no length.
    """
    return ThroughMosaic(unwrapped(model), size)


class ThroughMosaic(nn.Module):
    """A model of images that reads tokens; made by `through_mosaic`.

    The state dict is the original's, each name after ``model.``.

    Attributes:
        model: the original.
        size: side in pixels of the images that it takes; None: any multiple of 32 from 64 on.
    """

    def __init__(self, model: nn.Module, size: int | None = None) -> None:
        super().__init__()
        if size is not None and size < 1:
            raise InputError(f"size is {size}; give the side in pixels of the images that the model takes")
        self.model = model
        self.size = size
        self._warned = False

    def forward(self, tokens: Tokens) -> Tensor:
        """Give the logits or features of each leaf's pixels, ``(B, N, p, p, K)``, in the order of the tokens.

        Maps of another resolution are resized, bilinear, to the mosaic's. A model in half precision is given its own
        kind of numbers; what comes out is float32.

        Raises:
            InputError: no tokens are given; they are 3-D; they do not fit into `size`; the model takes images
                of another size; it gives nothing known.
        """
        require_tokens(tokens)
        images = mosaic(tokens)
        side = images.shape[-1]
        padded = self._padded(side, tokens)
        images = F.pad(images, (0, padded - side) * 2)
        kind = next((part.dtype for part in self.model.parameters() if part.is_floating_point()), images.dtype)
        maps = self._maps(self._run(images.to(kind))).float()
        if maps.shape[-1] != padded:
            maps = F.interpolate(maps, size=(padded, padded), mode="bilinear", align_corners=False)
        return unmosaic(maps[..., :side, :side], tokens)

    def _run(self, images: Tensor) -> Any:
        """Give what the model makes of the images; libraries say in many ways that they take another size."""
        try:
            return self.model(images)
        except (AssertionError, RuntimeError, ValueError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            if isinstance(error, InputError) or "channel" in said or not _OF_SIZES.search(said):
                raise
            side = images.shape[-1]
            raise InputError(
                f"the model fails on a mosaic of {side} x {side} pixels ({said}); "
                "give size=..., the side the model takes"
            ) from error

    def _padded(self, side: int, tokens: Tokens) -> int:
        """Give the side of the image that the model is given."""
        if self.size is None:
            return max(_LEAST, -(-side // _MULTIPLE) * _MULTIPLE)
        if side > self.size:
            tiles = self.size // tokens.patch_size
            limit = 4 ** (tiles.bit_length() - 1) if tiles else 0
            raise InputError(
                f"{tokens.valid.shape[1]} tokens make a mosaic of {side} x {side} pixels and the model takes "
                f"{self.size} x {self.size}; at most {limit} tokens of {tokens.patch_size} x {tokens.patch_size} fit"
            )
        return self.size

    def _maps(self, output: Any) -> Tensor:
        """Find the maps ``(B, K, h, h)`` in what the model gave."""
        if isinstance(output, Mapping):
            if "masks_queries_logits" in output and "class_queries_logits" in output:
                return _of_queries(output["class_queries_logits"], output["masks_queries_logits"])
            name = next((name for name in _NAMES if name in output), None)
            if name == "last_hidden_state" and output[name].ndim == 3:
                return _of_sequence(output[name])
            if name is not None:
                return self._maps(output[name])
            raise InputError(f"the model gives a {type(output).__name__} of {', '.join(map(str, output))}; {_HINT}")
        if isinstance(output, tuple | list):
            maps = [_channels_first(part) for part in output if isinstance(part, Tensor) and _is_map(part)]
            if not maps:
                kinds = ", ".join(sorted({type(part).__name__ for part in output}))
                raise InputError(f"the model gives a {type(output).__name__} of {kinds or 'nothing'}, no maps; {_HINT}")
            best = max(maps, key=lambda part: part.shape[-1])
            if len(maps) > 1 and not self._warned:
                self._warned = True
                given = ", ".join(str(tuple(part.shape[1:])) for part in maps)
                warnings.warn(f"the model gives maps {given}; {tuple(best.shape[1:])} is taken", stacklevel=2)
            return best
        if isinstance(output, Tensor) and _is_map(output):
            return _channels_first(output)
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"the model gives {what}, no square map; {_HINT}")


_HINT = "wrap it in a module that returns one tensor (B, K, h, w)"


def _is_map(output: Tensor) -> bool:
    """Say whether a tensor has two sides alike, as what is made of a mosaic does."""
    return output.ndim == 4 and output.shape[2] in (output.shape[1], output.shape[3])


def _channels_first(maps: Tensor) -> Tensor:
    """Give ``(B, K, h, h)``, also from ``(B, h, h, K)``, which windowed backbones give."""
    return maps if maps.shape[2] == maps.shape[3] else maps.movedim(-1, 1)


def _of_sequence(features: Tensor) -> Tensor:
    """Lay the features of a grid in array order, ``(B, h * h, K)``, as maps."""
    count = features.shape[1]
    side = isqrt(count)
    if side * side != count:
        raise InputError(
            f"the model gives a sequence of {count} features, no square grid (a class token among them?); {_HINT}"
        )
    return features.transpose(1, 2).reshape(len(features), -1, side, side)


def _of_queries(classes: Tensor, masks: Tensor) -> Tensor:
    """Join queries ``(B, Q, K + 1)`` and ``(B, Q, h, h)`` to one score a class and pixel, as MaskFormer does.

    Source: B. Cheng et al., Per-Pixel Classification is Not All You Need for Semantic Segmentation, NeurIPS 2021.
    """
    return torch.einsum("bqk,bqhw->bkhw", classes.softmax(-1)[..., :-1], masks.sigmoid())
