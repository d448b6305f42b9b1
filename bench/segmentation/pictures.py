"""Data sets of any size from pictures that ship with scikit-image, labelled by published methods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from bench import common
from numpy.typing import NDArray

from patchtree.io.images import write_image, write_mask

# A picture is cut into so many rows and columns, which do not overlap.
PARTS = 3


def vessel_labels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label the vessels of a fundus photograph: 0 none, 1 vessel, ``(H, W, 3)`` -> ``(H, W)``.

    Dark ridges of the green channel (Y. Sato et al., Medical Image Analysis, 1998), cut by Otsu's threshold, but for
    the rim of the photograph.
    """
    from skimage import filters

    find: Any = filters  # which has no types
    lit = find.gaussian(image[..., 0] / 255, sigma=2) > 0.15
    inside = cv2.erode(lit.astype(np.uint8), np.ones((41, 41), np.uint8)) > 0
    ridges = find.sato(image[..., 1] / 255, sigmas=range(2, 7), black_ridges=True)
    return np.asarray(inside & (ridges > find.threshold_otsu(ridges[inside])), np.uint8)


# Texture everywhere, and thin things on an even ground.
PICTURES = {
    "ihc": (common.stain_labels, ("background", "haematoxylin", "DAB")),
    "retina": (vessel_labels, ("background", "vessel")),
}


def make_data(folder: Path, picture: str, side: int) -> Path:
    """Write nine parts of a picture and their labels as a data set of images of `side` x `side` pixels."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for at, (image, labels) in enumerate(parts(picture, side)):
        write_image(folder / "images" / f"{at}.png", image)
        write_mask(folder / "masks" / f"{at}.png", labels)
    ids = {name: at for at, name in enumerate(PICTURES[picture][1])}
    (folder / "dataset.json").write_text(json.dumps({"labels": ids}))
    return folder


def parts(picture: str, side: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Give nine parts of a picture and their labels, of `side` x `side` pixels.

    Whatever the side, they show the same: labels are found once, at the picture's own size.
    """
    label, classes = PICTURES[picture]
    image = common.load_picture(picture)
    labels = label(image)
    step = len(image) // PARTS
    for at in range(PARTS**2):
        top, left = (step * place for place in divmod(at, PARTS))
        part = (slice(top, top + step), slice(left, left + step))
        yield _resize(image[part], side), resize_labels(labels[part], len(classes), side)


def resize_labels(labels: NDArray[np.uint8], classes: int, side: int) -> NDArray[np.uint8]:
    """Resize class ids with smooth borders: each pixel gets the class that has the largest share of it."""
    best, ids = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    for label in range(classes):
        share = _resize((labels == label).astype(np.uint8) * np.uint8(255), side)
        larger = share > best
        best[larger], ids[larger] = share[larger], label
    return ids


def _resize(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    how = cv2.INTER_AREA if side < len(image) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=how), np.uint8)
