"""Show: an image with the leaves of its tree drawn on it, sized for a screen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.tree import Tree

# Green is rare in stained tissue and in the fundus; this one stands out from white glass and from a black frame alike.
_LINE = np.array((0, 176, 80), np.float32)
# Leaves at least this large on the screen get opaque lines; smaller ones fade, so that lines never hide more than an
# eighth of what they frame.
_OPAQUE_SIDE = 16
# The largest whole factor that a small image is enlarged by.
_ENLARGE = 8


def show(image: NDArray[Any], tree: Tree, max_side: int = 1600) -> NDArray[np.uint8]:
    """Draw the outlines of the leaves on an image.

    Large images are shrunk by area first, so that lines stay one pixel wide; small ones are enlarged by a whole factor.
    Images that are not 8-bit are scaled so that their 0.5 and 99.5 percentiles become black and white. The first three
    channels are shown as red, green and blue, fewer than three as the first in grey. Of a volume the middle slice is
    shown.

    >>> image = np.zeros((4000, 6000), np.uint16)
    >>> show(image, Tree.uniform(image.shape, 16, level=4)).shape
    (1067, 1600, 3)

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, with a 3-D tree ``(D, H, W)`` or ``(D, H, W, C)``, of any real type.
        tree: a tree of the image's shape.
        max_side: the longer side of a large picture, in pixels.

    Returns:
        ``(h, w, 3)`` RGB, ``max(h, w) <= max_side`` (a small image's factor is the largest that keeps this, up to 8).

    Raises:
        InputError: the tree was made for another shape, or `max_side` is below 1.
    """
    if image.shape[: tree.ndim] != tree.shape or image.ndim > tree.ndim + 1:
        raise InputError(f"an image of shape {image.shape} does not fit a tree made for {tree.shape}")
    if max_side < 1:
        raise InputError(f"max_side {max_side} is not possible; give at least 1 pixel")
    boxes, level = tree.boxes(), tree.level
    if tree.ndim == 3:
        middle = len(image) // 2
        image = image[middle]
        crossed = (boxes[:, 0] <= middle) & (middle < boxes[:, 3])
        boxes, level = boxes[crossed][:, (1, 2, 4, 5)], level[crossed]
    return _draw(image, boxes, tree.patch_size << level.astype(np.int64), image.shape[:2], max_side)


def show_small(picture: NDArray[Any], tree: Tree, max_side: int = 1600) -> NDArray[np.uint8]:
    """Draw the outlines of the leaves on a small picture of the whole image, such as a slide's thumbnail.

    >>> show_small(np.zeros((400, 600)), Tree.uniform((40000, 60000), 16, level=4)).shape
    (800, 1200, 3)

    Args:
        picture: ``(h, w)`` or ``(h, w, C)``, shown as `show` does.
        tree: a tree of the whole image, in 2-D.
        max_side: as for `show`.

    Returns:
        As from `show`.
    """
    return _draw(picture, tree.boxes(), tree.sizes(), tree.shape, max_side)


def as_rgb(image: NDArray[Any], max_side: int = 1600) -> NDArray[np.uint8]:
    """Make a picture of any image, scaled as `show` does, without leaves.

    >>> as_rgb(np.zeros((4000, 6000, 5), np.uint16)).shape
    (1067, 1600, 3)

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, of any real type.
        max_side: as for `show`.

    Returns:
        As from `show`.
    """
    return np.rint(_eight_bit(_resize(_first_channels(image), max_side))).astype(np.uint8)


def _draw(
    image: NDArray[Any],
    boxes: NDArray[np.int64],
    sizes: NDArray[np.int64],
    shape: tuple[int, ...],
    max_side: int,
) -> NDArray[np.uint8]:
    """Draw leaves, given in pixels of an image of a shape, on a picture of that image."""
    picture = _resize(_first_channels(image), max_side)
    scale = (picture.shape[0] / shape[0], picture.shape[1] / shape[1])
    cover = _outlines(boxes, sizes, shape, picture.shape[:2], scale)
    colours = _eight_bit(picture)
    share = cover[..., None] * np.float32(1 / 255)
    return np.rint(colours + share * (_LINE - colours)).astype(np.uint8)


def _first_channels(image: NDArray[Any]) -> NDArray[Any]:
    """Give ``(H, W, 3)`` or ``(H, W, 1)``."""
    if image.ndim == 2:
        return image[..., None]
    return image[..., :3] if image.shape[2] >= 3 else image[..., :1]


def _resize(image: NDArray[Any], max_side: int) -> NDArray[Any]:
    """Shrink by area to ``max_side``, or enlarge by a whole factor that stays below it."""
    import cv2

    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= max_side:
        factor = min(_ENLARGE, max_side // longer)
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    size = tuple(max(1, round(side * max_side / longer)) for side in (width, height))
    if image.dtype == np.bool_:
        image = image.view(np.uint8) * np.uint8(255)
    elif image.dtype not in (np.uint8, np.uint16, np.int16, np.float32):
        image = image.astype(np.float32)
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1)


def _eight_bit(picture: NDArray[Any]) -> NDArray[np.float32]:
    """Scale to 0 to 255, ``(h, w, 3)``, all channels alike."""
    if picture.dtype == np.uint8:
        values = picture.astype(np.float32)
    elif picture.dtype == np.bool_:
        values = picture.astype(np.float32) * np.float32(255)
    else:
        low, high = np.percentile(picture, (0.5, 99.5))
        # Clipped first: a stray float may be larger than any scaling leaves room for.
        inside = np.clip(picture.astype(np.float32), np.float32(low), np.float32(high))
        values = (inside - np.float32(low)) * np.float32(255 / (high - low) if high > low else 0)
    return np.broadcast_to(np.clip(values, 0, 255), (*picture.shape[:2], 3))


def _outlines(
    boxes: NDArray[np.int64],
    sizes: NDArray[np.int64],
    shape: tuple[int, ...],
    canvas: tuple[int, ...],
    scale: tuple[float, float],
) -> NDArray[np.uint8]:
    """Draw how opaque the line in each pixel is, 0 to 255; where lines of several leaves meet, the largest leaf's."""
    import cv2

    cover = np.zeros(canvas, np.uint8)
    outside = 2 * max(canvas)
    corners = []
    for axis in (0, 1):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        # The picture's own border gets no line.
        corners.append(np.where(low <= 0, -outside, np.rint(low * scale[axis])))
        corners.append(np.where(high >= shape[axis], outside, np.rint(high * scale[axis])))
    top, bottom, left, right = (corner.astype(np.int32) for corner in corners)
    outlines = np.stack([left, top, right, top, right, bottom, left, bottom], axis=1).reshape(-1, 4, 1, 2)
    for size in np.unique(sizes):
        opacity = min(1.0, size * max(scale) / _OPAQUE_SIDE)
        cv2.polylines(cover, list(outlines[sizes == size]), isClosed=True, color=round(255 * opacity))
    return cover
