"""Data sets of whole slides: what lies in a folder, and the labels of a slide, read part by part."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError, say_size
from patchtree.io.annotations import Annotations, Polygon, read_annotations
from patchtree.io.annotations.legend import IGNORE, PLAIN, Legend, class_names
from patchtree.io.coverage import draw
from patchtree.io.images import IMAGE_SUFFIXES
from patchtree.io.masks import bands, read_ids
from patchtree.io.paip import find_cases, holds_cases
from patchtree.io.slides import Slide, is_pyramid, is_slide, is_tiff, open_slide
from patchtree.io.slides.base import Box
from patchtree.jobs import SLIDE_SUFFIXES

PAIP_LABELS = {"background": 0, "viable tumour": 1}
_TIFFS = (".tif", ".tiff")
_DRAWN = (".geojson", ".json", ".xml")
# The id of annotated pixels without a label where dataset.json gives none: more than there are classes.
UNLABELLED = 65535
# What is looked at of a slide's labels as a whole.
_PIXELS = 1 << 24
_WHITE = 255


@dataclass(frozen=True)
class Found:
    """A slide and the file that holds its labels.

    Attributes:
        name: what both have in common.
        image: the slide.
        labels: a mask or annotations.
    """

    name: str
    image: Path
    labels: Path

    @property
    def drawn(self) -> bool:
        """Whether the labels are annotations."""
        return self.labels.suffix.lower() not in _TIFFS


@dataclass(frozen=True, eq=False)
class Mask:
    """The labels of a slide in a TIFF of class ids, read where they are asked for.

    Attributes:
        file: the mask.
        shape: (H, W) of the slide.
        factor: pixels of the slide along one of the mask's.
        classes: number of classes, ``K``.
        ignore: id of pixels without a label.
        white: the file holds 0 and 255, which stand for the ids 0 and 1.
    """

    file: Slide
    shape: tuple[int, int]
    factor: int
    classes: int
    ignore: int | None
    white: bool

    def ids(self, box: Box) -> NDArray[np.integer]:
        """Read the class ids in a box of the slide, ``(h, w)``.

        Raises:
            InputError: the file is damaged there, or holds an id that is no class.
        """
        y0, x0, y1, x1 = box
        step = self.factor
        height, width = self.file.shape
        # A mask may end up to a pixel before the slide does: then its last pixel goes on.
        rows, columns = (
            np.minimum(np.arange(low, high) // step, most - 1)
            for low, high, most in ((y0, y1, height), (x0, x1, width))
        )
        ids = self._read(0, (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1))
        if wrong := self._unknown(ids):
            raise InputError(self._complaint(wrong[0]))
        return ids if step == 1 and ids.shape == (y1 - y0, x1 - x0) else ids[rows - rows[0]][:, columns - columns[0]]

    def coarse(self) -> tuple[NDArray[np.integer], tuple[float, float]]:
        """Read ids from all over the slide, ``(h, w)``, and tell the slide's pixels along one of those, (y, x).

        Means of ids, of which some writers make coarse levels, are turned into class 0.

        Raises:
            InputError: the file is damaged, or holds an id that is no class.
        """
        level, step, ids = self._look()
        for wrong in self._unknown(ids):
            if level == 0 or wrong in self._under(level, np.argwhere(ids == wrong)[0] * step):
                raise InputError(self._complaint(wrong))
            ids[ids == wrong] = 0
        y, x = (step * down * self.factor for down in self.file.levels[level].downsample)
        return ids, (y, x)

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what is unusual about the mask."""
        smaller = f"the mask is {self.factor} times smaller than the slide; each of its pixels stands for as many"
        white = f"the mask holds 0 and {_WHITE}; {_WHITE} is read as class 1"
        return tuple(note for note, holds in ((smaller, self.factor > 1), (white, self.white)) if holds)

    def top(self) -> int:
        """Give the largest number seen in the file all over the slide."""
        return int(self._look()[2].max())

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    def _read(self, level: int, box: Box) -> NDArray[np.integer]:
        ids = read_ids(self.file, level, box)
        if not self.white:
            return ids
        if level == 0 and (between := np.unique(ids[(ids != 0) & (ids != _WHITE)])).size:
            raise InputError(f"{self.file.path}: holds id {between[0]} beside 0 and {_WHITE}; mend the mask")
        return (ids > _WHITE // 2).astype(np.uint8)

    def _look(self) -> tuple[int, int, NDArray[np.integer]]:
        """Read every so many-th pixel of the finest level that is small enough; gives the level and the step too."""
        shapes = [level.shape for level in self.file.levels]
        level = min((at for at, shape in enumerate(shapes) if math.prod(shape) <= _PIXELS), default=len(shapes) - 1)
        step = math.ceil(math.sqrt(math.prod(shapes[level]) / _PIXELS))
        parts = [
            self._read(level, (top, 0, bottom, shapes[level][1]))[-top % step :: step, ::step]
            for top, bottom in bands(self.file, level)
        ]
        return level, step, np.concatenate(parts)

    def _unknown(self, ids: NDArray[np.integer]) -> list[int]:
        """List the ids that are no classes."""
        if not ids.size or (ids.min() >= 0 and ids.max() < self.classes):
            return []
        return sorted(set(np.unique(ids).tolist()) - set(range(self.classes)) - {self.ignore})

    def _complaint(self, label: int) -> str:
        return f"{self.file.path}: holds id {label}, which no label has; add it to dataset.json or mend the mask"

    def _under(self, level: int, place: NDArray[np.int64]) -> set[int]:
        """Give the ids of level 0 under a pixel of a coarser one."""
        down = self.file.levels[level].downsample
        y, x = (int(at * by) for at, by in zip(place, down, strict=True))
        return set(np.unique(self._read(0, (y, x, y + math.ceil(down[0]), x + math.ceil(down[1])))).tolist())


@dataclass(frozen=True, eq=False)
class Drawing:
    """The labels of a slide as polygons, drawn where they are asked for.

    Attributes:
        annotations: polygons in pixels of the slide, named as the labels are.
        labels: name to id, with that of ``ignore``.
        shape: (H, W) of the slide.
        bounds: ``(P, 4)`` y0, x0, y1, x1 of each polygon.
        left_out: number of annotations that tell no class.
    """

    annotations: Annotations
    labels: Mapping[str, int]
    shape: tuple[int, int]
    bounds: NDArray[np.float64]
    left_out: int = 0

    @classmethod
    def of(cls, annotations: Annotations, labels: Mapping[str, int], shape: tuple[int, int], legend: Legend) -> Drawing:
        """Prepare annotations.

        Raises:
            InputError: a class is not among the labels, or no polygon lies on the slide.
        """
        annotations, left_out = legend.read(annotations, labels)
        outer = [polygon.rings[0][:, ::-1] for polygon in annotations.polygons]
        bounds = np.array([[*ring.min(axis=0), *ring.max(axis=0)] for ring in outer]).reshape(-1, 4)
        drawing = cls(annotations, labels, shape, bounds, left_out)
        if len(bounds) and not len(drawing._touching((0, 0, *shape))):
            raise InputError(f"{annotations.source}: no polygon lies on the slide; check that it belongs to it")
        return drawing

    @property
    def ignore(self) -> int:
        """Id of pixels without a label."""
        return self.labels[IGNORE]

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what is unusual: nothing."""
        return ()

    def ids(self, box: Box) -> NDArray[np.integer]:
        """Draw a box of the slide, ``(h, w)`` class ids."""
        return self._draw(self._touching(box), box[:2], (1.0, 1.0), (box[2] - box[0], box[3] - box[1]))

    def coarse(self) -> tuple[NDArray[np.integer], tuple[float, float]]:
        """Draw all of the slide small, ``(h, w)``, and tell the slide's pixels along one of those, (y, x).

        Every polygon has a pixel at least, unless another covers it.
        """
        step = float(max(1, math.ceil(math.sqrt(math.prod(self.shape) / _PIXELS * 4))))
        shape = math.ceil(self.shape[0] / step), math.ceil(self.shape[1] / step)
        ids = self._draw(np.arange(len(self.bounds)), (0, 0), (step, step), shape)
        for polygon in self.annotations.polygons:
            x, y = (polygon.rings[0][0] / step).astype(int)
            if 0 <= y < shape[0] and 0 <= x < shape[1]:
                ids[y, x] = self.labels[polygon.label]
        return ids, (step, step)

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _touching(self, box: Box) -> NDArray[np.int64]:
        low, high = np.array(box[:2]), np.array(box[2:])
        return np.flatnonzero(((self.bounds[:, :2] < high) & (self.bounds[:, 2:] > low)).all(axis=1))

    def _draw(
        self, which: NDArray[np.int64], corner: tuple[int, ...], step: tuple[float, float], shape: tuple[int, int]
    ) -> NDArray[np.integer]:
        shift, scale = np.array(corner[::-1], float), np.array(step[::-1])
        polygons = tuple(
            Polygon(polygon.label, tuple((ring - shift) / scale for ring in polygon.rings))
            for polygon in (self.annotations.polygons[at] for at in which)
        )
        return draw(replace(self.annotations, polygons=polygons), self.labels, shape)


Labels = Mask | Drawing


def find_slides(root: Path) -> tuple[Found, ...]:
    """List the slides of a data set and the files with their labels; none if the folder holds ordinary images.

    ``images/`` holds slides, ``masks/`` a TIFF of class ids or ``annotations/`` a ``.geojson``, ``.json`` or ``.xml``
    for each, with the same stem. PAIP 2019's layout, ``CASE.svs`` beside ``CASE_viable.tif``, does as well.

    Raises:
        InputError: slides lie among other images, or one cannot be read; a slide has no labels or two, or labels have
            no slide.
    """
    images = root / "images"
    if not images.is_dir():
        paip = not (root / "imagesTr").is_dir() and holds_cases(root)
        return tuple(Found(case.name, case.slide, case.viable) for case in find_cases(root)) if paip else ()
    files = sorted(path for path in images.iterdir() if not path.name.startswith("."))
    first = next((path for path in files if _looks_like_slide(path, is_pyramid)), None)
    if first is None:
        return ()
    # Beside pyramids, a tiled TIFF of one level is a slide too; else it is one of the images that are trained on whole.
    slides = {path.stem: path for path in files if _looks_like_slide(path, is_slide)}
    others = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path not in slides.values()]
    if others:
        open_slide(others[0]).close()  # says why it cannot be read
        raise InputError(
            f"{others[0]}: is an image, but {first.name} beside it is a slide; keep images and slides in data sets of "
            "their own"
        )
    labels: dict[str, Path] = {}
    for folder, suffixes in ((root / "masks", _TIFFS), (root / "annotations", _DRAWN)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(".") or not path.is_file():
                continue
            if path.suffix.lower() not in suffixes:
                raise InputError(
                    f"{path}: is none of {', '.join(suffixes)}, which slides' {folder.name} are; export it so"
                )
            if path.stem in labels:
                raise InputError(f"{path}: {labels[path.stem]} has the labels of the same slide; remove one of the two")
            if path.stem not in slides:
                raise InputError(f"{path}: has no slide in images/; add it or remove the file")
            labels[path.stem] = path
    for name, slide in slides.items():
        if name not in labels:
            raise InputError(
                f"{slide}: has no mask in masks/ and no file in annotations/ of its name; add one or remove the slide"
            )
    return tuple(Found(name, slides[name], labels[name]) for name in sorted(slides))


def label_names(found: Sequence[Found]) -> dict[str, int]:
    """Name the classes of slides where ``dataset.json`` does not: as PAIP 2019 does, or as annotations do.

    Raises:
        InputError: masks alone do not say what the classes are.
    """
    masks = [one.labels for one in found if not one.drawn]
    if masks and not all(path.stem.endswith("_viable") for path in masks):
        raise InputError(
            f"{masks[0]}: what its ids mean is not known; name the classes in dataset.json beside masks/, "
            '{"labels": {"background": 0, "tumour": 1}}'
        )
    if masks:
        return dict(PAIP_LABELS)
    annotations = [read_annotations(one.labels) for one in found]
    names = [name for name in class_names(annotations) if name != "background"]
    if not names:
        what = "tells a class" if any(map(len, annotations)) else "has an area"
        raise InputError(f"{found[0].labels.parent}: no annotation {what}; draw polygons with classes")
    return {"background": 0} | {name: at for at, name in enumerate(names, 1)}


def open_labels(
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    labels: Mapping[str, int],
    ignore: int | None = None,
    white: bool | None = None,
    legend: Legend = PLAIN,
) -> Labels:
    """Open the labels of a slide.

    Args:
        path: a TIFF of class ids, of the slide's size or a whole number of times smaller; or annotations.
        shape: (H, W) of the slide.
        labels: name to id: 0, 1, ... without gaps.
        ignore: id of pixels without a label; those of annotations have `UNLABELLED` where none is given.
        white: the mask holds 0 and 255; None looks.
        legend: what the classes of annotations stand for.

    Raises:
        InputError: the file cannot be read, the mask is of another size, or a class is not among the labels.
    """
    path = os.fspath(path)
    if Path(path).suffix.lower() not in _TIFFS:
        names = {**labels, IGNORE: UNLABELLED if ignore is None else ignore}
        return Drawing.of(read_annotations(path), names, shape, legend)
    from patchtree.io.slides.through_tifffile import TiffSlide

    file = TiffSlide(path)
    factor = _factor(shape, file.shape)
    if factor is None:
        raise InputError(
            f"{path}: a mask of {say_size(file.shape)}, but the slide has "
            f"{say_size(shape)}; export it at the slide's size, or a whole number of times smaller"
        )
    mask = Mask(file, shape, factor, len(labels), ignore, bool(white))
    if white is None and len(labels) == 2 and ignore != _WHITE and file.dtype == np.uint8:
        mask = replace(mask, white=mask.top() == _WHITE)
    return mask


def _factor(shape: tuple[int, int], smaller: tuple[int, int]) -> int | None:
    """Give how many times smaller a mask is than a slide, if that is a whole number."""
    factor = max(1, round(shape[0] / smaller[0]))
    fits = all(part in (whole // factor, -(-whole // factor)) for whole, part in zip(shape, smaller, strict=True))
    return factor if fits else None


def _looks_like_slide(path: Path, look: Callable[[Path], bool]) -> bool:
    suffix = path.suffix.lower()
    unknown = suffix not in IMAGE_SUFFIXES and is_tiff(path)
    return suffix in SLIDE_SUFFIXES or ((suffix in _TIFFS or unknown) and look(path))
