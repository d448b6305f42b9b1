"""Augmentation of the image before its tree is built: where a window is taken and how, and what its colours become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.detail import Detail, Edges, as_detail

_CV_WARP_CHANNELS = _CV_TURN_CHANNELS = 4
_BLURS = (0.5, 1.5)


@dataclass(frozen=True)
class Window:
    """A part of an image, and how it is turned: a plan that `take` carries out.

    The window is turned by `angle` and enlarged by `scale` about its centre, mirrored left to right if `flip`, then
    given `turns` quarter turns anticlockwise.

    Attributes:
        corner: its upper left pixel in the image.
        shape: ``(h, w)`` in pixels, before the quarter turns.
        angle: in degrees.
        scale: 2 shows half as much of the image twice as large.
        flip: mirror left to right.
        turns: quarter turns, 0 to 3.
    """

    corner: tuple[int, int]
    shape: tuple[int, int]
    angle: float = 0.0
    scale: float = 1.0
    flip: bool = False
    turns: int = 0


def place(window: Window, extent: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Say where the window's corner lies once the whole image is flipped and turned as the window is.

    >>> place(Window((10, 20), (4, 8), turns=1), extent=(100, 50))
    ((22, 10), (50, 100))

    Args:
        window: the plan.
        extent: shape of the whole image in pixels.

    Returns:
        The origin and the extent that `Patcher` takes.
    """
    (y, x), (height, width) = window.corner, window.shape
    rows, columns = extent
    if window.flip:
        x = columns - x - width
    for _ in range(window.turns):
        y, x = columns - x - width, y
        (height, width), (rows, columns) = (width, height), (columns, rows)
    return (y, x), (rows, columns)


def take(image: NDArray[Any], window: Window, ids: bool = False) -> NDArray[Any]:
    """Read a window; only the pixels it needs, so the image may be a memory map.

    Beyond the image's border it is mirrored.

    >>> image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    >>> take(image, Window((0, 0), (2, 2), turns=1)).tolist()
    [[1, 5], [0, 4]]

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, uint8, uint16, int16 or float32.
        window: the plan.
        ids: the image is a mask: take the nearest value instead of interpolating.

    Returns:
        A copy of the image's type, ``(h, w)`` or ``(h, w, C)``; ``(w, h)`` after an odd number of quarter turns.
    """
    if window.angle or window.scale != 1:
        part = _warp(image, window, ids)
    else:
        (y, x), (height, width) = window.corner, window.shape
        part = image[y : y + height, x : x + width]
    return _turn(np.asarray(part), window.flip, window.turns)


def _turn(part: NDArray[Any], flip: bool, turns: int) -> NDArray[Any]:
    """Copy, mirrored left to right if `flip`, then turned by quarters anticlockwise."""
    if part[:1, :1].size > _CV_TURN_CHANNELS or not (flip or turns):
        return np.array(np.rot90(part[:, ::-1] if flip else part, turns), order="C", subok=False)
    import cv2

    # numpy copies a pixel at a time where rows become columns.
    out = np.asarray(cv2.flip(part, 1) if flip else part)
    if turns:
        codes = (cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)
        out = np.asarray(cv2.rotate(out, codes[turns - 1]))
    shape = part.shape[1::-1] if turns % 2 else part.shape[:2]
    return out.reshape(*shape, *part.shape[2:])


def vary_window(window: Window, rng: np.random.Generator) -> Window:
    """Flip and turn at random; in a third of cases also rotate by up to 15 degrees and scale by 0.8 to 1.25.

    >>> vary_window(Window((0, 0), (8, 8)), np.random.default_rng(1)).turns
    2
    """
    flip, turns = bool(rng.integers(2)), int(rng.integers(4))
    angle, scale = rng.uniform(-15, 15), 1.25 ** rng.uniform(-1, 1)
    if rng.random() < 2 / 3:
        angle, scale = 0.0, 1.0
    return replace(window, flip=flip, turns=turns, angle=float(angle), scale=float(scale))


