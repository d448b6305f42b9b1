"""Augmentation of the image before its tree is built: where a window is taken and how, and what its colours become."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.detail import Detail, Edges, as_detail
from patchtree.errors import InputError
from patchtree.patcher import Patches
from patchtree.pyramid import by_channels
from patchtree.turns import turn

_CV_WARP_CHANNELS = 4
# Sides from which on OpenCV 4 turns no image.
_CV4_SIDE = 32767
# Standard deviations in pixels; what is less than the last changes next to nothing.
_BLURS, _LEAST_BLUR = (0.5, 1.5), 0.3


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

    @classmethod
    def of(cls, corner: Sequence[int], shape: Sequence[int]) -> Window:
        """Make a window that is not turned.

        >>> Window.of([10, 20], shape=[4, 8])
        Window(corner=(10, 20), shape=(4, 8), angle=0.0, scale=1.0, flip=False, turns=0)
        """
        (y, x), (height, width) = corner, shape
        return cls((y, x), (height, width))


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


def to_image(window: Window) -> NDArray[np.float64]:
    """Give the matrix ``(2, 3)`` that takes ``(x, y, 1)`` in what `take` gives to ``(x, y)`` in the image.

    Both are in pixels; the corner of an image is 0, the centre of its first pixel 0.5.

    >>> to_image(Window((10, 20), (4, 8), turns=2)).tolist()
    [[-1.0, 0.0, 28.0], [0.0, -1.0, 14.0]]
    """
    height, width = window.shape
    turned = np.eye(3)
    rows, columns = (width, height) if window.turns % 2 else (height, width)
    for _ in range(window.turns):
        # What lies at (x, y) lay at (rows - y, x) before a quarter turn anticlockwise.
        turned = np.array([[0.0, -1.0, rows], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]) @ turned
        rows, columns = columns, rows
    if window.flip:
        turned = np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ turned
    matrix, middle = _spin(window), np.array([width, height]) / 2
    shift = middle + window.corner[::-1] - matrix @ middle
    return np.asarray(np.column_stack([matrix, shift]) @ turned)


def _spin(window: Window) -> NDArray[np.float64]:
    """Give the matrix ``(2, 2)`` from the window's pixels to the image's, both from the window's centre."""
    angle = np.deg2rad(window.angle)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / window.scale


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
    return turn(np.asarray(part), window.flip, window.turns)


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


