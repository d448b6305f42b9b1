"""What the JSON files in a data set's folder say: the classes, what annotations stand for, and who is held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchtree.errors import InputError, and_more
from patchtree.io.annotations.legend import IGNORE, Legend

_TOP_ID = 65535  # what a mask file holds


def read_labels(path: Path) -> tuple[dict[str, int], int | None] | None:
    """Read nnU-Net's labels: the classes by id, and the id to ignore; None without the file.

    The Medical Segmentation Decathlon's, ``{"0": "background", "1": "tumour"}``, are the same the other way round.

    Raises:
        InputError: the file is damaged, or its ids make no list of classes.
    """
    if not path.exists():
        return None
    labels = _read_json(path).get("labels")
    wanted = '{"labels": {"background": 0, "tumour": 1}}'
    if not isinstance(labels, dict) or not labels:
        raise InputError(f"{path}: has no labels; write {wanted}")
    if all(isinstance(name, str) and label.isdecimal() for label, name in labels.items()):
        labels = {name: int(label) for label, name in labels.items()}
    for name, label in labels.items():
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= _TOP_ID:
            raise InputError(
                f"{path}: label {name!r} has the id {label!r}; write a number of 0 to {_TOP_ID}, as in {wanted}"
            )
    classes = dict(sorted(labels.items(), key=lambda item: item[1]))
    ignore = classes.pop(IGNORE, None)
    if list(classes.values()) != list(range(len(classes))) or len(classes) < 2 or ignore in classes.values():
        raise InputError(
            f"{path}: the classes have the ids {list(classes.values())}; number two or more from 0 without gaps, "
            "and give 'ignore' an id of its own"
        )
    return classes, ignore


def read_legend(path: Path, labels: Sequence[str]) -> Legend:
    """Read what the classes of annotations stand for, and their order of drawing; there need be neither.

    Raises:
        InputError: the file is damaged, or names what is none of the labels.
    """
    parts = _read_json(path) if path.exists() else {}
    names, order = parts.get("annotations", {}), parts.get("draw_order", [])
    wanted = '{"annotations": {"_0": "tumour", "_1": "tumour"}, "draw_order": ["tumour", "necrosis"]}'
    if not isinstance(names, dict) or not isinstance(order, list):
        raise InputError(f"{path}: annotations and draw_order are none; write them as in {wanted}")
    for label in (*names.values(), *order):
        if label not in labels:
            raise InputError(
                f"{path}: annotations or draw_order have {label!r}, which is none of the labels "
                f"({', '.join(labels)}); write them as in {wanted}"
            )
    if len(set(order)) < len(order):
        raise InputError(f"{path}: draw_order has a label twice; give each one place, as in {wanted}")
    return Legend(tuple(names.items()), tuple(order))


def read_splits(path: Path, known: set[str]) -> tuple[list[str], list[str]]:
    """Read the names of the images to train on, and of those to validate on.

    Raises:
        InputError: the file is damaged, or names an image that is not known.
    """
    parts = _read_json(path)
    for key in ("train", "val"):
        names = parts.get(key)
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise InputError(f'{path}: has no names under {key!r}; write {{"train": ["a", "b"], "val": ["c"]}}')
        unknown = sorted(set(names) - known)
        if unknown:
            raise InputError(
                f"{path}: names {unknown[0]!r}{and_more(unknown)}, of which there is no image; mend the names"
            )
    return parts["train"], parts["val"]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); mend or remove it") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a JSON {type(values).__name__}, not an object {{...}}; mend or remove it")
    return values
