from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from patchtree.datasets import split_data
from patchtree.errors import InputError
from patchtree.io.images import write_image
from patchtree.labelled import check_labelled, find_labelled


def write(root: Path, rows: dict[str, str], head: str = "name,label", comma: str = ",") -> Path:
    (root / "images").mkdir()
    for name in rows:
        write_image(root / "images" / f"{name}.png", np.eye(8, dtype=np.uint8))
    lines = [head, *(f"{name}{comma}{label}" for name, label in rows.items())]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def test_the_table_may_be_as_spreadsheets_write_it(tmp_path: Path) -> None:
    root = write(tmp_path, {"b": "two; or so", "a.1": "one"})
    text = "\ufeffid\tlabel\tname\r\n1\tone\ta.1\r\n2\t two; or so \tb.png\r\n\t\t\r\n"
    (root / "labels.csv").write_text(text, encoding="utf-8", newline="")
    dataset = find_labelled(root)
    assert dataset.labels == {"one": 0, "two; or so": 1}
    assert [(pair.name, pair.label) for pair in dataset.pairs] == [("a.1", 0), ("b", 1)]


def test_ids_are_those_that_a_run_knows(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": "y", "b": "x"})
    known = {"x": 0, "other": 1, "y": 2}
    dataset = find_labelled(root, known)
    assert (dataset.labels, [pair.label for pair in dataset.pairs]) == (known, [2, 0])
    with pytest.raises(InputError, match=r"labels.csv: holds the label 'y', but the classes are x, z; mend it"):
        find_labelled(root, {"x": 0, "z": 1})


def test_each_class_is_split(tmp_path: Path) -> None:
    names = {f"{label}{number}": label for label, count in (("x", 20), ("y", 3), ("z", 1)) for number in range(count)}
    dataset = find_labelled(write(tmp_path, names))
    with pytest.warns(UserWarning, match="one image each is 'z'; it is trained on"):
        check_labelled(dataset)
    train, val = split_data(dataset)
    assert Counter(pair.label for pair in val.pairs) == {0: 4, 1: 1}
    assert Counter(pair.label for pair in train.pairs) == {0: 16, 1: 2, 2: 1}
    assert split_data(dataset, seed=1)[1] != val
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["x0", "y0"], "val": ["z0"]}))
    assert [pair.name for pair in split_data(dataset)[1].pairs] == ["z0"]


def test_two_images_of_one_stem(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": "x", "b": "y"})
    write_image(root / "images" / "a.tif", np.zeros((8, 8), np.uint8))
    with pytest.raises(InputError, match="has the same stem as a"):
        find_labelled(root)