def vary_colours(image: NDArray[Any], rng: np.random.Generator, ndim: int = 2) -> NDArray[Any]:
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
        rng: of the sample.
        ndim: 3 for a volume, with one more ``d`` in front, whose slices are all changed in the same way.

    Returns:
        The same shape and type.
    """
    slices = image if ndim == 3 else image[None]
    colours = Colours.draw(1 if slices.ndim == 3 else slices.shape[3], rng)
    flat = slices.reshape(-1, *slices.shape[2:])
    varied = colours.apply(flat).reshape(slices.shape)
    if colours.blur:
        varied = np.stack([_blur(one, colours.blur) for one in varied])
    if colours.noise:
        varied = _add_noise(varied.reshape(flat.shape), colours.noise * _range(flat), rng)
    return varied.reshape(image.shape)


def vary_patches(patches: Patches, rng: np.random.Generator) -> Patches:
    """Do to the patches of an image, all in the same way, what `vary_colours` does to its far more pixels.

    Blur and noise are those of the image's pixels: half as much a level. Blur stays within a patch. What is not 8-bit
    has the scale of the patches' own minimum to maximum.

    >>> from patchtree.patcher import Patcher
    >>> patches = Patcher(budget=4, detail="variance")(np.eye(32, dtype=np.uint8))
    >>> vary_patches(patches, np.random.default_rng(0)).pixels.shape
    (4, 16, 16)
    """
    pixels, level = patches.pixels, patches.tree.level
    colours = Colours.draw(1 if pixels.ndim == 3 else pixels.shape[3], rng)
    varied = colours.apply(pixels.reshape(-1, *pixels.shape[2:])).reshape(pixels.shape)
    noise = colours.noise * _range(pixels) if colours.noise else 0.0
    for at in np.unique(level) if colours.blur or noise else ():
        here, weaker = level == at, 0.5 ** int(at)
        some = varied[here]
        if colours.blur * weaker > _LEAST_BLUR:
            some = _blur_each(some, colours.blur * weaker)
        if noise:
            some = _add_noise(some.reshape(-1, *some.shape[2:]), noise * weaker, rng).reshape(some.shape)
        varied[here] = some
    return replace(patches, pixels=varied)


@dataclass(frozen=True)
class Colours:
    """How colours are changed, drawn at random: see `vary_colours`.

    Attributes:
        gain: of each channel.
        lift: of each channel.
        gamma: of each channel.
        saturation: 1 leaves it.
        blur: standard deviation in pixels; 0 for none.
        noise: standard deviation, as a share of the range of values; 0 for none.
    """

    gain: NDArray[np.float64]
    lift: NDArray[np.float64]
    gamma: NDArray[np.float64]
    saturation: float
    blur: float
    noise: float

    @classmethod
    def draw(cls, channels: int, rng: np.random.Generator) -> Colours:
        """Draw what is done to an image.

        >>> Colours.draw(3, np.random.default_rng(0)).gain.shape
        (3,)
        """
        gain = 1.2 ** rng.uniform(-1, 1) * 1.05 ** rng.uniform(-1, 1, channels)
        lift = rng.uniform(-0.05, 0.05) + rng.uniform(-0.02, 0.02, channels)
        gamma = 1.3 ** rng.uniform(-1, 1) * 1.1 ** rng.uniform(-1, 1, channels)
        saturation = 1.4 ** rng.uniform(-1, 1)
        blurred, noisy = rng.random() < 0.15, rng.random() < 0.15
        blur, noise = float(rng.uniform(*_BLURS)), float(rng.uniform(0.005, 0.03))
        return cls(gain, lift, gamma, saturation, blur * blurred, noise * noisy)

    def apply(self, image: NDArray[Any]) -> NDArray[Any]:
        """Change each pixel by itself, ``(h, w)`` or ``(h, w, C)``; neither blur nor noise.

        >>> image = np.full((2, 2), 7, np.uint8)
        >>> bool((Colours.draw(1, np.random.default_rng(0)).apply(image) == image).all())
        False
        """
        low, high = _limits(image)
        if high <= low:
            return image.copy()

        def curve(values: NDArray[Any]) -> NDArray[Any]:
            gain, lift, gamma = (of.astype(np.float32) for of in (self.gain, self.lift, self.gamma))
            bent: NDArray[Any] = np.clip(values * gain + lift, 0, 1) ** gamma
            return bent

        image = _remap(image, curve, low, high)
        three = image.ndim == 3 and image.shape[2] == 3
        return _saturate(image, self.saturation) if three and image.dtype == np.uint8 else image


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
    matrix = _spin(window)
    # Here, pixel i has its centre at i.
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    centre = middle + window.corner[::-1]
    reach = np.abs(matrix) @ middle + 2
    low, high = np.floor(centre - reach).astype(int), np.ceil(centre + reach).astype(int) + 1
    # What lies inside needs no mirror, which takes half as long again.
    inside = (low >= 0).all() and (high <= image.shape[1::-1]).all()
    border = cv2.BORDER_CONSTANT if inside else cv2.BORDER_REFLECT_101
    low, high = np.maximum(low, 0), np.minimum(high, image.shape[1::-1])
    part = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]])
    if max(part.shape[:2]) >= _CV4_SIDE and cv2.__version__.startswith("4."):
        raise InputError(
            f"OpenCV {cv2.__version__} turns no images of {max(part.shape[:2]):,} pixels a side; install OpenCV 5"
        )
    shift = centre - low - matrix @ middle
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_NEAREST if ids else cv2.INTER_LINEAR)
    affine = np.column_stack([matrix, shift])

    def warp(planes: NDArray[Any], _: slice) -> NDArray[Any]:
        return cv2.warpAffine(planes, affine, (width, height), flags=flags, borderMode=border)

    return by_channels(np.atleast_3d(part), warp, _CV_WARP_CHANNELS).reshape(height, width, *image.shape[2:])


def _remap(image: NDArray[Any], curve: Callable[[NDArray[Any]], NDArray[Any]], low: float, high: float) -> NDArray[Any]:
    """Apply a curve a channel, given on a scale of 0 to 1."""
    if image.dtype == np.uint8:
        import cv2

        grey = np.arange(256, dtype=np.float32)[:, None] / 255
        table = np.rint(255 * curve(grey)).astype(np.uint8).reshape(1, 256, -1)

        def look_up(planes: NDArray[Any], few: slice) -> NDArray[Any]:
            return cv2.LUT(planes, np.ascontiguousarray(table[..., few]))

        return by_channels(np.atleast_3d(image), look_up).reshape(image.shape)
    planes: NDArray[np.float32] = np.atleast_3d(image).astype(np.float32)
    planes = ((planes - low) / (high - low)).astype(np.float32, copy=False)
    return _as_type((curve(planes) * (high - low) + low).reshape(image.shape), image.dtype)


def _saturate(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Move each pixel of an RGB image away from its grey, or towards it."""
    import cv2

    grey = np.array([0.299, 0.587, 0.114])
    matrix = factor * np.eye(3) + (1 - factor) * grey
    return cv2.transform(image, matrix)  # type: ignore[return-value]


def _limits(image: NDArray[Any]) -> tuple[float, float]:
    """Give what is 0 and 1 to `Colours`."""
    return (0.0, 255.0) if image.dtype == np.uint8 else (float(image.min()), float(image.max()))


def _range(image: NDArray[Any]) -> float:
    low, high = _limits(image)
    return high - low


def _blur(image: NDArray[Any], sigma: float) -> NDArray[Any]:
    import cv2

    planes = np.atleast_3d(image)
    return by_channels(planes, lambda few, _: cv2.GaussianBlur(few, (0, 0), sigma)).reshape(image.shape)


def _blur_each(patches: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Blur patches ``(N, p, p[, C])`` that lie apart: each is surrounded by its own border."""
    margin = math.ceil(4 * sigma)
    wide = np.pad(patches, [(0, 0), (margin, margin), (margin, margin), (0, 0)][: patches.ndim], mode="edge")
    blurred = _blur(wide.reshape(-1, *wide.shape[2:]), sigma).reshape(wide.shape)
    return np.ascontiguousarray(blurred[:, margin:-margin, margin:-margin])


def _add_noise(image: NDArray[Any], sigma: float, rng: np.random.Generator) -> NDArray[Any]:
    """Add Gaussian noise of 256 values, one a random byte: far quicker than drawing it exactly."""
    import cv2

    which = rng.integers(256, size=image.shape, dtype=np.uint8)
    values = np.float32(sigma) * _normal()
    if image.dtype == np.uint8:
        noise = cv2.LUT(which.reshape(len(which), -1), np.rint(values).astype(np.int16)[None])
        lines = np.ascontiguousarray(image).reshape(len(image), -1)
        return np.asarray(cv2.add(lines, noise, dtype=cv2.CV_8U)).reshape(image.shape)
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
