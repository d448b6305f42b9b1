"""Data sets: folders of images and masks, found, checked and split. No pixels are kept and no torch is needed."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.channels import group_cases, read_channels
from patchtree.dataset_json import read_labels, read_legend, read_splits
from patchtree.errors import InputError, and_more, say_size
from patchtree.files import split_suffix
from patchtree.io.annotations.legend import IGNORE, PLAIN, Legend
from patchtree.io.images import IMAGE_SUFFIXES, VOLUME_SUFFIXES, image_size, is_volume, read_mask
from patchtree.io.slides import open_slide
from patchtree.io.volumes import read_grid, read_volume_mask, warn_elsewhere
from patchtree.slide_sets import UNLABELLED, find_slides, label_names

_JSON = "dataset.json"
_LAYOUTS = (("images", "masks"), ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"))
IMAGE_FOLDERS = tuple(images for images, _ in _LAYOUTS)
# More ids than this without names are no classes but numbered objects, or grey levels.
_MOST_UNNAMED = 32
_CHUNK = 1 << 24
# Ways to split that are looked at.
_SPLITS = 64


@dataclass(frozen=True)
class Pair:
    """An image and its mask, or its class.

    Attributes:
        name: what the two files have in common.
        image: the image, or its first channel.
        mask: class ids; the table of labels where the image has one class.
        channels: files of further channels, in order (nnU-Net's ``_0001`` and up).
        white: the mask file holds 0 and 255, which stand for the ids 0 and 1.
        label: the class of the whole image, see `patchtree.labelled`; None where there is a mask.
        slide: the image is a slide, and the mask may be annotations: both are read part by part, see
            `patchtree.slide_sets`.
        legend: what the classes of annotations stand for.
    """

    name: str
    image: Path
    mask: Path
    channels: tuple[Path, ...] = ()
    white: bool = False
    label: int | None = None
    slide: bool = False
    legend: Legend = PLAIN

    @property
    def ndim(self) -> int:
        """Give the number of spatial axes: 3 of a volume."""
        return 3 if is_volume(self.image) else 2

    def shape(self) -> tuple[int, ...]:
        """Give the image's ``(H, W)``, or the volume's ``(D, H, W)``, from the header.

        Raises:
            InputError: it cannot be read.
        """
        return read_shape(self.image)

    def read_image(self) -> NDArray[Any]:
        """Read the image, ``(H, W)`` or ``(H, W, C)``, or the volume, ``(D, H, W)`` or ``(D, H, W, C)``.

        Raises:
            InputError: a file cannot be read, or the channels' files differ in size or type.
        """
        return read_channels((self.image, *self.channels))

    def look(self) -> tuple[tuple[int, ...], str]:
        """Give the image's shape, (H, W, C) or (D, H, W, C), and its type; of a slide only the header is read.

        Raises:
            InputError: a file cannot be read.
        """
        if self.slide:
            with open_slide(self.image) as slide:
                return (*slide.shape, slide.channels), slide.dtype.name
        image = self.read_image()
        return image.shape if image.ndim > self.ndim else (*image.shape, 1), image.dtype.name

    def read_mask(self) -> NDArray[Any]:
        """Read the mask, ``(H, W)`` or ``(D, H, W)`` class ids.

        Raises:
            InputError: the file cannot be read.
        """
        ids = _read_ids(self.mask)
        return np.minimum(ids, 1).astype(np.uint8) if self.white else ids


@dataclass(frozen=True)
class DataSet:
    """Images with masks or classes, and what the ids mean.

    Attributes:
        root: the folder.
        pairs: sorted by name.
        labels: name to id, in the order of ids: 0, 1, ... without gaps.
        ignore: id of pixels without a label, or None.
    """

    root: Path
    pairs: tuple[Pair, ...]
    labels: dict[str, int]
    ignore: int | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def ndim(self) -> int:
        """Give the number of spatial axes of the images: 3 of volumes."""
        return self.pairs[0].ndim if self.pairs else 2

    @property
    def slides(self) -> bool:
        """Whether the images are slides."""
        return any(pair.slide for pair in self.pairs)


def find_data(
    root: str | os.PathLike[str], labels: Mapping[str, int] | None = None, ignore: int | None = None
) -> DataSet:
    """Find the images of a folder, their masks and the classes.

    Two layouts are known: ``images/`` and ``masks/`` with the same stems, and nnU-Net's ``imagesTr/CASE_0000.png`` (one
    file a channel) with ``labelsTr/CASE.png``, or ``imagesTs/`` and ``labelsTs/`` alone. Volumes lie as images do, also
    as ``imagesTr/CASE.nii.gz`` with all channels in one file. ``dataset.json`` names the classes:
    ``{"labels": {"background": 0, "tumour": 1, "ignore": 255}}``, ids 0, 1, ... without gaps, ``ignore`` being no
    class. Without it the ids in the masks are the classes.

    Masks of 0 and 255 alone, where 255 has no name, are read as 0 and 1, and a warning says so.

    Whole slides have their masks or annotations beside them, see `patchtree.slide_sets.find_slides`.

    >>> import tempfile
    >>> from patchtree.io.images import write_image, write_mask
    >>> root = Path(tempfile.mkdtemp())
    >>> for folder, write in (("images", write_image), ("masks", write_mask)):
    ...     (root / folder).mkdir()
    ...     write(root / folder / "a.png", np.eye(8, dtype=np.uint8))
    >>> find_data(root).labels
    {'background': 0, 'class 1': 1}

    Args:
        root: the folder.
        labels: class name to id, where no ``dataset.json`` names them; None takes what the masks hold.
        ignore: id of pixels without a label, beside `labels`.

    Raises:
        InputError: there is no such folder or layout, an image has no mask or a mask no image, ``dataset.json`` is
            damaged, or the ids in the masks make no list of classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give one with images/ and masks/ in it")
    named = read_labels(root / _JSON) or (labels and (dict(labels), ignore))
    if slides := find_slides(root):
        labels, ignore = named or (label_names(slides), None)
        if ignore is None and any(one.drawn for one in slides):
            ignore = UNLABELLED
        legend = read_legend(root / _JSON, [*labels, IGNORE])
        found = tuple(Pair(one.name, one.image, one.labels, slide=True, legend=legend) for one in slides)
        return DataSet(root, found, labels, ignore)
    pairs = _find_pairs(root)
    if not named:
        return _with_labels_found(root, pairs)
    labels, ignore = named
    dataset = DataSet(root, pairs, labels, ignore)
    binary = len(labels) == 2 and ignore != 255
    return _whitened(dataset) if binary and _all_ids(pairs) in ([0, 255], [255]) else dataset


