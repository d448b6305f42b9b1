"""The image pyramid: an image halved again and again by 2 x 2 (2 x 2 x 2) means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Large enough to hide the cost of calls, which threads take turns to make; small enough for the cache that they share.
_CHUNK_BYTES = 1 << 21
# Fixed point: 8-bit values carry 8 fraction bits in 16, which is exact for the first four halvings.
_FIXED = 256
_FIXED_LEVELS = 4
# The most channels that every OpenCV takes (version 5; version 4 takes 512).
CV_CHANNELS = 128


@dataclass(frozen=True)
class Level:
    """One level of a pyramid: ``values * scale`` are the means of the image's pixels under each of its own.

    Attributes:
        values: ``(h, w, C)`` or ``(d, h, w, C)``.
        scale: 1, or 1/256 for fixed-point values.
    """

    values: NDArray[Any]
    scale: float

    def cast(self, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Turn some of the level's values into another type, integers rounded half up."""
        if values.dtype == dtype:
            return values
        if dtype == np.bool_:
            return np.asarray(values >= 0.5 / self.scale)
        if values.dtype == np.uint16 and self.scale != 1:
            return np.asarray((values.astype(np.uint32) + _FIXED // 2) // _FIXED, dtype)
        scaled = values * values.dtype.type(self.scale)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            scaled = np.clip(np.floor(scaled + values.dtype.type(0.5)), limits.min, limits.max)
        return np.asarray(scaled, dtype)


def pyramid(
    image: NDArray[Any],
    levels: int,
    exact: bool = True,
    shape: tuple[int, ...] | None = None,
    halved: int = 0,
) -> Iterator[Level]:
    """Yield an image halved 0, 1, ..., ``levels`` times.

    A pixel of level ``l`` is the mean of the image's pixels under it; at the far border only those inside the image
    count. 8-bit images are carried in 16-bit fixed point, other integers and float32 in float32.

    >>> image = np.arange(12, dtype=np.uint8).reshape(2, 6, 1)
    >>> [(level.values[..., 0] * level.scale).tolist() for level in pyramid(image, 2)][1:]
    [[[3.5, 5.5, 7.5]], [[4.5, 7.5]]]

    Args:
        image: ``(H, W, C)`` or ``(D, H, W, C)``.
        levels: how many times to halve.
        exact: False lets the first halving of an 8-bit image round to 8 bits, which is three times as fast and at most
            half a grey level off.
        shape: that of the whole image, where the first level is one that was halved already.
        halved: how many times it was.
    """
    yield Level(image, 1.0)
    eight_bit = image.dtype in (np.uint8, np.bool_)
    fixed = eight_bit and image.ndim == 3
    current = image.view(np.uint8) if eight_bit else image
    for level in range(1, levels + 1):
        dtype: np.dtype[Any] = np.dtype(np.float32)
        if fixed and level == 1 and not exact:
            dtype = np.dtype(np.uint8)
        elif fixed and level <= _FIXED_LEVELS:
            dtype = np.dtype(np.uint16)
        elif image.dtype.itemsize > 2 and image.dtype != np.float32:
            dtype = np.dtype(np.float64)
        gain = _FIXED if current.dtype == np.uint8 and dtype == np.uint16 else 1
        blend = [_far_share(length, halved + level - 1) for length in shape or image.shape[:-1]]
        current = _halve(current, dtype, gain, blend)
        yield Level(current, 1 / _FIXED if fixed and current.dtype != np.uint8 else 1.0)


def by_channels(
    picture: NDArray[Any], call: Callable[[NDArray[Any], slice], NDArray[Any]], most: int = CV_CHANNELS
) -> NDArray[Any]:
    """Do something of OpenCV's to ``(h, w, C)``, to as many channels at once as it takes.

    >>> by_channels(np.ones((2, 3, 5)), lambda few, which: few[:1] * which.start, most=4)[0, 0].tolist()
    [0.0, 0.0, 0.0, 0.0, 4.0]

    Args:
        picture: what it is done to.
        call: takes some channels and says which they were; may change height and width.
        most: channels at once.
    """
    groups = [slice(first, first + most) for first in range(0, picture.shape[2], most)]
    parts = [call(np.ascontiguousarray(picture[..., few]), few) for few in groups]
    parts = [part.reshape(*part.shape[:2], -1) for part in parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def _far_share(length: int, level: int) -> float:
    """Give the share of the last of an axis's pixels at a level that makes the mean of the last pair right.

    The last pixel ``b`` of a pair ``(a, b)`` may stand for fewer pixels of the image than ``a``. Replacing it by
    ``a + share * (b - a)`` makes the plain mean of the pair the mean of the image's pixels under it.
    """
    full = 1 << level
    last = length - (-(-length // full) - 1) * full
    return 2 * last / (full + last)


def _halve(image: NDArray[Any], dtype: np.dtype[Any], gain: int, share: list[float]) -> NDArray[Any]:
    """Halve every spatial axis of ``(H, W, C)`` or ``(D, H, W, C)``, in pieces that stay in the cache."""
    if image.ndim == 4:
        depth = len(image)
        halves = []
        for z in range(0, depth, 2):
            near = _halve(image[z], dtype, gain, share[1:])
            if z + 1 == depth:
                halves.append(near)
                continue
            far = _halve(image[z + 1], dtype, gain, share[1:])
            if z + 2 == depth:
                far = near + share[0] * (far - near)
            halves.append((near + far) / 2)
        return np.stack(halves).astype(dtype, copy=False)
    height, width, channels = image.shape
    even = width + width % 2
    rows = min(height + height % 2, max(2, _CHUNK_BYTES // (even * channels * dtype.itemsize) // 2 * 2))
    out = np.empty(((height + 1) // 2, even // 2, channels), dtype)
    copied = image.dtype != dtype or even != width or height % 2 or min(share) < 1
    buffer = np.empty((rows if copied else 0, even, channels), dtype)
    for top in range(0, height, rows):
        piece = image[top : top + rows]
        if copied:
            count = len(piece) + len(piece) % 2
            np.multiply(piece, dtype.type(gain), out=buffer[: len(piece), :width], dtype=dtype, casting="unsafe")
            piece = _close(buffer[:count], (len(piece), width), share if top + rows >= height else [1.0, share[1]])
        _mean(piece, out[top // 2 : (top + len(piece)) // 2])
    return out


def _close(piece: NDArray[Any], filled: tuple[int, int], share: list[float]) -> NDArray[Any]:
    """Make the far rows and columns of a piece such that plain 2 x 2 means are right."""
    # Rows first, without the columns that are not filled yet: what happens to lie there may not even be a number.
    for axis, lines in enumerate((piece[:, : filled[1]], piece.swapaxes(0, 1))):
        if filled[axis] < len(lines):
            lines[-1] = lines[-2]
        elif share[axis] < 1:
            near, far = lines[-2].astype(np.float64), lines[-1].astype(np.float64)
            mixed = near + share[axis] * (far - near)
            lines[-1] = np.rint(mixed) if piece.dtype.kind == "u" else mixed
    return piece


def _mean(piece: NDArray[Any], out: NDArray[Any]) -> None:
    """Write the 2 x 2 means of a piece of even height and width."""
    import cv2

    height, width, channels = piece.shape
    size = (width // 2, height // 2)
    if channels > CV_CHANNELS:
        out[:] = by_channels(piece, lambda few, _: cv2.resize(few, size, interpolation=cv2.INTER_AREA))
        return
    cv2.resize(piece, size, dst=out, interpolation=cv2.INTER_AREA)
