"""Evaluation on whole slides: what is predicted for one, compared with its labels part by part."""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from patchtree.datasets import Pair
from patchtree.ids import count_pairs
from patchtree.io.masks import read_ids
from patchtree.io.slides import open_slide
from patchtree.io.slides.through_tifffile import TiffSlide
from patchtree.slide_inference import InPatches, predict_slide
from patchtree.slide_sets import open_labels
from patchtree.slide_sources import SAME_SIZE, mean_mpp

# The side in pixels of what is compared at once.
_SIDE = 2048


def evaluate_slide(predictor: InPatches, pair: Pair) -> NDArray[np.float64]:
    """Predict a slide, and count its pixels of every true class that were given every class.

    The prediction is what `predict_slide` writes, all of the slide is compared, and no more than a part of it is held.

    Args:
        predictor: such as `patchtree.inference.load` gives.
        pair: a slide and its labels.

    Returns:
        ``(K, K)``, the true class first; ignored pixels are counted nowhere.

    Raises:
        InputError: a file cannot be read, or they fit neither each other nor the run.
    """
    labels = predictor.config.labels
    table = np.zeros((len(labels), len(labels)), np.int64)
    with TemporaryDirectory() as folder, open_slide(pair.image) as slide:
        trained, here = predictor.config.mpp, mean_mpp(slide.mpp)
        if trained and here and max(trained, here) > SAME_SIZE * min(trained, here):
            warnings.warn(
                f"{pair.image}: has pixels of {here:.4g} µm, the run was trained on {trained:.4g} µm; what it knows "
                "looks larger or smaller there",
                stacklevel=2,
            )
        known = open_labels(pair.mask, slide.shape, labels, predictor.config.ignore, legend=pair.legend)
        out = Path(folder, "ids.tif")
        predict_slide(predictor, slide, out)
        found = TiffSlide(str(out))
        try:
            height, width = slide.shape
            for y, x in product(range(0, height, _SIDE), range(0, width, _SIDE)):
                box = y, x, min(y + _SIDE, height), min(x + _SIDE, width)
                true, given = known.ids(box), read_ids(found, 0, box)
                if known.ignore is not None:
                    counted = true != known.ignore
                    true, given = true[counted], given[counted]
                table += count_pairs(true, given, len(labels))
        finally:
            found.close()
            known.close()
    return table.astype(np.float64)