def check_data(dataset: DataSet) -> None:
    """Look for what would spoil a training: sizes that differ, unknown ids, nothing but background.

    Headers of images and whole masks are read; pixels of images are not. A class that never occurs is a warning.

    Raises:
        InputError: names the first file that is at fault, and how many more are.
    """
    refuse(dataset, *survey_data(dataset))


def refuse(dataset: DataSet, problems: Sequence[str], pixels: Mapping[str, int]) -> None:
    """Refuse a data set for what was found by a survey of it.

    Raises:
        InputError: there are problems.
    """
    if problems:
        raise InputError(problems[0] + and_more(problems, "more such problems"))
    absent = [name for name, count in pixels.items() if not count]
    if absent:
        warnings.warn(f"{dataset.root}: no mask has a pixel of {', '.join(map(repr, absent))}", stacklevel=2)


def check_patch_size(shapes: Mapping[Path, Sequence[int]], patch_size: int) -> None:
    """Refuse patches that are larger than an image, before a model of them takes all memory.

    >>> check_patch_size({Path("a.png"): (9, 70), Path("b.png"): (7, 5)}, patch_size=16)
    Traceback (most recent call last):
    patchtree.errors.InputError: b.png: is 5 x 7 px, less than a patch of 16; leave it out, or give a smaller patch size

    Args:
        shapes: ``(H, W)`` of each image, or ``(D, H, W)``.
        patch_size: pixels on a side of a patch.

    Raises:
        InputError: the smallest image is smaller.
    """
    smallest = min(shapes, key=lambda image: max(shapes[image]), default=None)
    if smallest is not None and patch_size > max(shapes[smallest]):
        size = say_size(shapes[smallest], len(shapes[smallest]))
        raise InputError(
            f"{smallest}: is {size}, less than a patch of {patch_size}; leave it out, or give a smaller patch size"
        )


