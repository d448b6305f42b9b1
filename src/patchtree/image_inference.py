"""Inference for image-level tasks: a predictor and an image in, a probability for each class out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchtree.datasets import Pair
from patchtree.errors import InputError
from patchtree.inference import VIEWS, Predictor


def classify(predictor: Predictor, image: ArrayLike, *, flips: bool = False) -> NDArray[np.float32]:
    """Predict the probability of each class of an image, ``(K,)``.

    Args:
        predictor: from ``load(run, task="classify")``.
        image: ``(H, W)`` or ``(H, W, C)``, as `patchtree.io.images.read_image` gives it.
        flips: average over the image, its two mirror images and the half turn.

    Raises:
        InputError: the image's channels or type are not the run's, or `Patcher` cannot split it.
    """
    image = np.asarray(image)
    views = [predictor.in_patches(predictor.split(np.flip(image, axes))) for axes in (VIEWS if flips else VIEWS[:1])]
    mean: NDArray[np.float32] = np.mean(views, axis=0)
    return mean


def classify_all(predictor: Predictor, pairs: Iterable[Pair], *, flips: bool = False) -> Iterator[NDArray[np.float32]]:
    """Give what `classify` does for images of a data set, read one at a time.

    Raises:
        InputError: a file cannot be read, or see `classify`; the file is named.
    """
    for pair in pairs:
        image = pair.read_image()
        try:
            yield classify(predictor, image, flips=flips)
        except InputError as error:
            raise InputError(f"{pair.image}: {error}") from error
