"""OME-Zarr through zarr: folders, and URLs where fsspec can reach them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.slides.base import Box, Level, Slide, SlideReadError, default_background, micrometres, true_downsample
from patchtree.io.slides.source import PerProcess, is_url

Scale = tuple[float, ...]


class ZarrSlide(Slide):
    """An image in OME-Zarr (NGFF 0.4 and 0.5); also one image in the layout of bioformats2raw.

    Downsamples and the pixel size are those that the metadata declares. A chunk that is not there holds the array's
    fill value, as Zarr has it. A level that is named but missing is left out, with a warning.
    """

    def __init__(self, path: str, mpp: tuple[float, float] | None = None) -> None:
        self.path = path
        try:
            name, image = _find(path, _group(path))
            names = [str(dataset["path"]) for dataset in image["datasets"]]
            axes = [str(axis["name"] if isinstance(axis, Mapping) else axis) for axis in image.get("axes", "tczyx")]
            arrays = _arrays(path, name, names)
            first = arrays[names[0]]
            self._y, self._x = axes.index("y"), axes.index("x")
            scales = [_scale(image, dataset) for dataset in image["datasets"]]
        except (LookupError, ValueError, TypeError, AttributeError, OSError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: OME-Zarr whose metadata cannot be read ({' '.join(str(error).split())}); export it again"
            ) from error
        more = [(axis, n) for axis, n in zip(axes, first.shape, strict=True) if axis not in ("c", "y", "x") and n > 1]
        if more:
            raise InputError(f"{path}: OME-Zarr of {more[0][1]} images along {more[0][0]}; export one of them")
        self._channel = axes.index("c") if "c" in axes else None
        kept = [position for position, one in enumerate(names) if one in arrays]
        self._names = [names[position] for position in kept]
        self.levels = tuple(self._level(arrays[names[0]], arrays[names[i]], scales[0], scales[i]) for i in kept)
        self._handles = PerProcess(lambda: _arrays(path, name, self._names))
        self.channels = 1 if self._channel is None else first.shape[self._channel]
        self.dtype = np.dtype(first.dtype).newbyteorder("=")
        self.background = default_background(self.channels, self.dtype)
        self.mpp = mpp or self._pixel_size(image.get("axes", ()), scales[0])
        self.kind = f"OME-Zarr {image.get('version', '')}".strip() + ", zarr"

    def close(self) -> None:
        """Let go of the store; reading afterwards is an error. Closing twice is none."""
        self._handles = PerProcess(self._refuse)

    def _refuse(self) -> dict[str, Any]:
        raise ValueError(f"{self.path} is closed")

    def _read(self, level: int, box: Box) -> NDArray[Any]:
        y0, x0, y1, x1 = box
        array = self._handles.get()[self._names[level]]
        where: list[int | slice] = [0] * array.ndim
        where[self._y], where[self._x] = slice(y0, y1), slice(x0, x1)
        if self._channel is not None:
            where[self._channel] = slice(None)
        try:
            pixels = np.asarray(array[tuple(where)])
        except Exception as error:  # codecs and stores throw anything
            raise SlideReadError(self.path, level, box, error) from error
        left = [axis for axis in range(array.ndim) if isinstance(where[axis], slice)]
        pixels = np.moveaxis(pixels, (left.index(self._y), left.index(self._x)), (0, 1))
        return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], self.channels), self.dtype)

    def _level(self, finest: Any, array: Any, whole: Scale | None, part: Scale | None) -> Level:
        """Describe a level: its declared downsample where that agrees with its shape, give or take a pixel and 1%."""
        sizes, shape = (self._plane(finest.shape), self._plane(array.shape))
        downsample = true_downsample(sizes, shape)
        if whole and part:
            declared = part[self._y] / whole[self._y], part[self._x] / whole[self._x]
            expected = [size / factor for size, factor in zip(sizes, declared, strict=True)]
            if all(abs(one - there) <= 1 + 0.01 * there for one, there in zip(expected, shape, strict=True)):
                downsample = declared
            else:
                warnings.warn(
                    f"{self.path}: level {array.basename} is declared {declared[0]:g} times as coarse as the first but "
                    f"is {downsample[0]:g} times as small; the latter is used",
                    stacklevel=4,
                )
        return Level(shape, downsample, self._plane(array.chunks))

    def _plane(self, shape: Sequence[int]) -> tuple[int, int]:
        return shape[self._y], shape[self._x]

    def _pixel_size(self, axes: Sequence[Any], scale: Scale | None) -> tuple[float, float] | None:
        """Micrometres a pixel, (y, x), where the axes have units."""
        if scale is None or not all(isinstance(axis, Mapping) for axis in axes) or not axes:
            return None
        y, x = (micrometres(scale[axis], axes[axis].get("unit")) for axis in (self._y, self._x))
        return (y, x) if y and x else None


def _group(path: str) -> Any:
    """Open the group of a folder or URL."""
    store = zarr.storage.FsspecStore.from_url(path, read_only=True) if is_url(path) else path
    return zarr.open_group(store, mode="r")


def _find(path: str, group: Any) -> tuple[str, Mapping[str, Any]]:
    """The image in a group: the name of the group it is in, and the metadata of its pyramid."""
    told = _told(group)
    if "multiscales" in told:
        version = {"version": told["version"]} if "version" in told else {}
        return "", {**version, **told["multiscales"][0]}
    if "bioformats2raw.layout" in told and "0" in group:
        if "1" in group:
            raise InputError(f"{path}: OME-Zarr of several images; name one, such as {path.rstrip('/')}/0")
        return "0", _find(path, group["0"])[1]
    what = "a plate of many images" if "plate" in told or "well" in told else "Zarr without an image of OME-Zarr"
    raise InputError(f"{path}: {what}; name the folder of one image")


def _told(group: Any) -> dict[str, Any]:
    """The metadata of OME-Zarr, which version 0.5 keeps under a name of its own."""
    told = dict(group.attrs)
    return dict(told.get("ome", told))


def _arrays(path: str, name: str, names: Sequence[str]) -> dict[str, Any]:
    """Open levels by name; those that are missing are left out with a warning, unless it is the finest."""
    group = _group(path)
    group = group[name] if name else group
    found = {}
    for level in names:
        if level in group:
            found[level] = group[level]
        elif level == names[0]:
            raise InputError(f"{path}: OME-Zarr without its finest level ({level}); copy or export it again")
        else:
            warnings.warn(f"{path}: level {level} is named but is not there; the others are used", stacklevel=3)
    return found


def _scale(image: Mapping[str, Any], dataset: Mapping[str, Any]) -> Scale | None:
    """Size of a level's pixels along each axis: its own transformation, then that of all levels."""
    steps = [*dataset.get("coordinateTransformations", ()), *image.get("coordinateTransformations", ())]
    scales = [step["scale"] for step in steps if step["type"] == "scale" and "scale" in step]
    return tuple(math.prod(factors) for factors in zip(*scales, strict=True)) if scales else None