def survey_data(dataset: DataSet) -> tuple[list[str], dict[str, int]]:
    """List what would spoil a training, a line each, and count the pixels of each class.

    Headers of images and whole masks are read; pixels of images are not.
    """
    problems, pixels = [], np.zeros(len(dataset.labels), np.int64)
    for pair in dataset.pairs:
        try:
            problems += _check_pair(pair, dataset, pixels)
        except InputError as error:
            problems.append(str(error))
    if not problems and np.count_nonzero(pixels) < 2:
        what = repr(list(dataset.labels)[int(pixels.argmax())]) if pixels.any() else "ignored"
        problems.append(
            f"{dataset.root}: every pixel of every mask is {what}; there is nothing to learn from, check the masks"
        )
    return problems, {name: int(count) for name, count in zip(dataset.labels, pixels, strict=True)}


def split_data(dataset: DataSet, share: float = 0.2, seed: int = 0) -> tuple[DataSet, DataSet]:
    """Split into a part to train on and one to validate on.

    ``splits.json`` in the data set's folder, ``{"train": [names], "val": [names]}``, decides where there is one.
    Otherwise names are sorted by a hash of the seed and the name, and the first `share` of them, at least one, are for
    validation: the order of the files has no part in it, and the split is the same on every machine. Where a class
    would be in one part only, the first names after those that avoid it are; a class that a single mask has is to be
    trained on. Images with one class each are split class by class; of a class with one image nothing is held out.

    >>> pairs = tuple(Pair(name, Path(name), Path(name)) for name in "abcdefghij")
    >>> train, val = split_data(DataSet(Path("."), pairs, {"background": 0, "tumour": 1}))
    >>> len(train), [pair.name for pair in val.pairs]
    (8, ['f', 'g'])

    Raises:
        InputError: there is one image only, the share leaves nothing to train on, or ``splits.json`` is damaged or
            names an image that is not there.
    """
    path = dataset.root / "splits.json"
    if path.is_file():
        train, val = read_splits(path, {pair.name for pair in dataset.pairs})
    else:
        ranked = sorted(dataset.pairs, key=lambda pair: _rank(seed, pair.name))
        groups: dict[int | None, list[str]] = {}
        for pair in ranked:
            groups.setdefault(pair.label, []).append(pair.name)
        if max(map(len, groups.values())) < 2:
            one = "one image" if len(ranked) == 1 else "one image a class"
            raise InputError(
                f"{dataset.root}: {one} cannot be split to train and validate on; add another, or write "
                "splits.json with its name in both parts"
            )
        if not 0 < share < 1 or max(1, round(share * len(ranked))) >= len(ranked):
            raise InputError(f"a share of {share} of {len(ranked)} images leaves nothing to train on; give 0 to 1")
        train, val = [], []
        classes = _classes(dataset)
        for names in groups.values():
            count = min(max(1, round(share * len(names))), len(names) - 1)
            at = _first_held_out(names, count, classes)
            turned = names[at:] + names[:at]
            train, val = train + turned[count:], val + turned[:count]
    return choose(dataset, train), choose(dataset, val)


def _classes(dataset: DataSet) -> dict[str, set[int]]:
    """Give the ids that each mask holds; nothing where masks are read part by part, or cannot be read."""
    try:
        return {
            pair.name: {min(label, 1) if pair.white else label for label in count_ids(pair.mask)} - {dataset.ignore}
            for pair in dataset.pairs
            if pair.label is None and not pair.slide
        }
    except InputError:  # which is told elsewhere
        return {}


