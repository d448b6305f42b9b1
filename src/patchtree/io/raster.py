"""What every image format has in common: samples and their meaning, room in memory, and errors told in one line."""

from __future__ import annotations

import math
import os
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError, say_size

# Nothing that is measured is larger, and its square is still a float32.
_LARGEST = 1e18


@dataclass(frozen=True, eq=False)
class Raster:
    """The samples of a file as stored, with what the file says of them.

    Class ids are the samples; colours are the samples seen through `palette` and `alpha`.
    """

    samples: NDArray[Any]  # (H, W) or (H, W, C), upright only after `orientation`
    palette: NDArray[Any] | None = None  # (K,) greys, (K, 3) RGB or (K, 4) RGBA that the samples point to
    alpha: bool = False  # the last channel is opacity
    premultiplied: bool = False  # the colours are already multiplied by it
    orientation: int = 1  # as in EXIF
    lossy: bool = False  # JPEG: neighbouring samples have bled into each other
    missing: float | None = None  # the sample that stands for no data


@contextmanager
def decoding(path: Path | str, kind: str) -> Iterator[None]:
    """Turn whatever a decoder throws into an InputError, and keep its warnings in."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: too large for the memory that is free; crop it, or free some memory") from error
    except Exception as error:  # decoders throw anything, from struct.error to SyntaxError, at a damaged file
        told = not isinstance(
            error, struct.error | ArithmeticError | LookupError | TypeError
        )  # the others mean nothing
        cause = f" ({' '.join(str(error).split())})" if told else ""
        raise InputError(
            f"{path}: {kind} that is damaged, cut short or of a rare kind{cause}; copy or export the file again"
        ) from error


def check_pages(path: Path, kind: str, pages: int) -> None:
    """Refuse a file of several images."""
    if pages != 1:
        raise InputError(
            f"{path}: {kind} of {pages} pages, expected one image; save the page you want as its own file, "
            "or channels side by side (planarconfig='contig')"
        )


def check_room(path: Path, shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse an image of `shape` (H, W, ...) that memory cannot hold."""
    needed, free = math.prod(shape) * itemsize, free_memory()
    if needed > free:
        raise InputError(
            f"{path}: its header claims {say_size(shape)}, {needed / 2**30:,.1f} GiB once decoded, "
            f"but {free / 2**30:,.1f} GiB of memory are free; crop it, or copy it again if that cannot be"
        )


def free_memory() -> int:
    """Bytes that can be allocated without swapping; without a limit where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def settle_type(values: NDArray[Any]) -> NDArray[Any]:
    """Keep 8 and 16 bits as they are, with int8 as int16, and make float32 of all other real numbers."""
    if values.dtype.name in ("uint8", "uint16", "int16"):
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.int16 if values.dtype == np.int8 else np.float32, copy=False)


def count_no_numbers(values: NDArray[Any]) -> int:
    """Count what is NaN, infinite, or so large that it stands for no number, as in satellite images."""
    if values.dtype.kind != "f":
        return 0
    return int(values.size - np.count_nonzero((values >= -_LARGEST) & (values <= _LARGEST)))


def refuse_no_numbers(path: Path, bad: int, size: int) -> None:
    """Refuse a file of which some values are no numbers."""
    if bad:
        raise InputError(
            f"{path}: {bad:,} of {size:,} values are NaN or infinite, or beyond {_LARGEST:.0g}; "
            "replace them and save again"
        )


def fill_missing(path: Path, values: NDArray[Any], missing: float) -> NDArray[Any]:
    """Put the nearest measured value in the place of a sample that stands for no data and lies beyond all measured.

    So what is missing is flat, and stretches no range. Within the range of what was measured it does no harm.

    Raises:
        InputError: nothing was measured.
    """
    if values.dtype == np.uint8:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        stands = np.asarray(missing).astype(values.dtype)
    # As types round: -3.4028234663852886e+38 is a float32's lowest; a sample of whole numbers is never NaN.
    if values.dtype.kind == "f":
        gone = np.isnan(values) if np.isnan(missing) else values == stands
    elif stands == missing:
        gone = values == stands
    else:
        return values
    count = int(np.count_nonzero(gone))
    if not count:
        return values
    if count == values.size:
        raise InputError(f"{path}: all values are {missing:g}, which stands for no data; leave the file out")
    measured = values[~gone]
    low, high = measured.min(), measured.max()
    if low <= stands <= high:
        return values
    fill = high if stands > high else low
    warnings.warn(
        f"{path}: {count:,} of {values.size:,} values are {missing:g}, which stands for no data; "
        f"{fill:g} takes their place",
        stacklevel=4,
    )
    return np.where(gone, fill, values)


def upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror (H, W, ...) as EXIF's `orientation` (1 to 8) asks."""
    match orientation:
        case 2:
            array = array[:, ::-1]
        case 3:
            array = array[::-1, ::-1]
        case 4:
            array = array[::-1]
        case 5:
            array = array.swapaxes(0, 1)
        case 6:
            array = np.rot90(array, -1)
        case 7:
            array = array[::-1, ::-1].swapaxes(0, 1)
        case 8:
            array = np.rot90(array)
    return np.ascontiguousarray(array)


def upright_shape(shape: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(H, W) once `orientation` is applied."""
    return (shape[1], shape[0]) if orientation in (5, 6, 7, 8) else shape
