"""Decoded images and masks on disk, so that a window reads its own pixels only, and where each class lies in them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patchtree.datasets import DataSet, Pair
from patchtree.errors import InputError
from patchtree.files import replacing
from patchtree.ids import type_of
from patchtree.noise import sample_evenly
from patchtree.patches import full_scale

_VERSION = 1
_PLACES = 10_000
_SAMPLES = 1 << 20
_STRIP = 1 << 22


class Measured(Protocol):
    """An image whose colours are known; see `Cached`."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel."""

    @property
    def square(self) -> tuple[float, ...]:
        """Mean square of each channel."""


@dataclass(frozen=True)
class Cached:
    """A pair decoded to ``.npy`` files; of one with a class instead of a mask, the image.

    Attributes:
        name: the pair's name.
        folder: where its files are.
        shape: ``(H, W)`` of the image, or ``(D, H, W)``.
        channels: number of channels.
        pixels: number of pixels of each class, ``K`` of them; none without a mask.
        starts: ``K + 1`` rows of `places` between which a class's are; none without a mask.
        mean: mean of each channel, on the scale of `patchtree.collate`: 0 to 1 for uint8 and uint16.
        square: mean square of each channel, on the same scale.
    """

    name: str
    folder: Path
    shape: tuple[int, ...]
    channels: int
    pixels: tuple[int, ...]
    starts: tuple[int, ...]
    mean: tuple[float, ...]
    square: tuple[float, ...]

    def image(self) -> NDArray[Any]:
        """Open the image, ``(H, W)`` or ``(H, W, C)``, or the volume, one more ``D`` in front, as a memory map."""
        return _open(self.folder / "image.npy")

    def mask(self) -> NDArray[Any]:
        """Open the mask, class ids of the same shape, as a memory map."""
        return _open(self.folder / "mask.npy")

    def places(self, label: int) -> NDArray[np.int32]:
        """Open a random choice of the class's pixels, ``(M, d)`` indices, at most 10,000."""
        return _open(self.folder / "places.npy")[self.starts[label] : self.starts[label + 1]]


