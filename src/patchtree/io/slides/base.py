"""What every slide is: levels, pixels of a box, a pixel size; and how a level is chosen."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

HOW_TO_INSTALL = 'pip install "patchtree[slides]"'

Box = tuple[int, int, int, int]
# Levels are cut to whole pixels, so a ratio of 2 may show as 2.0005; one that was meant as another is further off.
_TOLERANCE = 0.01
_MICROMETRES = {
    **dict.fromkeys(("pm", "picometer", "picometre"), 1e-6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("\N{MICRO SIGN}m", "um", "micrometer", "micrometre", "micron", "microns"), 1.0),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("in", "inch"), 25400.0),
}


def overlap(one: Box, other: Box) -> Box | None:
    """Give the part that two boxes have in common, None if there is none.

    >>> overlap((0, 0, 4, 4), (2, 3, 8, 8)), overlap((0, 0, 4, 4), (4, 0, 8, 4))
    ((2, 3, 4, 4), None)
    """
    y0, x0, y1, x1 = max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
    return (y0, x0, y1, x1) if y0 < y1 and x0 < x1 else None


@dataclass(frozen=True)
class Level:
    """One level of a slide's pyramid.

    Attributes:
        shape: (H, W) in pixels of the level.
        downsample: pixels of level 0 along one of the level's, (y, x).
        tile: (h, w) of the level's own tiles, from its first pixel on. A box along them decodes nothing twice.
    """

    shape: tuple[int, int]
    downsample: tuple[float, float]
    tile: tuple[int, int]


class SlideReadError(InputError):
    """A part of a slide cannot be read; the rest may well be.

    Attributes:
        path: the slide.
        level: the level that was read.
        box: y0, x0, y1, x1 in pixels of the level: the tile at fault where it is known, else all that was asked for.
    """

    def __init__(self, path: str, level: int, box: Box, cause: object = "") -> None:
        y0, x0, y1, x1 = box
        why = f" ({' '.join(str(cause).split())})" if str(cause) else ""
        super().__init__(
            f"{path}: level {level}, rows {y0} to {y1}, columns {x0} to {x1} cannot be read{why}; "
            "copy or export the file again"
        )
        self.path, self.level, self.box, self.cause = path, level, box, str(cause)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.level, self.box, self.cause)


class Slide(ABC):
    """A pyramid of images in a file, read box by box.

    Safe to use from several threads; pickled and after a fork, it opens the file anew. Also a context manager.

    Attributes:
        path: the file, folder or URL.
        kind: what it is and what reads it, as in ``"aperio, OpenSlide"``.
        levels: finest first; the first has a downsample of (1, 1).
        channels: C.
        dtype: of the pixels.
        mpp: micrometres along a pixel of level 0, (y, x), or None where nobody knows.
        background: (C,), what a pixel is that was never scanned: white for RGB, else 0.
    """

    path: str
    kind: str
    levels: tuple[Level, ...]
    channels: int
    dtype: np.dtype[Any]
    mpp: tuple[float, float] | None
    background: NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of level 0."""
        return self.levels[0].shape

    def read(self, level: int, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """Read a half-open box of a level, in pixels of that level's own grid, as (y1 - y0, x1 - x0, C).

        What lies outside the level, and what was never scanned, is background.

        Raises:
            SlideReadError: the file is damaged there.
        """
        height, width = self.levels[level].shape
        top, bottom = (min(max(y, 0), height) for y in (y0, y1))
        left, right = (min(max(x, 0), width) for x in (x0, x1))
        if (top, left, bottom, right) == (y0, x0, y1, x1) and top < bottom and left < right:
            return self._read(level, (y0, x0, y1, x1))
        out = self.blank((max(y1 - y0, 0), max(x1 - x0, 0)))
        if top < bottom and left < right:
            out[top - y0 : bottom - y0, left - x0 : right - x0] = self._read(level, (top, left, bottom, right))
        return out

    def blank(self, shape: tuple[int, int]) -> NDArray[Any]:
        """(h, w, C) of background, to write to."""
        out = np.empty((*shape, self.channels), self.dtype)
        out[:] = self.background
        return out

    def info(self) -> dict[str, Any]:
        """Describe the slide in plain values, for people and JSON."""
        return {
            "kind": self.kind,
            "shape": [*self.shape, self.channels],
            "dtype": str(self.dtype),
            "mpp": None if self.mpp is None else list(self.mpp),
            "background": self.background.tolist(),
            "levels": [
                {"shape": list(level.shape), "downsample": list(level.downsample), "tile": list(level.tile)}
                for level in self.levels
            ],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.mpp)

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; reading afterwards is an error. Closing twice is none."""

    @abstractmethod
    def _read(self, level: int, box: Box) -> NDArray[Any]:
        """Read a box that has pixels and lies inside the level, as (h, w, C) that nobody else holds."""


def level_for(slide: Slide, downsample: float) -> int:
    """The coarsest level that is not coarser than a downsample, give or take 1%.

    >>> from types import SimpleNamespace
    >>> levels = [Level((4096, 4096), (1, 1), (256, 256)), Level((2047, 2047), (2.001, 2.001), (256, 256))]
    >>> [level_for(SimpleNamespace(levels=levels), wanted) for wanted in (1, 1.9, 2, 8)]
    [0, 0, 1, 1]
    """
    fits = [i for i, level in enumerate(slide.levels) if max(level.downsample) <= downsample * (1 + _TOLERANCE)]
    return max(fits, default=0)


def true_downsample(finest: tuple[int, int], shape: tuple[int, int]) -> tuple[float, float]:
    """The ratio of two levels' shapes (H, W): a whole number, powers of 2 first, where rounding explains the rest.

    >>> true_downsample((2967, 2220), (1483, 1110)), true_downsample((2967, 2220), (989, 740))
    ((2.0, 2.0), (3.0, 3.0))
    >>> true_downsample((1000, 1000), (400, 400))
    (2.5, 2.5)
    """
    ratios = [whole / part for whole, part in zip(finest, shape, strict=True)]
    power = math.floor(math.log2(max(ratios)))
    for factor in (2**power, 2 ** (power + 1), round(min(ratios)), round(max(ratios))):
        if factor and all(
            part in (whole // factor, -(-whole // factor)) for whole, part in zip(finest, shape, strict=True)
        ):
            return float(factor), float(factor)
    return ratios[0], ratios[1]


def over_background(
    colours: NDArray[Any], alpha: NDArray[Any], background: NDArray[Any], premultiplied: bool = False
) -> NDArray[Any]:
    """Colours (h, w, C) of opacity (h, w) over a background (C,), rounded to their own type.

    >>> over_background(np.uint8([[[10], [10], [10]]]), np.uint8([[255, 0, 51]]), np.uint8([255])).tolist()
    [[[10], [255], [206]]]
    """
    opaque = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    clear = alpha != opaque
    out = np.ascontiguousarray(colours)
    if clear.any():
        share = (alpha[clear].astype(np.float32) / opaque)[:, None]
        mixed = colours[clear] * (1 if premultiplied else share) + background * (1 - share)
        out = out.copy() if out is colours else out
        out[clear] = np.rint(mixed.clip(max=opaque)) if out.dtype.kind in "iu" else mixed
    return out


def default_background(channels: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """(C,): white for 8-bit RGB, which is glass; 0 for all else, such as fluorescence and class ids."""
    return np.full(channels, 255 if channels == 3 and dtype == np.uint8 else 0, dtype)


def micrometres(value: float, unit: str | None) -> float | None:
    """A length in micrometres; None where it is none, or its unit is not known.

    >>> micrometres(250, "nanometer"), micrometres(0.5, "µm"), micrometres(1, "pixel")
    (0.25, 0.5, None)
    """
    factor = _MICROMETRES.get((unit or "").strip().lower().replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}"))
    return value * factor if factor and 0 < value < math.inf else None


def need_mpp(slide: Slide, use: str) -> tuple[float, float] | None:
    """The slide's pixel size; without one, warn that `use` (as in "areas are in pixels") and give None."""
    if slide.mpp is None:
        warnings.warn(f"{slide.path}: has no pixel size, so {use}; --mpp sets it", stacklevel=2)
    return slide.mpp


def check_mpp(path: str, mpp: float | Sequence[float] | None) -> tuple[float, float] | None:
    """Give micrometres a pixel as (y, x), from one number for both or two.

    Raises:
        InputError: it is not one or two positive numbers.
    """
    if mpp is None:
        return None
    pair = tuple(float(size) for size in (mpp if isinstance(mpp, Sequence) else (mpp, mpp)))
    if len(pair) != 2 or not all(0 < size < math.inf for size in pair):
        raise InputError(f"{path}: a pixel size of {mpp} micrometres; give one or two positive numbers (y, x)")
    return pair[0], pair[1]
