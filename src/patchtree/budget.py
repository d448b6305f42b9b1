"""How many tokens an image of a given size is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from patchtree.patcher import Patcher


def choose_density(shapes: Sequence[tuple[int, int]]) -> float:
    """Give the tokens a pixel that suit images of these sizes.

    Large images have much that is empty or coarse: a token for 4096 pixels, 256 for a window of 1024 x 1024. Small ones
    (median longer side of at most 1024) are all foreground: a token for 2400 pixels.

    >>> round(1 / choose_density([(4288, 2848)])), round(1 / choose_density([(640, 640)]))
    (4096, 2400)
    """
    return 1 / 2400 if np.median([max(shape) for shape in shapes]) <= 1024 else 1 / 4096


def with_budget(
    patcher: Patcher, shape: tuple[int, ...], density: float, least: int = 16, most: int | None = None
) -> Patcher:
    """Give a patcher the budget that suits an image of this shape: `density` tokens a pixel.

    >>> with_budget(Patcher(), (1024, 1024), density=1 / 4096).budget
    256

    Args:
        patcher: its own budget is replaced.
        shape: ``(H, W)`` in pixels.
        density: tokens a pixel.
        least: smallest budget. The number of roots is a smallest budget too.
        most: largest budget.
    """
    budget = max(least, round(density * prod(shape)))
    if most is not None:
        budget = min(budget, most)
    if patcher.max_level is not None:
        root = patcher.patch_size << patcher.max_level
        budget = max(budget, prod(-(-length // root) for length in shape))
    return replace(patcher, budget=budget)
