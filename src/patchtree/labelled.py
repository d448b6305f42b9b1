"""Data sets of images with one class each: a folder of images and a table of labels. No torch is needed."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from patchtree.datasets import DataSet, Pair
from patchtree.errors import InputError, and_more
from patchtree.io.images import image_size, list_images
from patchtree.tables import read_table, refuse_more

TABLE = "labels.csv"
_COLUMNS = ("name", "label")


def find_labelled(root: str | os.PathLike[str], labels: Mapping[str, int] | None = None) -> DataSet:
    """Find the images of a folder and the class that ``labels.csv`` gives each.

    The table has a line of column names, ``name,label``: a name is an image's in ``images/``, with or without suffix, a
    label a class's name. Commas, semicolons or tabs separate, other columns are not looked at.

    >>> import tempfile
    >>> import numpy as np
    >>> from patchtree.io.images import write_image
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "images").mkdir()
    >>> for name in "ab":
    ...     write_image(root / "images" / f"{name}.png", np.eye(8, dtype=np.uint8))
    >>> _ = (root / "labels.csv").write_text("name,label\\na,tumour\\nb,normal\\n")
    >>> dataset = find_labelled(root)
    >>> dataset.labels, [pair.label for pair in dataset.pairs]
    ({'normal': 0, 'tumour': 1}, [1, 0])

    Args:
        root: the folder.
        labels: class names to ids; None: the names in the table, sorted.

    Raises:
        InputError: there is no such folder or table, the table is damaged, an image has no label or several, a line
            names no image, or a class that is none of `labels`.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give one with images/ and {TABLE} in it")
    if not (root / "images").is_dir():
        raise InputError(f"{root}: has no images/; put images there and their labels in {TABLE}")
    images: dict[str, Path] = {}
    for path in list_images(root / "images"):
        if path.stem in images:
            raise InputError(f"{path}: has the same stem as {images[path.stem].name}; rename one of the two")
        images[path.stem] = path
    table = root / TABLE
    rows = _read_table(table, images)
    missing = [path for stem, path in images.items() if stem not in rows]
    if missing:
        raise InputError(f"{missing[0]}: has no label in {TABLE}{and_more(missing)}; add a line or remove the image")
    known = labels or {name: label for label, name in enumerate(sorted(set(rows.values())))}
    unknown = sorted(set(rows.values()) - known.keys())
    if unknown:
        raise InputError(f"{table}: holds the label {unknown[0]!r}, but the classes are {', '.join(known)}; mend it")
    pairs = tuple(Pair(stem, images[stem], table, label=known[rows[stem]]) for stem in sorted(rows))
    return DataSet(root, pairs, dict(known))


def survey_labelled(dataset: DataSet) -> tuple[list[str], dict[str, int]]:
    """List what would spoil a training, a line each, and count the images of each class; headers of images are read."""
    problems = []
    for pair in dataset.pairs:
        try:
            image_size(pair.image)
        except InputError as error:
            problems.append(str(error))
    counts = Counter(pair.label for pair in dataset.pairs)
    if len(counts) < 2:
        only = next(name for name, label in dataset.labels.items() if label in counts)
        problems.append(f"{dataset.root / TABLE}: every image is {only!r}; there is nothing to learn from, check it")
    return problems, {name: counts[label] for name, label in dataset.labels.items()}


def check_labelled(dataset: DataSet) -> None:
    """Look for what would spoil a training; a class with one image, which can only be trained on, is a warning.

    Raises:
        InputError: names the first file that is at fault, and how many more are.
    """
    problems, counts = survey_labelled(dataset)
    if problems:
        raise InputError(problems[0] + and_more(problems, "more such problems"))
    alone = [name for name, count in counts.items() if count == 1]
    if alone and not (dataset.root / "splits.json").is_file():
        warnings.warn(
            f"{dataset.root / TABLE}: one image each is {', '.join(map(repr, alone))}; it is trained on, "
            "and has no part in the score",
            stacklevel=2,
        )


def _read_table(path: Path, images: Mapping[str, Path]) -> dict[str, str]:
    """Read the label of each image, by stem."""
    if not path.exists():
        raise InputError(f"{path}: no such file; write lines of name,label below a line with these words")
    rows, first = read_table(path)
    columns = rows.fieldnames or ()
    if any(columns.count(column) != 1 for column in _COLUMNS):
        raise InputError(f"{path}: the first line is {first!r}; it must name the columns {','.join(_COLUMNS)}")
    found: dict[str, str] = {}
    for row in rows:
        name, label = ((row[column] or "").strip() for column in _COLUMNS)
        where = f"{path}: line {rows.line_num}"
        refuse_more(where, row)
        if not name and not label:
            continue
        if not name or not label:
            raise InputError(f"{where} has no {'label' if name else 'name'}; add it or delete the line")
        stem = name if name in images else Path(name).stem
        if stem not in images or name not in (stem, images[stem].name):
            raise InputError(f"{where}: there is no image {name!r} in images/; add it or delete the line")
        if stem in found:
            raise InputError(f"{where}: {name!r} has a label already; delete one of its lines")
        found[stem] = label
    return found