def _first_held_out(names: list[str], count: int, classes: Mapping[str, set[int]]) -> int:
    """Choose the first of `count` names to hold out, such that most classes are trained on, and then validated on."""
    total = Counter(label for name in names for label in classes.get(name, ()))
    best, at = (-1, -1), 0
    for first in range(min(len(names), _SPLITS) if total else 0):
        turned = names[first:] + names[:first]
        held = Counter(label for name in turned[:count] for label in classes[name])
        trained = sum(held[label] < masks for label, masks in total.items())
        score = trained, sum(0 < held[label] < masks for label, masks in total.items())
        if score > best:
            best, at = score, first
        if best == (len(total), sum(masks > 1 for masks in total.values())):
            break
    return at


def choose(dataset: DataSet, names: Iterable[str]) -> DataSet:
    """Take the part of a data set that has these names.

    Raises:
        InputError: there is no image of a name.
    """
    wanted = set(names)
    missing = sorted(wanted - {pair.name for pair in dataset.pairs})
    if missing:
        raise InputError(f"{dataset.root}: has no image {missing[0]!r}{and_more(missing)}; check the data set's folder")
    return replace(dataset, pairs=tuple(pair for pair in dataset.pairs if pair.name in wanted))


def read_shape(path: Path) -> tuple[int, ...]:
    """Read an image's ``(H, W)`` or a volume's ``(D, H, W)`` from its header.

    Raises:
        InputError: it cannot be read.
    """
    return read_grid(path).shape if is_volume(path) else image_size(path)


def count_ids(path: Path) -> dict[int, int]:
    """Count the pixels of each id in a mask file; what was counted is remembered while the file stays the same.

    Raises:
        InputError: the file is no mask.
    """
    try:
        state = path.stat()
    except OSError:
        return _count_ids(path, 0, 0)
    return _count_ids(path, state.st_size, state.st_mtime_ns)


def _find_pairs(root: Path) -> tuple[Pair, ...]:
    layouts = [layout for layout in _LAYOUTS if (root / layout[0]).is_dir()]
    if not layouts:
        raise InputError(f"{root}: has neither images/ nor imagesTr/; put images in images/, masks in masks/")
    images, masks = (root / name for name in layouts[0])
    if not masks.is_dir():
        hint = ", or learn labels.csv with --task classify" if (root / "labels.csv").is_file() else ""
        raise InputError(f"{root}: has {images.name}/ but no {masks.name}/; put one mask an image there{hint}")
    mask_files = _by_stem(masks)
    found: dict[str, tuple[Path, ...]] = {}
    files = _by_stem(images)
    # The Medical Segmentation Decathlon's volumes have all channels in one file, and no number.
    whole = all(map(is_volume, files.values())) and files.keys() <= mask_files.keys()
    if images.name == "images" or whole:
        found = {stem: (path,) for stem, path in files.items()}
    else:
        found = group_cases(files.values())
    if not found:
        raise InputError(f"{images}: has no images ({', '.join(IMAGE_SUFFIXES + VOLUME_SUFFIXES)}); put some there")
    alone = sorted(found.keys() - mask_files.keys())
    if alone:
        spare = sorted(mask_files.keys() - found.keys())
        there = f" ({mask_files[spare[0]].name} there has no image)" if spare else ""
        raise InputError(
            f"{found[alone[0]][0]}: has no mask in {masks.name}/{and_more(alone)}{there}; name it {alone[0]} with any "
            "suffix, or remove the image"
        )
    alone = sorted(mask_files.keys() - found.keys())
    if alone:
        raise InputError(
            f"{mask_files[alone[0]]}: has no image in {images.name}/{and_more(alone)}; add it or remove the mask"
        )
    counts = {name: len(paths) for name, paths in found.items()}
    most = max(counts.values())
    fewer = [name for name, count in counts.items() if count < most]
    if fewer:
        raise InputError(
            f"{found[fewer[0]][-1]}: {fewer[0]} has {counts[fewer[0]]} channels, others {most}; add the rest"
        )
    used = [path for name in sorted(found) for path in (*found[name], mask_files[name])]
    other = next((path for path in used if is_volume(path) != is_volume(used[0])), None)
    if other is not None:
        kinds = [("a volume" if is_volume(path) else "an image") for path in (other, used[0])]
        raise InputError(f"{other}: is {kinds[0]} and {used[0].name} {kinds[1]}; keep them in folders of their own")
    return tuple(Pair(name, found[name][0], mask_files[name], found[name][1:]) for name in sorted(found))


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        known = path.suffix.lower() in IMAGE_SUFFIXES or is_volume(path)
        if not known or path.name.startswith(".") or not path.is_file():
            continue
        stem, _ = split_suffix(path)
        if stem in found:
            raise InputError(f"{path}: has the same stem as {found[stem].name}; rename one of the two")
        found[stem] = path
    return found


