"""Slides with labels, and what is known of all of each before windows of it are read."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median

import numpy as np
from numpy.typing import NDArray

from patchtree.cache import locate
from patchtree.datasets import DataSet, Pair, refuse
from patchtree.errors import InputError
from patchtree.io.slides import Slide, open_slide
from patchtree.io.slides.base import Box
from patchtree.patches import full_scale
from patchtree.slide_inference import find_tissue
from patchtree.slide_sets import Drawing, Mask, open_labels
from patchtree.slides.halved import Halved, threads

# Bytes of tiles that are held while a slide is looked at, and the patches that tissue is found by.
_TILES, _PATCH_SIZE = 32 << 20, 16
# What is read of a slide to measure its colours: so many parts of so many pixels on a side.
_MEASURED, _MEASURED_SIDE = 64, 128
# Where the pixels of slides differ by more than this factor, things differ in size.
SAME_SIZE = 1.25


@dataclass(frozen=True, eq=False)
class SlideSource:
    """A slide with labels, and what is known of all of it.

    Attributes:
        pair: the files.
        labels: name to id.
        ignore: id of pixels without a label.
        shape: ``(H, W)`` in pixels.
        channels: number of channels, ``C``.
        dtype: name of the pixels' type.
        mpp: micrometres along a pixel, (y, x), or None.
        tissue: cells of `side` pixels where there is something to see.
        side: of a cell in pixels.
        pixels: ``(K,)`` pixels of each class, as far as a coarse level of the mask tells.
        places: for each class ``(M, 2)`` rows and columns of some of its pixels.
        mean: mean of each channel of the tissue, on the scale of `patchtree.collate`.
        square: mean square of each, on the same scale.
        drawing: the polygons, where the labels are some.
        white: the mask holds 0 and 255.
        notes: what is unusual about the labels.
    """

    pair: Pair
    labels: dict[str, int]
    ignore: int | None
    shape: tuple[int, int]
    channels: int
    dtype: str
    mpp: tuple[float, float] | None
    tissue: NDArray[np.bool_] = field(repr=False)
    side: int
    pixels: NDArray[np.float64]
    places: tuple[NDArray[np.int64], ...] = field(repr=False)
    mean: tuple[float, ...]
    square: tuple[float, ...]
    drawing: Drawing | None = field(repr=False)
    white: bool
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The slide's name."""
        return self.pair.name

    @property
    def area(self) -> int:
        """Pixels of tissue."""
        return self.tissue_in((0, 0, *self.shape))

    def tissue_in(self, box: Box) -> int:
        """Count the pixels of tissue in a box."""
        rows, columns = (
            np.diff(np.clip(np.arange(count + 1) * self.side, low, min(high, most))).astype(float)
            for count, low, high, most in zip(self.tissue.shape, box[:2], box[2:], self.shape, strict=True)
        )
        return round(float(rows @ self.tissue @ columns))


def look_at(dataset: DataSet) -> tuple[SlideSource, ...]:
    """Look at all slides of a data set; what was seen is remembered while the files stay the same.

    Read are headers, annotations, a coarse level of masks, what shows where there is tissue, and some of it.

    Raises:
        InputError: a file cannot be read, or they do not fit each other.
    """
    return tuple(_look_at(dataset, pair) for pair in dataset.pairs)


def check_slides(dataset: DataSet) -> None:
    """Look for what would spoil a training; see `survey_slides` and `patchtree.datasets.check_data`.

    Raises:
        InputError: names the first file that is at fault, and how many more are.
    """
    refuse(dataset, *survey_slides(dataset))


