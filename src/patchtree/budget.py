"""How many tokens an image is worth, and how much of it one training step looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.fidelity import measure_psnr
from patchtree.patcher import Patcher, spare_budget_allowed
from patchtree.patches import count_labels
from patchtree.tree import grid_shape

# The Dice that the patches alone must allow, and the decibels from which they show all of an image; see choose_density.
_CEILING, _SHOWN = 0.96, 50.0
# Patch pixels at least: for each of an image's pixels, for an image, and for one that so few do not show.
_FEWEST, _FEW, _ENOUGH = 1 / 16, 1 << 17, 1 << 20
# The smallest budget of a whole image.
LEAST = 64
# Sides of training windows, in patches of the finest level, of images and of volumes: steps, least and most.
_WINDOWS = {2: (4, 16, 64), 3: (1, 4, 64)}
# What is looked at of an image or a volume at most, in pixels on a side.
_SIDE = {2: 4096, 3: 256}
# Of the density: windows are drawn at any between the first and the last, images validated at each.
FRACTIONS = (0.25, 0.5, 1.0)
# A better score that differs less says nothing: validation images are few, and others may be finer.
ALIKE = 0.005


def choose_density(
    images: Sequence[tuple[NDArray[Any], NDArray[Any]]], patcher: Patcher, classes: int, ignore: int | None = None
) -> float:
    """Give the tokens a pixel that suit these images and their labels.

    Patches should show what there is to see: from a patch pixel for 16 pixels (a token of 16 x 16 for 4096), or 512
    such tokens for an image of median area, the density doubles until painted patches differ from the image by less
    than a three hundredth of its range (50 dB), but to no more than `usual_density`. And labels painted from patches
    cannot be finer than the patches: it doubles on until the best labels that they could hold have a Dice of 0.96 (mean
    of the foreground classes), or all leaves are of the finest level.

    >>> coarse, fine = (np.tile(np.arange(2048) // width % 2, (2048, 1)).astype(np.uint8) for width in (128, 3))
    >>> [round(1 / choose_density([(255 * ids, ids)], Patcher(detail="residual"), 2)) for ids in (coarse, fine)]
    [4096, 256]

    Args:
        images: image ``(H, W)`` or ``(H, W, C)`` and mask ``(H, W)`` each, or volumes, with one more ``D`` in front.
        patcher: its own budget is replaced.
        classes: number of classes, ``K``; 0 is the background.
        ignore: id of pixels without a label.
    """
    pixels: int = patcher.patch_size**patcher.ndim
    area = float(np.median([mask.size for _, mask in images]))
    usual = pixels * usual_density(area, patcher.patch_size, patcher.ndim)
    share = min(usual, max(_FEWEST, _FEW / area))
    while share < usual and not _show_all(images, patcher, share / pixels):
        share = min(usual, 2 * share)
    while share < 1 and _ceiling(images, patcher, share / pixels, classes, ignore) < _CEILING:
        share = min(1.0, 2 * share)
    return share / pixels


def usual_density(area: float, patch_size: int, ndim: int = 2) -> float:
    """Give the tokens a pixel that suit images of which no more is known than their median area.

    >>> [round(1 / usual_density(side**2, patch_size=16)) for side in (512, 2048, 8192)]
    [256, 1024, 4096]

    Args:
        area: in pixels.
        patch_size: pixels on a side of a patch.
        ndim: 2 for images, 3 for volumes.
    """
    return float(min(1.0, max(_FEWEST, _ENOUGH / area)) / patch_size**ndim)


def _show_all(images: Sequence[tuple[NDArray[Any], NDArray[Any]]], patcher: Patcher, density: float) -> bool:
    """Whether painted patches differ from each image by next to nothing, against the range of its own values."""
    for image, _ in images:
        part = np.ascontiguousarray(image[_middle(image.shape[: patcher.ndim])])
        with spare_budget_allowed():
            patches = with_budget(patcher, part.shape[: patcher.ndim], density)(part)
        peak = float(part.max()) - float(part.min())
        if peak and measure_psnr(part, patches, peak) < _SHOWN:
            return False
    return True


def _middle(shape: Sequence[int]) -> tuple[slice, ...]:
    """Give the part of an image or a volume that is looked at."""
    side = _SIDE[len(shape)]
    starts = (max(0, (length - side) // 2) for length in shape)
    return tuple(slice(start, start + side) for start in starts)


def _ceiling(
    images: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    patcher: Patcher,
    density: float,
    classes: int,
    ignore: int | None,
) -> float:
    """Give the foreground's mean Dice of the likeliest class of every patch pixel; 1 without foreground."""
    import torch

    from patchtree.metrics import confusion, dice

    table = torch.zeros(classes, classes, dtype=torch.float64)
    for image, mask in images:
        part = _middle(mask.shape)
        with spare_budget_allowed():  # it is told once the training starts
            tree = with_budget(patcher, mask[part].shape, density).plan(image[part])
        counts = torch.from_numpy(count_labels(mask[part], tree, classes, ignore))
        table += confusion(counts.argmax(-1), counts)
    found = dice(table)[1:]
    found = found[found.isfinite()]
    return float(found.mean()) if len(found) else 1.0


def choose_fraction(scores: Mapping[float, float]) -> float:
    """Give the largest fraction of the density that scores as well as any, or nearly.

    >>> choose_fraction({0.25: 0.80, 0.5: 0.85, 1.0: 0.83}), choose_fraction({0.25: 0.80, 0.5: 0.85, 1.0: 0.849})
    (0.5, 1.0)
    """
    best = max(scores.values())
    return max(fraction for fraction, score in scores.items() if score >= best - ALIKE)


def distinct_fractions(budget: int, least: int, most: int) -> dict[float, int]:
    """Give the fractions of an image's budget that differ once it is no less than `least` and no more than `most`.

    >>> distinct_fractions(1000, least=64, most=65536), distinct_fractions(100, least=64, most=65536)
    ({0.25: 250, 0.5: 500, 1.0: 1000}, {0.5: 64, 1.0: 100})

    Returns:
        The budget of each; of fractions with the same budget the largest.
    """
    kept = {min(most, max(least, round(fraction * budget))): fraction for fraction in FRACTIONS}
    return {fraction: part for part, fraction in kept.items()}


def choose_window(density: float, tokens: int, patch_size: int, depth: float | None = None) -> int:
    """Give the side of a training window, in pixels, that holds about as many tokens; from 16 to 64 fine patches.

    >>> choose_window(1 / 4096, 300, patch_size=16), choose_window(1 / 600, 300, patch_size=16)
    (1024, 448)
    >>> [choose_window(1 / 512, 300, patch_size=8, depth=slices) for slices in (200, 20)]
    [56, 88]

    Args:
        density: tokens a pixel.
        tokens: of a window.
        patch_size: pixels on a side of a patch.
        depth: slices of the volumes; None: they are images. Windows of few slices are wider.
    """
    step, least, most = _WINDOWS[2 if depth is None else 3]
    pixels = tokens / density
    side = sqrt(pixels) if depth is None else max(pixels ** (1 / 3), sqrt(pixels / depth))
    return patch_size * min(most, max(least, round(side / patch_size / step) * step))


def with_budget(
    patcher: Patcher, shape: tuple[int, ...], density: float, least: int = 16, most: int | None = None
) -> Patcher:
    """Give a patcher the budget that suits an image of this shape: `density` tokens a pixel.

    >>> with_budget(Patcher(), (1024, 1024), density=1 / 4096).budget
    256

    Args:
        patcher: its own budget is replaced.
        shape: ``(H, W)`` or ``(D, H, W)``.
        density: tokens a pixel.
        least: smallest budget. The number of roots is a smallest budget too.
        most: largest budget.
    """
    budget = max(least, round(density * prod(shape)))
    if most is not None:
        budget = min(budget, most)
    if patcher.max_level is not None:
        root = patcher.patch_size << patcher.max_level
        budget = max(budget, prod(grid_shape(shape, root)))
    return replace(patcher, budget=budget)
