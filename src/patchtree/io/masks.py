"""Masks that are slides: class ids, read box by box."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError

if TYPE_CHECKING:
    from patchtree.io.slides import Slide

_PIXELS = 1 << 25  # that are read in one go


def bands(mask: Slide, level: int = 0) -> Iterator[tuple[int, int]]:
    """Cut a level into bands of whole rows of tiles, of some 33 million pixels; gives the first row and the end."""
    height, width = mask.levels[level].shape
    step = mask.levels[level].tile[0]
    step *= max(1, _PIXELS // (step * width))
    for top in range(0, height, step):
        yield top, min(top + step, height)


def read_ids(mask: Slide, level: int, box: tuple[int, int, int, int]) -> NDArray[Any]:
    """Read class ids, ``(y1 - y0, x1 - x0)``, in one channel or in equal ones.

    Args:
        mask: class ids.
        level: of its pyramid.
        box: y0, x0, y1, x1 in pixels of the level.

    Raises:
        InputError: the mask holds no whole numbers, channels that differ, or is damaged there.
    """
    if mask.dtype.kind not in "iu":
        raise InputError(f"{mask.path}: a mask must hold class ids, but its type is {mask.dtype}; save whole numbers")
    ids = mask.read(level, *box)
    if any(not np.array_equal(ids[..., 0], ids[..., channel]) for channel in range(1, ids.shape[2])):
        raise InputError(f"{mask.path}: a mask must hold class ids in one channel, but its channels differ; save ids")
    return ids[..., 0]
