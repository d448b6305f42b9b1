"""Probabilities of classes as an OME-Zarr pyramid, larger than memory."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.colours import Colour
from patchtree.io.pyramids import TILE, Read, level_shapes
from patchtree.io.slides.base import HOW_TO_INSTALL

BLOCK = 2048  # pixels on a side of what is asked for in one go and kept in one file
_WHITE: Colour = (255, 255, 255)


def write_probabilities(
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    read: Read,
    labels: Sequence[str],
    colours: Mapping[str, Colour] | None = None,
    mpp: Sequence[float] | None = None,
) -> None:
    """Write probabilities as OME-Zarr (NGFF 0.5), a channel a class, each level the 2 x 2 means of the one before.

    Values are rounded to 8 bits: 255 is a probability of 1. The same probabilities give the same bytes.

    Args:
        path: the folder to write; it is there only when it is whole. An older Zarr store of that name is replaced.
        shape: (H, W).
        read: called as ``read(y0, x0, y1, x1)`` once for each block of 2048 x 2048 pixels, along a Morton curve, gives
            the probabilities there, ``(y1 - y0, x1 - x0, K)`` floats from 0 to 1.
        labels: names of the K classes.
        colours: of classes, for viewers.
        mpp: micrometres along a pixel, (y, x).

    Raises:
        InputError: zarr is not installed, the probabilities are no such, or the folder cannot be written.
    """
    try:
        import zarr
        from zarr.codecs import ZstdCodec
    except ImportError as error:
        raise InputError(f"{path}: is written by zarr, which is not installed; {HOW_TO_INSTALL}") from error
    path = Path(path)
    shapes = level_shapes(shape)
    with _replacing_folder(path) as temporary:
        group = zarr.open_group(temporary, mode="w", zarr_format=3)
        group.attrs["ome"] = _metadata(path.stem, len(shapes), labels, colours or {}, mpp)
        arrays = [
            group.create_array(
                str(level),
                shape=(len(labels), *size),
                dtype=np.uint8,
                chunks=(1, TILE, TILE),
                shards=(1, BLOCK, BLOCK),
                compressors=ZstdCodec(level=1),
                fill_value=0,
                dimension_names=("c", "y", "x"),
            )
            for level, size in enumerate(shapes)
        ]
        for row, column in np.ndindex(*(-(-length // BLOCK) for length in shapes[-1])):
            _write_block(path, arrays, read, len(arrays) - 1, row, column)


def _write_block(path: Path, arrays: Sequence[Any], read: Read, level: int, row: int, column: int) -> NDArray[np.uint8]:
    """Write a block of a level once those under it are, and give its values, ``(h, w, K)``."""
    classes, height, width = arrays[level].shape
    y0, x0 = row * BLOCK, column * BLOCK
    y1, x1 = min(y0 + BLOCK, height), min(x0 + BLOCK, width)
    if level == 0:
        values = _eight_bit(path, read(y0, x0, y1, x1), (y1 - y0, x1 - x0, classes))
    else:
        values = np.empty((y1 - y0, x1 - x0, classes), np.uint8)
        half = BLOCK // 2
        for down, right in np.ndindex(-(-(y1 - y0) // half), -(-(x1 - x0) // half)):
            finer = _write_block(path, arrays, read, level - 1, 2 * row + down, 2 * column + right)
            part = _halve(finer)
            top, left = down * half, right * half
            values[top : top + part.shape[0], left : left + part.shape[1]] = part
    arrays[level][:, y0:y1, x0:x1] = np.moveaxis(values, -1, 0)
    return values


def _halve(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of 2 x 2 values, at the far border of those that are there."""
    height, width, _ = values.shape
    wide = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(np.uint16)
    rows = wide[::2] + wide[1::2]
    return np.asarray((rows[:, ::2] + rows[:, 1::2] + 2) >> 2, np.uint8)


def _eight_bit(path: Path, values: NDArray[Any], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    values = np.asarray(values)
    if values.shape != shape or values.dtype.kind != "f":
        raise InputError(f"{path}: probabilities must be floats of shape {shape}, not {values.dtype} of {values.shape}")
    if not (values.min() >= -1e-3 and values.max() <= 1.001):  # also where one is NaN
        raise InputError(f"{path}: probabilities from {values.min()} to {values.max()}; they must lie in 0 to 1")
    return np.rint(values.astype(np.float32).clip(0, 1) * np.float32(255)).astype(np.uint8)


def _metadata(
    name: str, levels: int, labels: Sequence[str], colours: Mapping[str, Colour], mpp: Sequence[float] | None
) -> dict[str, Any]:
    """What NGFF 0.5 asks for; a level's first pixel has its centre at the mean of those that it stands for."""
    unit = {} if mpp is None else {"unit": "micrometer"}
    size = (1.0, 1.0) if mpp is None else tuple(float(value) for value in mpp)
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, *(value * 2**level for value in size)]},
                {"type": "translation", "translation": [0.0, *(value * (2**level - 1) / 2 for value in size)]},
            ],
        }
        for level in range(levels)
    ]
    channels = [
        {
            "label": label,
            "color": "{:02X}{:02X}{:02X}".format(*colours.get(label, _WHITE)),
            "active": True,
            "window": {"min": 0, "max": 255, "start": 0, "end": 255},
        }
        for label in labels
    ]
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", **unit} for axis in "yx")]
    return {
        "version": "0.5",
        "multiscales": [{"name": name, "axes": axes, "datasets": datasets, "type": "mean"}],
        "omero": {"channels": channels},
    }


@contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    """Give the name of a folder to write, which becomes `path` if the block succeeds and goes if it fails.

    What a writer left behind when it was killed goes too.
    """
    if path.exists() and not (path / "zarr.json").is_file():
        raise InputError(f"{path}: is there and is no Zarr store, so it is not replaced; choose another name")
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written, there is no folder {path.parent}; create it first")
    temporary, old = (path.with_name(f".{path.name}.{state}") for state in ("new", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise InputError(f"{path}: cannot be written, {error.strerror}; choose another folder") from error
        raise
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