def _with_labels_found(root: Path, pairs: tuple[Pair, ...]) -> DataSet:
    ids = _all_ids(pairs)
    if ids in ([0, 255], [255]):
        return _whitened(DataSet(root, pairs, {"background": 0, "class 1": 1}))
    top = max(ids[-1], 1)
    if ids[0] < 0 or top > _MOST_UNNAMED or set(range(1, top)) - set(ids):
        shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
        named = '{"labels": {"background": 0, "tumour": 1, "ignore": 255}}'
        if ids == list(range(top + 1)):
            raise InputError(
                f"{root}: the masks hold ids up to {top}, more than {_MOST_UNNAMED} classes without names; name all in "
                f"dataset.json, {named}, or if they number objects of one class, make them 1"
            )
        raise InputError(
            f"{root}: the masks hold the ids {shown}, which are no classes 0, 1, 2, ...; renumber them so (objects "
            "with numbers are of one class), or if some between are absent or one is to be ignored, name all in "
            f"dataset.json, {named}"
        )
    return DataSet(root, pairs, {"background": 0} | {f"class {label}": label for label in range(1, top + 1)})


def _whitened(dataset: DataSet) -> DataSet:
    name = list(dataset.labels)[1]
    warnings.warn(f"{dataset.root}: the masks hold 0 and 255; 255 is read as class 1, {name!r}", stacklevel=3)
    return replace(dataset, pairs=tuple(replace(pair, white=True) for pair in dataset.pairs))


def _check_pair(pair: Pair, dataset: DataSet, pixels: NDArray[np.int64]) -> list[str]:
    """List what is wrong with a pair, and add its pixels a class."""
    size, ndim = pair.shape(), pair.ndim
    for path in (*pair.channels, pair.mask):
        other = read_shape(path)
        if other != size:
            sizes = say_size(other, ndim), say_size(size, ndim)
            return [f"{path}: {sizes[0]}, but {pair.image.name} has {sizes[1]}; make them equal"]
    if ndim == 3:
        warn_elsewhere((pair.image, *pair.channels, pair.mask))
    problems = []
    for label, count in count_ids(pair.mask).items():
        label = min(label, 1) if pair.white else label
        if label == dataset.ignore:
            continue
        if 0 <= label < len(pixels):
            pixels[label] += count
        else:
            problems.append(
                f"{pair.mask}: holds id {label}, which no label has; add it to dataset.json or mend the mask"
            )
    return problems[:1]


def _read_ids(path: Path) -> NDArray[Any]:
    """Read class ids, of an image or of a volume."""
    return read_volume_mask(path) if is_volume(path) else read_mask(path)


def _all_ids(pairs: tuple[Pair, ...]) -> list[int]:
    return sorted(set().union(*(count_ids(pair.mask) for pair in pairs)))


@lru_cache(maxsize=1 << 16)
def _count_ids(path: Path, size: int, mtime: int) -> dict[int, int]:
    mask = _read_ids(path)
    if mask.dtype.itemsize <= 2 and mask.dtype.kind == "u":
        flat = mask.reshape(-1)
        # bincount turns its input into 64-bit integers.
        parts = [np.bincount(flat[at : at + _CHUNK], minlength=1) for at in range(0, flat.size, _CHUNK)]
        counts = np.zeros(max(map(len, parts)), np.int64)
        for part in parts:
            counts[: len(part)] += part
        return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
    labels, numbers = np.unique(mask, return_counts=True)
    return {int(label): int(number) for label, number in zip(labels, numbers, strict=True)}


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
