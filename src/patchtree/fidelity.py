"""How well patches show their image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.patcher import Patches
from patchtree.patches import band

_STRIP_ROWS = 1024


def measure_psnr(image: NDArray[Any], patches: Patches, peak: float | None = None) -> float:
    """Compare an image with its patches painted back, in decibels; infinite where they are equal.

    >>> from patchtree.patcher import Patcher
    >>> image = np.zeros((64, 64), np.uint8)
    >>> image[0, 0] = 255
    >>> round(measure_psnr(image, Patcher(budget=1)(image)), 1)
    36.4

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, or a volume, with one more ``D`` in front.
        patches: of the image.
        peak: what errors are compared with; None: 255 and 65535 for 8 and 16 bits without sign, else the image's range.
    """
    tree = patches.tree
    squares = 0.0
    for top in range(0, len(image), _STRIP_ROWS):
        strip = image[top : top + _STRIP_ROWS]
        painted = tree.paint(patches.pixels, band(tree.shape, top, top + len(strip)))
        error = strip.astype(np.float64) - painted
        squares += float(np.vdot(error, error))
    if squares == 0:
        return float("inf")
    if peak is None:
        limited = image.dtype in (np.uint8, np.uint16)
        peak = float(np.iinfo(image.dtype).max) if limited else float(image.max()) - float(image.min())
    return float(10 * np.log10(peak**2 * image.size / squares))