def cache_data(
    dataset: DataSet,
    folder: str | os.PathLike[str],
    progress: Callable[[Sequence[Pair]], Iterable[Pair]] | None = None,
) -> tuple[Cached, ...]:
    """Decode a data set into a folder, or find it there.

    A pair's files are found again while the image's and the mask's paths, sizes and times of change stay the same. They
    appear whole or not at all, so several processes may fill the same folder. Nothing is ever removed: the folder is
    the caller's. It takes the size of the decoded images and masks, and about as much again where `patchtree.mips` adds
    their levels.

    Args:
        dataset: what to decode.
        folder: made if it does not exist.
        progress: shows how far it is, such as ``rich.progress.track``.

    Raises:
        InputError: a file cannot be read, an image and its mask differ in size, a mask holds an unknown id, images
            differ in their number of channels, or the disk is full.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose another folder for the cache") from error
    cached = []
    for pair in dataset.pairs if progress is None else progress(dataset.pairs):
        cached.append(_cache_pair(pair, dataset, folder))
        if cached[-1].channels != cached[0].channels:
            raise InputError(
                f"{pair.image}: its number of channels is {cached[-1].channels}, that of "
                f"{dataset.pairs[0].image.name} is {cached[0].channels}; give all images the same channels"
            )
    return tuple(cached)


def statistics(images: Sequence[Measured]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give the mean and the standard deviation of each channel, every image counting the same.

    They are measured on up to a million pixels an image, evenly spaced, on the scale of `patchtree.collate`.
    """
    mean = np.mean([image.mean for image in images], axis=0)
    square = np.mean([image.square for image in images], axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    # A channel that never changes carries nothing; dividing by 1 leaves it at 0.
    std[std <= np.maximum(1e-6 * np.abs(mean), np.finfo(np.float32).tiny)] = 1
    return tuple(mean.tolist()), tuple(std.tolist())


def _cache_pair(pair: Pair, dataset: DataSet, folder: Path) -> Cached:
    own = folder / _key(pair, dataset)
    about = own / "about.json"
    if not about.is_file():
        own.mkdir(exist_ok=True)
        _fill(pair, dataset, own)
    values: dict[str, Any] = json.loads(about.read_text())
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Cached(pair.name, own, **values)


def _fill(pair: Pair, dataset: DataSet, own: Path) -> None:
    image = pair.read_image()
    shape = image.shape[: pair.ndim]
    sample = _sample(image, len(shape))
    arrays = {"image.npy": image}
    counted: dict[str, Any] = {"pixels": [], "starts": []}
    if pair.label is None:
        of_mask, counted = _split_mask(pair, dataset, shape, seed=int(own.name[:8], 16))
        arrays |= of_mask
    for name, array in arrays.items():
        with replacing(own / name) as temporary:
            np.save(temporary, array)
    about = counted | {
        "shape": shape,
        "channels": sample.shape[1],
        "mean": sample.mean(axis=0).tolist(),
        "square": np.square(sample).mean(axis=0).tolist(),
    }
    # Written last: where it is, all is.
    with replacing(own / "about.json") as temporary:
        temporary.write_text(json.dumps(about))


def _split_mask(
    pair: Pair, dataset: DataSet, shape: tuple[int, ...], seed: int
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Give what is kept of a mask: arrays by file, and numbers."""
    mask = pair.read_mask()
    if mask.shape != shape:
        raise InputError(f"{pair.mask}: has shape {mask.shape}, but {pair.image.name} has {shape}; make them equal")
    pixels, places = locate(mask, len(dataset.labels), seed)
    ignored = 0 if dataset.ignore is None else np.count_nonzero(mask == dataset.ignore)
    if pixels.sum() + ignored != mask.size:
        raise InputError(f"{pair.mask}: holds ids that no label has; add them to dataset.json or mend the mask")
    top = max(len(dataset.labels) - 1, dataset.ignore or 0)
    mask = mask.astype(type_of(top + 1), copy=False)
    arrays = {"mask.npy": mask, "places.npy": np.concatenate(places)}
    return arrays, {"pixels": pixels.tolist(), "starts": np.cumsum([0, *map(len, places)]).tolist()}


def locate(mask: NDArray[Any], classes: int, seed: int) -> tuple[NDArray[np.int64], list[NDArray[np.int32]]]:
    """Count the pixels of each class, and choose up to 10,000 of each at random.

    >>> pixels, places = locate(np.eye(3, dtype=np.uint8), classes=2, seed=0)
    >>> pixels.tolist(), places[1].tolist()
    ([6, 3], [[0, 0], [1, 1], [2, 2]])

    Args:
        mask: ``(H, W)`` or ``(D, H, W)`` ids.
        classes: number of classes, ``K``; other ids are passed over.
        seed: of the choice.

    Returns:
        ``(K,)`` counts, and for each class ``(M, d)`` indices, sorted.
    """
    rng = np.random.default_rng(seed)
    flat = mask.reshape(-1)
    # Strips, because positions take 8 bytes a pixel.
    strips = [flat[at : at + _STRIP] for at in range(0, flat.size, _STRIP)]
    counts = np.array([[np.count_nonzero(strip == label) for label in range(classes)] for strip in strips])
    pixels = counts.sum(axis=0)
    before = np.cumsum(counts, axis=0) - counts
    places = []
    for label, total in enumerate(pixels.tolist()):
        ranks = np.arange(total) if total <= _PLACES else np.unique(rng.integers(total, size=_PLACES))
        found = [np.zeros(0, np.int64)]
        for number, strip in enumerate(strips):
            first = before[number, label]
            here = ranks[(ranks >= first) & (ranks < first + counts[number, label])]
            if len(here):
                found.append(np.flatnonzero(strip == label)[here - first] + number * _STRIP)
        index = np.unravel_index(np.concatenate(found), mask.shape)
        places.append(np.stack(index, axis=1).astype(np.int32))
    return pixels, places


def _sample(image: NDArray[Any], ndim: int) -> NDArray[np.float64]:
    """Choose pixels from all over an image, ``(M, C)``, on the scale of `patchtree.collate`."""
    flat = image.reshape(math.prod(image.shape[:ndim]), -1)
    return sample_evenly(flat, _SAMPLES).astype(np.float64) / full_scale(image.dtype)


def _key(pair: Pair, dataset: DataSet) -> str:
    """Name what the decoded files depend on."""
    files = []
    for path in (pair.image, *pair.channels, *([pair.mask] if pair.label is None else [])):
        try:
            state = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        files.append((str(path.resolve()), state.st_size, state.st_mtime_ns))
    labels = (pair.white, len(dataset.labels), dataset.ignore) if pair.label is None else ()
    what = (_VERSION, files, *labels)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:24]


def _open(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
