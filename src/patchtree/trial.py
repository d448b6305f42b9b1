"""After a training: with how many of its patches the validation images are predicted best."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from patchtree.data import Whole
from patchtree.inference import load
from patchtree.metrics import confusion, mean_dice

# Of the density: training draws windows at any between the first and the last.
SHARES = (0.25, 0.5, 1.0)
# A better score that differs less says nothing: validation images are few, and others may be finer.
_ALIKE = 0.005


def try_budgets(
    run: str | os.PathLike[str],
    whole: Whole,
    shares: Sequence[float] = SHARES,
    device: torch.device | str | None = None,
) -> dict[float, float]:
    """Give the mean Dice on validation images for each share of their patches.

    Args:
        run: the folder of a training, with its best weights.
        whole: the validation images at the density that was trained at.
        shares: of that density.
        device: see `patchtree.inference.load`.
    """
    predictor = load(run, device)
    scores = {}
    for share in shares:
        samples = replace(whole, density=share * whole.density)
        table = torch.zeros(whole.classes, whole.classes, dtype=torch.float64)
        for index in range(len(samples)):
            sample = samples[index]
            ids = predictor.in_patches(sample.patches).argmax(-1)
            table += confusion(torch.from_numpy(ids), torch.from_numpy(sample.counts))
        scores[share] = mean_dice(table)
    return scores


def choose_share(scores: Mapping[float, float]) -> float:
    """Give the largest share that scores as well as any, or nearly.

    >>> choose_share({0.25: 0.80, 0.5: 0.85, 1.0: 0.83}), choose_share({0.25: 0.80, 0.5: 0.85, 1.0: 0.849})
    (0.5, 1.0)
    """
    best = max(scores.values())
    return max(share for share, score in scores.items() if score >= best - _ALIKE)
