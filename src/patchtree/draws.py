"""Where a window to train on is drawn: some of them around a rare class, and how much more often that makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# No window counts for more than so many times as much as it would if windows lay anywhere, this being the inverse.
_LEAST_ODDS = 0.1


def draw_source(pixels: NDArray[np.number[Any]], foreground: float, rng: np.random.Generator) -> tuple[int, int | None]:
    """Choose an image, and for a share of samples a rare class (any but the most frequent) that it has.

    >>> draw_source(np.array([(90, 0), (80, 10)]), foreground=1.0, rng=np.random.default_rng(0))
    (1, 1)

    Args:
        pixels: ``(n, K)``, of each image, how many pixels each class has.
        foreground: share of samples for which the class is drawn first, then an image that has it.
        rng: of the sample.
    """
    rare = _rare(pixels)
    label = int(rng.choice(rare)) if rng.random() < foreground and len(rare) else None
    having = np.arange(len(pixels)) if label is None else np.flatnonzero(pixels[:, label])
    return int(rng.choice(having)), label


def draw_odds(
    pixels: NDArray[np.number[Any]], window: NDArray[np.float64], image: NDArray[np.float64], foreground: float
) -> float:
    """Say how many times as likely a window is drawn as if windows lay anywhere in any image.

    Divided by that, windows count as if they did: rare classes are seen often, and not taken for frequent.

    >>> pixels = np.array([(75, 25)])
    >>> window, image = np.array([0.25, 0.75]), np.array([0.75, 0.25])
    >>> draw_odds(pixels, window, image, foreground=0.5), draw_odds(pixels, image, image, foreground=0.5)
    (2.0, 1.0)

    Args:
        pixels: as of `draw_source`.
        window: ``(K,)``, each class's share of the window.
        image: ``(K,)``, each class's share of the image that the window is of.
        foreground: as of `draw_source`.
    """
    rare = _rare(pixels)
    if not len(rare):
        return 1.0
    # A pixel of a class is as likely as any of its image, and an image as any that has the class.
    denser = np.divide(window, image, out=np.zeros(len(image)), where=image > 0)[rare]
    more = (denser / np.count_nonzero(pixels[:, rare], axis=0)).mean() * len(pixels)
    return max(_LEAST_ODDS, 1 - foreground + foreground * float(more))


def _rare(pixels: NDArray[np.number[Any]]) -> NDArray[np.int64]:
    """Number the classes that are there, but the most frequent."""
    totals = pixels.sum(axis=0)
    return np.flatnonzero((totals > 0) & (np.arange(len(totals)) != np.argmax(totals))) if len(totals) else np.arange(0)


def draw_corner(
    target: NDArray[Any], shape: NDArray[Any], room: NDArray[Any], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Choose the corner of a window that has a pixel in its middle half, as far as the image goes.

    >>> draw_corner(np.array([0, 99]), np.array([40, 40]), np.array([100, 100]), np.random.default_rng(0)).tolist()
    [0, 60]
    """
    return np.clip(target - rng.integers(shape // 4, shape - shape // 4), 0, room - shape)