def survey_slides(dataset: DataSet) -> tuple[list[str], dict[str, int]]:
    """List what would spoil a training, a line each, and estimate the pixels of each class.

    Pixel sizes that differ and masks that are smaller than their slides are warnings.
    """
    problems: list[str] = []
    sources: list[SlideSource] = []
    for pair in dataset.pairs:
        try:
            sources.append(_look_at(dataset, pair))
        except InputError as error:
            problems.append(str(error))
    for source in sources[1:]:
        kinds = [f"{one.channels} channel{'s' * (one.channels > 1)} of {one.dtype}" for one in (source, sources[0])]
        if kinds[0] != kinds[1]:
            problems.append(
                f"{source.pair.image}: has {kinds[0]}, {sources[0].pair.image.name} {kinds[1]}; make them equal"
            )
    for note in dict.fromkeys(note for source in sources for note in source.notes):
        having = [source.pair.mask for source in sources if note in source.notes]
        more = f" and {len(having) - 1} more" if len(having) > 1 else ""
        warnings.warn(f"{having[0]}{more}: {note}", stacklevel=2)
    drawn = {source.pair.mask: source.drawing.left_out for source in sources if source.drawing is not None}
    if left_out := sum(drawn.values()):
        having = [path for path, count in drawn.items() if count]
        more = f" and {len(having) - 1} more" if len(having) > 1 else ""
        warnings.warn(f"{having[0]}{more}: annotations without a class are left out, {left_out:,} in all", stacklevel=2)
    sizes = {source.name: mean_mpp(source.mpp) for source in sources}
    known = {name: size for name, size in sizes.items() if size is not None}
    if 0 < len(known) < len(sizes):
        alone = next(name for name, size in sizes.items() if size is None)
        warnings.warn(f"{dataset.root}: {alone} has no pixel size, as other slides have", stacklevel=2)
    if known and max(known.values()) > SAME_SIZE * min(known.values()):
        (small, least), (large, most) = (choose(known.items(), key=lambda item: item[1]) for choose in (min, max))
        warnings.warn(
            f"{dataset.root}: pixels are {least:.4g} µm in {small}, {most:.4g} µm in {large}; things differ in size, "
            "which training does not mend",
            stacklevel=2,
        )
    pixels = np.sum([source.pixels for source in sources], axis=0) if sources else np.zeros(len(dataset.labels))
    if not problems and np.count_nonzero(pixels) < 2:
        what = repr(list(dataset.labels)[int(pixels.argmax())]) if pixels.any() else "ignored"
        problems.append(
            f"{dataset.root}: all that is seen of the labels is {what}; there is nothing to learn from, check them"
        )
    return problems, {name: round(count) for name, count in zip(dataset.labels, pixels.tolist(), strict=True)}


def mean_mpp(mpp: tuple[float, float] | None) -> float | None:
    """Give the geometric mean of a pixel's height and width, None where they are not known."""
    return None if mpp is None else math.sqrt(mpp[0] * mpp[1])


def median_mpp(sources: Sequence[SlideSource]) -> float | None:
    """Give the median of the micrometres along a pixel; None where no slide tells."""
    known = [size for size in (mean_mpp(source.mpp) for source in sources) if size is not None]
    return median(known) if known else None


def _look_at(dataset: DataSet, pair: Pair) -> SlideSource:
    changed = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in (pair.image, pair.mask))
    return _look(pair, tuple(dataset.labels.items()), dataset.ignore, changed)


@lru_cache(maxsize=1 << 12)
def _look(pair: Pair, names: tuple[tuple[str, int], ...], ignore: int | None, changed: tuple[int, ...]) -> SlideSource:
    labels = dict(names)
    with open_slide(pair.image) as slide:
        known = open_labels(pair.mask, slide.shape, labels, ignore, legend=pair.legend)
        try:
            ids, scale = known.coarse()
        finally:
            known.close()
        with threads(1) as pool:
            tissue, side = find_tissue(Halved(slide, _TILES), pool, _PATCH_SIZE)
        if not tissue.any():
            raise InputError(f"{pair.image}: has no tissue that is seen; remove it from the data set")
        sample = _sample_tissue(slide, tissue, side)
        pixels, places = locate(ids, len(labels), zlib.crc32(pair.name.encode()))
        return SlideSource(
            pair,
            labels,
            ignore,
            slide.shape,
            slide.channels,
            slide.dtype.name,
            slide.mpp,
            tissue,
            side,
            np.asarray(pixels * math.prod(scale), np.float64),
            tuple(np.asarray((found + 0.5) * scale, np.int64) for found in places),
            tuple(sample.mean(axis=0).tolist()),
            tuple(np.square(sample).mean(axis=0).tolist()),
            known if isinstance(known, Drawing) else None,
            isinstance(known, Mask) and known.white,
            known.notes,
        )


def _sample_tissue(slide: Slide, tissue: NDArray[np.bool_], side: int) -> NDArray[np.float64]:
    """Read pixels from evenly spaced cells of tissue, ``(M, C)``, on the scale of `patchtree.collate`."""
    cells = np.argwhere(tissue)
    chosen = cells[np.linspace(0, len(cells) - 1, min(_MEASURED, len(cells))).round().astype(int)]
    values = []
    for y, x in (chosen * side + side // 2).tolist():
        bottom, right = (min(low + _MEASURED_SIDE // 2, most) for low, most in zip((y, x), slide.shape, strict=True))
        part = slide.read(0, max(bottom - _MEASURED_SIDE, 0), max(right - _MEASURED_SIDE, 0), bottom, right)
        values.append(part.reshape(-1, slide.channels).astype(np.float64))
    return np.concatenate(values) / full_scale(slide.dtype)
