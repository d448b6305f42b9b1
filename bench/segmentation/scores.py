"""How good class ids are: Dice, IoU, distances between borders, and intervals by drawing again."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.datasets import DataSet
from patchtree.ids import count_pairs

_RESAMPLES = 2000


def confusion(ids: NDArray[Any], mask: NDArray[Any], dataset: DataSet) -> NDArray[np.int64]:
    """Count pixels, ``(K, K)``, the true class first."""
    known = np.ones(mask.shape, bool) if dataset.ignore is None else mask != dataset.ignore
    return count_pairs(mask[known], ids[known], len(dataset.labels))


def dice(table: NDArray[Any]) -> NDArray[np.float64]:
    """Give the Dice of each class, nan for one neither true nor predicted; ``(..., K, K)`` -> ``(..., K)``."""
    both, sums = np.diagonal(table, axis1=-2, axis2=-1), table.sum(-1) + table.sum(-2)
    return np.asarray(np.where(sums > 0, 2 * both / np.maximum(sums, 1), np.nan), np.float64)


def iou(table: NDArray[Any]) -> NDArray[np.float64]:
    score = dice(table)
    return score / (2 - score)


def mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average the classes but the background, those that are nan left out; ``(..., K)`` -> ``(...)``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no foreground at all
        return np.asarray(np.nanmean(scores[..., 1:], axis=-1), np.float64)


def micro(table: NDArray[Any]) -> NDArray[np.float64]:
    """Give the Dice of all pixels of the foreground together, a pixel of another of its classes counted as wrong.

    ``(..., K, K)`` -> ``(...)``; nan without foreground.

    >>> float(micro(np.array([[5, 1, 0], [0, 2, 1], [0, 0, 3]])).round(3))
    0.769
    """
    both = np.diagonal(table, axis1=-2, axis2=-1)[..., 1:].sum(-1)
    sums = table[..., 1:, :].sum((-1, -2)) + table[..., 1:].sum((-1, -2))
    return np.asarray(np.where(sums > 0, 2 * both / np.maximum(sums, 1), np.nan), np.float64)


def hausdorff(ids: NDArray[Any], mask: NDArray[Any], dataset: DataSet) -> list[float | None]:
    """Give the 95 % Hausdorff distance of each class but the background, in pixels.

    It is the larger of two numbers: the 95th percentile of the distances from the border of what was predicted to the
    nearest pixel of the true border, and the other way round. A class that is only predicted, or only true, gets the
    length of the image's diagonal, the largest distance there can be; one that is neither gets None. Pixels without a
    label count as background in both. Only the box around what is true or predicted is looked at.
    """
    known = np.ones(mask.shape, bool) if dataset.ignore is None else mask != dataset.ignore
    return [distance((ids == label) & known, (mask == label) & known) for label in range(1, len(dataset.labels))]


def distance(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float | None:
    """Give the 95 % Hausdorff distance of one class, ``(H, W)`` each; see `hausdorff`."""
    from scipy.ndimage import binary_erosion  # type: ignore[import-untyped]
    from scipy.spatial import KDTree  # type: ignore[import-untyped]

    either = found | true
    if not either.any():
        return None
    if not found.any() or not true.any():
        return math.hypot(*true.shape)
    rows, columns = (np.flatnonzero(either.any(axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    # Trees of the borders' pixels take a fraction of the time of maps of all distances.
    ours, theirs = (np.argwhere(plane[box] & ~binary_erosion(plane[box])) for plane in (found, true))
    ways = KDTree(theirs).query(ours)[0], KDTree(ours).query(theirs)[0]
    return float(max(np.percentile(way, 95) for way in ways))


def interval(tables: NDArray[Any]) -> tuple[float, float]:
    """Give the 95 % interval of the mean Dice of the foreground, ``(S, I, K, K)`` of seeds and images.

    Percentile bootstrap: seeds are drawn again with replacement, and images, the same for all seeds; 2000 times, the
    same draws always.

    >>> interval(np.array([[[[0, 0], [1, 3]], [[0, 0], [3, 1]]]]))
    (0.4, 0.8571428571428571)
    """
    rng = np.random.default_rng(0)
    seeds, images = (
        rng.multinomial(count, np.full(count, 1 / count), _RESAMPLES).astype(np.float64) for count in tables.shape[:2]
    )
    drawn = np.tensordot(images, tables, (1, 1))  # (resamples, S, K, K)
    scores = (mean(dice(drawn)) * seeds).sum(1) / seeds.sum(1)
    low, high = np.nanpercentile(scores, (2.5, 97.5)) if np.isfinite(scores).any() else (np.nan, np.nan)
    return float(low), float(high)