def vary_colours(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Change contrast, brightness, gamma and each channel's strength at random; sometimes saturation, blur, noise.

    A channel ``c``, on a scale of 0 to 1, becomes ``(gain * c + lift) ** gamma``: a channel's own gamma scales its
    optical density, which is what a stronger or weaker stain does.

    >>> image = np.full((8, 8, 3), 128, np.uint8)
    >>> vary_colours(image, np.random.default_rng(0)).dtype
    dtype('uint8')

    Source of jitter in optical density: D. Tellez et al., Whole-slide mitosis detection in H&E breast histology using
    PHH3 as a reference, IEEE TMI 37(9), 2018.

    Args:
        image: ``(h, w)`` or ``(h, w, C)``, uint8, uint16, int16 or float32. 8 bits have the scale of 0 to 255, other
            types that of the image's own minimum to maximum.

    Returns:
        The same shape and type.
    """
    channels = 1 if image.ndim == 2 else image.shape[2]
    gain = np.float32(1.2 ** rng.uniform(-1, 1) * 1.05 ** rng.uniform(-1, 1, channels))
    lift = np.float32(rng.uniform(-0.05, 0.05) + rng.uniform(-0.02, 0.02, channels))
    gamma = np.float32(1.3 ** rng.uniform(-1, 1) * 1.1 ** rng.uniform(-1, 1, channels))
    saturation = 1.4 ** rng.uniform(-1, 1)
    blur, noise = rng.random() < 0.15, rng.random() < 0.15
    sigma, strength = float(rng.uniform(*_BLURS)), float(rng.uniform(0.005, 0.03))

    def curve(values: NDArray[Any]) -> NDArray[Any]:
        bent: NDArray[Any] = np.clip(values * gain + lift, 0, 1) ** gamma
        return bent

    low, high = (0.0, 255.0) if image.dtype == np.uint8 else (float(image.min()), float(image.max()))
    if high <= low:
        return image
    image = _remap(image, curve, low, high)
    if channels == 3 and image.dtype == np.uint8:
        image = _saturate(image, saturation)
    if blur:
        image = _blur(image, sigma)
    return _add_noise(image, strength * (high - low), rng) if noise else image


def vary_detail(
    detail: str | Detail | Callable[[NDArray[Any]], NDArray[Any]], rng: np.random.Generator
) -> str | Detail | Callable[[NDArray[Any]], NDArray[Any]]:
    """Change the thresholds and the blur of `Edges` at random, as the APF paper does; leave other details as they are.

    >>> vary_detail("residual", np.random.default_rng(0))
    'residual'
    """
    factor, blur = 2 ** rng.uniform(-1, 0.25), int(rng.choice([-2, 0, 2]))
    edges = as_detail(detail)
    if not isinstance(edges, Edges):
        return detail
    return replace(edges, low=edges.low * factor, high=edges.high * factor, blur=max(1, edges.blur + blur))


def _warp(image: NDArray[Any], window: Window, ids: bool) -> NDArray[Any]:
    import cv2

    height, width = window.shape
    # From the window's pixels to the image's, both measured from the window's centre; pixel i has its centre at i.
    turn = np.deg2rad(window.angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / window.scale
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    centre = middle + window.corner[::-1]
    reach = np.abs(matrix) @ middle + 2
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach) + 1, image.shape[1::-1]).astype(int)
    part = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]])
    shift = centre - low - matrix @ middle
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_NEAREST if ids else cv2.INTER_LINEAR)
    planes = np.atleast_3d(part)
    out = np.empty((height, width, planes.shape[2]), part.dtype)
    for first in range(0, planes.shape[2], _CV_WARP_CHANNELS):
        few = np.ascontiguousarray(planes[..., first : first + _CV_WARP_CHANNELS])
        warped = cv2.warpAffine(
            few, np.column_stack([matrix, shift]), (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101
        )
        out[..., first : first + _CV_WARP_CHANNELS] = warped.reshape(height, width, -1)
    return out.reshape(height, width, *image.shape[2:])


def _remap(image: NDArray[Any], curve: Callable[[NDArray[Any]], NDArray[Any]], low: float, high: float) -> NDArray[Any]:
    """Apply a curve a channel, given on a scale of 0 to 1."""
    if image.dtype == np.uint8:
        import cv2

        grey = np.arange(256, dtype=np.float32)[:, None] / 255
        table = np.rint(255 * curve(grey)).astype(np.uint8)
        return cv2.LUT(image, table.reshape(1, 256, -1)).reshape(image.shape)
    planes: NDArray[np.float32] = np.atleast_3d(image).astype(np.float32)
    planes = ((planes - low) / (high - low)).astype(np.float32, copy=False)
    return _as_type((curve(planes) * (high - low) + low).reshape(image.shape), image.dtype)


def _saturate(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Move each pixel of an RGB image away from its grey, or towards it."""
    import cv2

    grey = np.array([0.299, 0.587, 0.114])
    matrix = factor * np.eye(3) + (1 - factor) * grey
    return cv2.transform(image, matrix)  # type: ignore[return-value]


def _blur(image: NDArray[Any], sigma: float) -> NDArray[Any]:
    import cv2

    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def _add_noise(image: NDArray[Any], sigma: float, rng: np.random.Generator) -> NDArray[Any]:
    """Add Gaussian noise of 256 values, one a random byte: far quicker than drawing it exactly."""
    import cv2

    which = rng.integers(256, size=image.shape, dtype=np.uint8)
    values = np.float32(sigma) * _normal()
    if image.dtype == np.uint8:
        noise = cv2.LUT(which, np.rint(values).astype(np.int16)[None])
        return np.asarray(cv2.add(image, noise, dtype=cv2.CV_8U)).reshape(image.shape)
    return _as_type(image + values[which], image.dtype)


@cache
def _normal() -> NDArray[np.float32]:
    """Give the 256 means of equally likely parts of the normal distribution, nearly."""
    return np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)


def _as_type(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    out: NDArray[Any] = values.astype(dtype, copy=False)
    return out
