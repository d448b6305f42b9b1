"""The noise of an image, estimated from its finest details."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Enough for a median, and quick.
_SAMPLES = 1 << 18
# Multiples of it, less their whole part, are spread evenly however many there are.
_GOLDEN = (math.sqrt(5) - 1) / 2


def estimate_noise(image: NDArray[Any]) -> NDArray[np.float64]:
    """Estimate the standard deviation of each channel's noise, ``(C,)``, in the image's own units.

    >>> noisy = np.random.default_rng(0).normal(100, 5, (256, 256, 1))
    >>> bool(abs(estimate_noise(noisy)[0] - 5) < 0.1)
    True

    Args:
        image: ``(H, W, C)`` or ``(D, H, W, C)``.
    """
    plane = image[len(image) // 2] if image.ndim == 4 else image
    rows, columns = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    if rows == 0 or columns == 0:
        return np.zeros(image.shape[-1])
    step = max(1, rows * columns * image.shape[-1] // 4 // _SAMPLES)
    pairs = plane[:rows].reshape(rows // 2, 2, *plane.shape[1:])[::step, :, :columns]
    pairs = pairs.reshape(len(pairs), 2, -1)
    whole, channels = image.dtype.kind in "iu", image.shape[-1]
    rises = np.subtract(*pairs.swapaxes(0, 1), dtype=np.int32 if whole and image.dtype.itemsize <= 2 else np.float32)
    middles = []
    for channel in range(channels):
        diagonal = rises[:, channel :: 2 * channels] - rises[:, channels + channel :: 2 * channels]
        middles.append(_median(np.abs(diagonal).ravel(), whole))
    return np.array(middles) / 2 / 0.6745


def sample_evenly(values: NDArray[Any], most: int) -> NDArray[Any]:
    """Choose so many of a list of values at most, from all over it.

    Every n-th would be of one column where an image is a multiple of n wide.

    >>> len(sample_evenly(np.arange(10), most=4)), len(sample_evenly(np.arange(10), most=20))
    (4, 10)
    """
    if len(values) <= most:
        return values
    return np.asarray(values[(np.arange(most) * _GOLDEN % 1 * len(values)).astype(np.int64)])


def _median(numbers: NDArray[Any], whole: bool) -> float:
    """Find the median of numbers that are not negative; that of whole ones inside its step, as of grouped data."""
    if numbers.dtype.kind == "i":
        counts = np.bincount(numbers)
        ends = np.searchsorted(np.cumsum(counts), ((len(numbers) - 1) // 2, len(numbers) // 2), side="right")
        middle = float(ends.mean())
        below, equal = counts[: math.ceil(middle)].sum(), counts[int(middle)]
    else:
        middle = float(np.median(numbers))
        below, equal = np.count_nonzero(numbers < middle), np.count_nonzero(numbers == middle)
    if whole and middle > 0:
        middle += float((len(numbers) / 2 - below) / max(equal, 1)) - 0.5
    return middle
