"""patchtree's own model and training on a uniform grid of the finest patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.budget import choose_window
from patchtree.detail import DETAILS, DetailPyramid, PixelMap
from patchtree.errors import InputError
from patchtree.runs import RunConfig


@dataclass(frozen=True)
class Everywhere:
    """The same detail at every pixel: with a budget for all of them, every cell is split down to the finest."""

    def measure(self, image: NDArray[Any], patch_size: int, levels: int) -> DetailPyramid:
        return PixelMap(lambda pixels: np.ones(image.shape[:2])).measure(image, patch_size, levels)


# A run folder names its detail, and this is where the name is looked up.
DETAILS["everywhere"] = Everywhere


def options(
    shapes: Sequence[tuple[int, int]], held_out: Sequence[tuple[int, int]], tokens: int, patch_size: int = 16
) -> dict[str, Any]:
    """Give what `patchtree.training.train` needs for a uniform grid at level 0, of images and of windows.

    >>> options([(320, 320)], [], tokens=300)
    {'detail': Everywhere(), 'patch_size': 16, 'budget': 401, 'window': 256}

    Args:
        shapes: ``(H, W)`` of the images that are trained and validated on, in pixels.
        held_out: those of the images that are predicted.
        tokens: in a training window, about.
        patch_size: pixels on a side of a patch.

    Raises:
        InputError: an image has more patches than patchtree takes of one.
    """
    window = choose_window(1 / patch_size**2, tokens, patch_size)
    largest = max(_patches(shape, patch_size) for shape in (*shapes, *held_out))
    if largest > RunConfig.most:
        raise InputError(f"an image has {largest:,} patches of {patch_size} px, patchtree takes {RunConfig.most:,}")
    seen = [*shapes, *held_out, *((min(height, window), min(width, window)) for height, width in shapes)]
    # A budget is given in proportion to the area; patches that are partly outside need more than their share.
    density = max(_patches(shape, patch_size) / prod(shape) for shape in seen)
    budget = ceil(density * median(prod(shape) for shape in shapes)) + 1
    return {"detail": Everywhere(), "patch_size": patch_size, "budget": budget, "window": window}


def _patches(shape: tuple[int, int], patch_size: int) -> int:
    return prod(-(-length // patch_size) for length in shape)
