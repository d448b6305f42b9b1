"""Images mirrored and turned by quarters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CV_CHANNELS = 4
# Types that OpenCV knows, by their bytes: pixels are moved, whatever they mean.
_SAME_SIZE = {1: np.uint8, 2: np.uint16, 4: np.int32, 8: np.float64}


def turn(pixels: NDArray[Any], flip: bool, turns: int) -> NDArray[Any]:
    """Mirror pixels ``(h, w, ...)`` left to right if asked, then turn them anticlockwise by quarters.

    >>> turn(np.arange(6).reshape(2, 3), flip=True, turns=1).tolist()
    [[0, 3], [1, 4], [2, 5]]

    Returns:
        An array of its own, in C order.
    """
    bits = _SAME_SIZE.get(pixels.dtype.itemsize)
    known = bits is not None and pixels.ndim <= 3 and 0 < pixels[:1, :1].size <= _CV_CHANNELS
    if not known or not (flip or turns):
        return np.array(np.rot90(pixels[:, ::-1] if flip else pixels, turns), order="C", subok=False)
    import cv2

    # numpy copies a pixel at a time where rows become columns.
    out: Any = np.asarray(pixels).view(bits)
    if flip:
        out = cv2.flip(out, 1)
    if turns:
        out = cv2.rotate(out, (cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)[turns - 1])
    height, width = pixels.shape[1::-1] if turns % 2 else pixels.shape[:2]
    return np.asarray(out).view(pixels.dtype).reshape(height, width, *pixels.shape[2:])
