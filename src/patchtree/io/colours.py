"""Colours of classes, and a picture of a slide with its classes in them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError

Colour = tuple[int, int, int]

# Told apart also by colour-blind people, on pink and purple tissue as on white glass.
_PALETTE: tuple[Colour, ...] = (
    (0, 158, 115),
    (0, 114, 178),
    (230, 159, 0),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (204, 121, 167),
    (0, 0, 0),
)


def class_colours(labels: Mapping[str, int]) -> dict[str, Colour]:
    """Give each class but that of id 0 a colour, by its id.

    >>> class_colours({"background": 0, "tumour": 1, "stroma": 2})
    {'tumour': (0, 158, 115), 'stroma': (0, 114, 178)}

    Source: M. Okabe and K. Ito, Color universal design, 2008. More than 8 classes use the colours again, darker.
    """
    return {
        name: tuple(value >> ((id_ - 1) // len(_PALETTE)) for value in _PALETTE[(id_ - 1) % len(_PALETTE)])  # type: ignore[misc]
        for name, id_ in labels.items()
        if id_
    }


def overlay(
    picture: NDArray[np.uint8], ids: NDArray[np.integer], colours: Mapping[int, Colour], opacity: float = 0.4
) -> NDArray[np.uint8]:
    """Tint a picture by class; classes without a colour are left as they are.

    >>> overlay(np.full((2, 2, 3), 100, np.uint8), np.array([[0], [1]]), {1: (200, 0, 50)}, 0.5)[:, 0].tolist()
    [[100, 100, 100], [150, 50, 75]]

    Args:
        picture: ``(h, w, 3)`` RGB, such as a slide's thumbnail.
        ids: class ids of the same area, ``(H, W)``, of any size; the nearest is taken.
        colours: of ids.
        opacity: of the tint, 0 to 1.

    Returns:
        ``(h, w, 3)`` RGB.

    Raises:
        InputError: the picture is not 8-bit RGB, or there are no ids.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise InputError(
            f"a picture of shape {picture.shape} and type {picture.dtype} cannot be tinted; give 8-bit RGB"
        )
    if ids.ndim != 2 or ids.size == 0:
        raise InputError(f"class ids of shape {ids.shape} cannot be shown; give (H, W)")
    rows, columns = (
        ((np.arange(shown) + 0.5) * (there / shown)).astype(np.int64)
        for shown, there in zip(picture.shape[:2], ids.shape, strict=True)
    )
    near = ids[np.ix_(rows, columns)]
    out = picture.copy()
    for id_, colour in colours.items():
        where = near == id_
        mixed = out[where] * np.float32(1 - opacity) + np.array(colour, np.float32) * np.float32(opacity)
        out[where] = np.rint(mixed)
    return out
