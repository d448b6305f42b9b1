"""Detail: how much there is to resolve in each cell, as a pyramid of grids.

A detail pyramid is a list of float64 arrays, one a level from 1 up: element ``i`` holds the detail of the cells of
level ``i + 1``. It is *monotone*: no cell has less detail than one of its children.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from patchtree.block_sums import count_mask, count_pixels, fold, sum_squares, sum_up, sum_values
from patchtree.errors import InputError
from patchtree.noise import estimate_noise, sample_evenly
from patchtree.pyramid import Level, pyramid
from patchtree.tree import grid_shape, root_level

DetailPyramid: TypeAlias = list[NDArray[np.float64]]

_STRIP_ROWS = 64
# Enough for a percentile, and quick.
_SAMPLES = 1 << 18
# What remains of a difference of equal sums in float64.
_ROUNDING = 1e-11


class Detail(Protocol):
    """What says how much there is to resolve in each cell."""

    def measure(self, image: NDArray[Any], patch_size: int, levels: int) -> DetailPyramid:
        """Measure an image, ``(H, W, C)`` or ``(D, H, W, C)``, for the cells of levels 1 to ``levels``."""
        ...


@dataclass(frozen=True)
class Edges:
    """The number of edge pixels: grey, Gaussian blur, Canny, as in the APF paper.

    Three channels are turned to grey as RGB; with any other number the edges of all channels are joined. Images that
    are not 8-bit are first scaled so that their 0.5 and 99.5 percentiles become 0 and 255. Volumes are measured slice
    by slice along their first axis.

    >>> image = np.zeros((64, 64, 1), np.uint8)
    >>> image[:20] = 255
    >>> [level.tolist() for level in Edges().measure(image, patch_size=16, levels=2)]
    [[[32.0, 32.0], [0.0, 0.0]], [[64.0]]]

    Source: E. Zhang et al., Adaptive Patching for High-resolution Image Segmentation with Transformers, SC 2024;
    J. Canny, A Computational Approach to Edge Detection, PAMI 8(6), 1986.

    Attributes:
        low: gradient above which a pixel goes on an edge, in grey levels (of 255).
        high: gradient above which a pixel starts an edge.
        blur: side of the Gaussian kernel in pixels, odd; 1 does not blur.
    """

    low: float = 100
    high: float = 200
    blur: int = 3

    def __post_init__(self) -> None:
        if self.blur < 1 or self.blur % 2 == 0:
            raise InputError(f"blur {self.blur} is not possible; give an odd number of pixels")
        if not 0 <= self.low <= self.high:
            raise InputError(f"thresholds {self.low} and {self.high} are not possible; give 0 <= low <= high")

    def measure(self, image: NDArray[Any], patch_size: int, levels: int) -> DetailPyramid:
        """Count the edge pixels in each cell."""
        if not levels:
            return []
        image = _eight_bit(image)
        if image.ndim == 4:
            side = 2 * patch_size
            counts = np.stack([count_mask(self.find(plane), side) for plane in image])
            return sum_up(np.add.reduceat(counts, np.arange(0, len(counts), side), axis=0), levels)
        return sum_up(count_mask(self.find(image), 2 * patch_size), levels)

    def find(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Find the edges of a plane, ``(H, W, C)`` uint8 -> ``(H, W)`` uint8, 255 on edges and 0 elsewhere."""
        import cv2

        if image.shape[2] in (1, 3):
            return cv2.Canny(self._smooth(image), self.low, self.high)  # type: ignore[return-value]
        edges = np.zeros(image.shape[:2], np.uint8)
        for channel in range(image.shape[2]):
            plane = np.ascontiguousarray(image[:, :, channel : channel + 1])
            np.maximum(edges, cv2.Canny(self._smooth(plane), self.low, self.high), out=edges)
        return edges

    def _smooth(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn to grey and blur, in strips that stay in the cache: twice as fast as whole images."""
        import cv2

        height = len(image)
        halo = self.blur // 2
        out = np.empty(image.shape[:2], np.uint8)
        # The border of a strip at the image's border is mirrored by OpenCV, which needs that many rows.
        rows = max(_STRIP_ROWS, 4 * self.blur)
        for top in range(0, height, rows):
            low, high = max(0, top - halo), min(height, top + rows + halo)
            if height - high <= halo:
                high = height
            strip = image[low:high]
            grey = cv2.cvtColor(strip, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else strip[:, :, 0]
            end = min(height, top + rows)
            out[top:end] = cv2.GaussianBlur(grey, (self.blur, self.blur), 0)[top - low : end - low]
        return out


@dataclass(frozen=True)
class Residual:
    """The squared error of showing a cell at ``p x p``, above the image's noise.

    It is the energy of the orthonormal Haar coefficients of all finer pyramid levels inside the cell. By Parseval each
    level's energy is a difference of two sums of squares, so no coefficient is computed. Noise of standard deviation s
    puts ``s**2`` into each coefficient; that much for all n coefficients of a cell at a level, and three standard
    deviations of it (``s**2 * sqrt(2 n)`` each), is taken off before levels are summed. Channels are summed.

    >>> image = np.zeros((8, 8, 1), np.uint8)
    >>> image[0, 0] = 4
    >>> [level.tolist() for level in Residual().measure(image, patch_size=2, levels=2)]
    [[[12.0, 0.0], [0.0, 0.0]], [[15.0]]]

    Source of the noise estimate, the median absolute finest diagonal coefficient over 0.6745: D. L. Donoho and
    I. M. Johnstone, Ideal spatial adaptation by wavelet shrinkage, Biometrika 81(3), 1994.

    Attributes:
        noise: standard deviation of the noise in the image's own units; None estimates it, for each channel.
    """

    noise: float | None = None

    def __post_init__(self) -> None:
        if self.noise is not None and not 0 <= self.noise < np.inf:
            raise InputError(f"noise {self.noise} is not possible; give a standard deviation, 0 or more")

    def measure(self, image: NDArray[Any], patch_size: int, levels: int) -> DetailPyramid:
        """Measure the squared error of each cell."""
        if not levels:
            return []
        shape, channels = image.shape[:-1], image.shape[-1]
        variance = np.sum(estimate_noise(image) ** 2) if self.noise is None else channels * self.noise**2
        return measure_residual(pyramid(image, levels), patch_size, shape, float(variance))


def measure_residual(
    pictures: Iterable[Level],
    patch_size: int,
    shape: tuple[int, ...],
    variance: float,
    halved: int = 0,
    known: Sequence[NDArray[np.float64]] = (),
) -> DetailPyramid:
    """Measure `Residual` from the levels of a pyramid, of which the first may be halved already.

    >>> image = np.kron(np.eye(2), np.full((4, 4), 3.0))[..., None]
    >>> measure_residual(pyramid(image, 3), patch_size=2, shape=(8, 8), variance=0)[-1].tolist()
    [[144.0]]

    Args:
        pictures: an image's levels, each half the one before.
        patch_size: pixels on a side of a patch.
        shape: the image's shape.
        variance: that of its noise, summed over channels.
        halved: how many times the first picture was halved.
        known: for the cells of levels 1 to ``halved``, the squared error of showing their level by the next, noise
            included; without them, what these levels hold is not counted.

    Returns:
        The details of the cells of level 1 and up if those are known, else of level ``halved + 1`` and up.
    """
    details: DetailPyramid = []
    coefficients = (2 ** len(shape) - 1) * patch_size ** len(shape)

    def add(gain: NDArray[np.float64], level: int, channels: int) -> None:
        side = patch_size << level
        count = coefficients * count_pixels(shape, side) / side ** len(shape)
        gain = np.maximum(gain - variance * (count + 3 * np.sqrt(2 * count / channels)), 0)
        details.append(gain + fold(details[-1]) if details else gain)

    finer: NDArray[np.float64] | None = None
    for level, picture in enumerate(pictures, start=halved):
        channels = picture.values.shape[-1]
        shown = sum_squares(picture.values, patch_size, shape, level) * picture.scale**2
        if finer is None:
            for below, gain in enumerate(known, start=1):
                add(gain, below, channels)
        else:
            whole = fold(finer)
            gain = whole - shown
            gain[gain < _ROUNDING * whole] = 0
            add(gain, level, channels)
        finer = shown
    return details


def hidden_energy(pictures: Sequence[Level], shape: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Give the squared error of showing each level of an image by the next, in every pixel of the last.

    >>> image = np.kron(np.eye(2), np.array([[0.0, 4.0], [0.0, 4.0]]))[..., None]
    >>> [energy.tolist() for energy in hidden_energy(list(pyramid(image, 2)), (4, 4))]
    [[[32.0]], [[16.0]]]

    Args:
        pictures: an image's levels, none left out.
        shape: the image's shape.
    """
    last = len(pictures) - 1
    shown = [
        sum_squares(picture.values, 1 << last - level, shape, level) * picture.scale**2
        for level, picture in enumerate(pictures)
    ]
    return [np.maximum(finer - coarser, 0) for finer, coarser in pairwise(shown)]


@dataclass(frozen=True)
class Variance:
    """The squared error of showing a cell as its mean: its variance times its number of pixels. Channels are summed.

    >>> image = np.zeros((4, 4, 1), np.uint8)
    >>> image[:2] = 2
    >>> [level.tolist() for level in Variance().measure(image, patch_size=1, levels=2)]
    [[[0.0, 0.0], [0.0, 0.0]], [[16.0]]]
    """

    def measure(self, image: NDArray[Any], patch_size: int, levels: int) -> DetailPyramid:
        """Measure the squared deviation from its mean in each cell."""
        details: DetailPyramid = []
        shape, side = image.shape[:-1], 2 * patch_size
        if not levels:
            return details
        squares = sum_squares(image, side, shape, 0)
        sums = np.stack([sum_values(image[..., channel], side) for channel in range(image.shape[-1])], axis=-1)
        for level in range(levels):
            if level:
                squares = fold(squares)
                sums = fold(sums, ndim=len(shape))
            pixels = count_pixels(shape, side << level)
            spread = squares - (sums**2).sum(-1) / pixels
            spread[spread < _ROUNDING * squares] = 0
            # Exact sums are monotone; rounded ones are made so.
            details.append(np.maximum(spread, fold(details[-1])) if details else spread)
        return details


@dataclass(frozen=True)
class PixelMap:
    """The sum over each cell of a non-negative map that a function computes from the image.

    >>> brightness = PixelMap(lambda image: image)
    >>> [level.tolist() for level in brightness.measure(np.ones((4, 4, 1)), patch_size=1, levels=2)]
    [[[4.0, 4.0], [4.0, 4.0]], [[16.0]]]

    Attributes:
        function: takes the image, ``(H, W)`` if it has one channel, else ``(H, W, C)``, or with a leading ``D``, and
            returns the map, of the image's spatial shape.
    """

    function: Callable[[NDArray[Any]], NDArray[Any]]

    def measure(self, image: NDArray[Any], patch_size: int, levels: int) -> DetailPyramid:
        """Sum the map in each cell.

        Raises:
            InputError: the map has another shape than the image, or a negative or non-finite value.
        """
        values = np.asarray(self.function(image[..., 0] if image.shape[-1] == 1 else image))
        if values.shape != image.shape[:-1]:
            raise InputError(
                f"the detail function gave shape {values.shape} for an image of {image.shape[:-1]} pixels; "
                "it must give one number a pixel"
            )
        if not np.isfinite(values).all() or values.min() < 0:
            raise InputError("the detail function gave a negative or non-finite value; detail must be at least 0")
        return sum_up(sum_values(values, 2 * patch_size), levels) if levels else []


DETAILS: dict[str, Callable[[], Detail]] = {"edges": Edges, "residual": Residual, "variance": Variance}


def as_detail(detail: str | Detail | Callable[[NDArray[Any]], NDArray[Any]]) -> Detail:
    """Turn a name or a function into a detail; a detail is returned as it is.

    >>> as_detail("edges")
    Edges(low=100, high=200, blur=3)

    Raises:
        InputError: the name is not known.
    """
    if isinstance(detail, str):
        if detail not in DETAILS:
            raise InputError(f"detail {detail!r} is not known; choose one of {', '.join(DETAILS)}")
        return DETAILS[detail]()
    if isinstance(detail, type):
        raise InputError(f"detail {detail.__name__} is a class; give one of it, {detail.__name__}()")
    if hasattr(detail, "measure"):
        return detail
    if callable(detail):
        return PixelMap(detail)
    raise InputError(f"detail {detail!r} is neither a name nor a function; choose one of {', '.join(DETAILS)}")


def measure(
    image: NDArray[Any],
    detail: str | Detail | Callable[[NDArray[Any]], NDArray[Any]],
    patch_size: int,
    max_level: int | None = None,
    ndim: int = 2,
) -> DetailPyramid:
    """Measure the detail of every cell that could be split.

    >>> [level.shape for level in measure(np.zeros((100, 50)), "edges", patch_size=16)]
    [(4, 2), (2, 1), (1, 1)]

    Args:
        image: ``(H, W)`` or ``(H, W, C)``; with ``ndim=3`` ``(D, H, W)`` or ``(D, H, W, C)``.
        detail: a name, an object with ``measure``, or a function from the image to a non-negative map.
        patch_size: pixels on a side of a patch.
        max_level: level of the roots; None takes the smallest single cell that covers the image.
        ndim: number of spatial axes.

    Raises:
        InputError: the detail is not known, or what it measured is no grid a level, or not monotone.
    """
    shape = image.shape[:ndim]
    levels, how = root_level(shape, patch_size, max_level), as_detail(detail)
    details = how.measure(image if image.ndim > ndim else image[..., None], patch_size, levels)
    if type(how) not in (*DETAILS.values(), PixelMap):
        check_grids(details, shape, patch_size, levels)
        _check_monotone(details)
    return details


def check_grids(details: Sequence[NDArray[np.float64]], shape: tuple[int, ...], patch_size: int, levels: int) -> None:
    """Refuse detail that is no grid of cells for each level above 0.

    >>> check_grids([np.zeros((2, 1))], shape=(100, 32), patch_size=32, levels=1)

    Raises:
        InputError: it has other grids.
    """
    found = [np.shape(grid) for grid in details]
    wanted = [grid_shape(shape, patch_size << level) for level in range(1, levels + 1)]
    if found != wanted:
        raise InputError(f"detail has grids of {found} for {tuple(shape)} pixels; give one a level, of {wanted}")


def _check_monotone(details: DetailPyramid) -> None:
    """Refuse what somebody's own detail measured if a cell has less than one in it."""
    for level, (finer, coarser) in enumerate(pairwise(details), start=1):
        parents = coarser[np.ix_(*(np.arange(length) // 2 for length in finer.shape))]
        if (finer > parents * (1 + _ROUNDING) + np.finfo(float).tiny).any():
            raise InputError(
                f"the detail of some cells of level {level} is more than that of the cell they are in, which would not "
                "be split; give sums or maxima over cells, not means"
            )


def to_dict(detail: str | Detail) -> dict[str, Any]:
    """Describe a named detail in plain values, for a file; `from_dict` is its inverse.

    >>> to_dict(Residual(noise=2.0))
    {'name': 'residual', 'noise': 2.0}
    >>> from_dict(to_dict("edges"))
    Edges(low=100, high=200, blur=3)

    Raises:
        InputError: the detail is a function, which cannot be written down.
    """
    detail = as_detail(detail)
    for name, kind in DETAILS.items():
        if type(detail) is kind:
            return {"name": name, **asdict(detail)}  # type: ignore[call-overload]
    raise InputError(f"detail {detail!r} cannot be written to a file; choose one of {', '.join(DETAILS)}")


def from_dict(values: dict[str, Any]) -> Detail:
    """Make the detail that `to_dict` described."""
    options = dict(values)
    return DETAILS[options.pop("name")](**options)


def _eight_bit(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.bool_:
        return image.view(np.uint8) * np.uint8(255)
    flat = image.reshape(-1, image.shape[-1])
    low, high = np.percentile(sample_evenly(flat, _SAMPLES), (0.5, 99.5))
    out = np.empty(image.shape, np.uint8)
    gain = 255 / (high - low) if high > low else 0.0
    for top in range(0, len(image), _STRIP_ROWS):
        strip = (image[top : top + _STRIP_ROWS].astype(np.float32) - np.float32(low)) * np.float32(gain)
        out[top : top + _STRIP_ROWS] = np.clip(strip, 0, 255)
    return out
