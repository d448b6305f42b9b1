from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patchtree import InputError
from patchtree.io import probabilities
from patchtree.io.probabilities import write_probabilities
from patchtree.io.slides import open_slide

zarr = pytest.importorskip("zarr")

LABELS = ("background", "tumour", "stroma")
VALUES = np.random.default_rng(0).random((1300, 1777, 3)).astype(np.float32)
VALUES[:512, :512] = (0, 1, 0)


def read(y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
    return VALUES[y0:y1, x0:x1]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probabilities, "BLOCK", 512)


def digest(folder: Path) -> list[tuple[str, str]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(str(file.relative_to(folder)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


def test_levels_are_means(tmp_path: Path) -> None:
    path = tmp_path / "p.zarr"
    write_probabilities(path, VALUES.shape[:2], read, LABELS, {"tumour": (200, 10, 0)}, mpp=(0.5, 0.25))
    group = zarr.open_group(path, mode="r")
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    assert [one["label"] for one in ome["omero"]["channels"]] == list(LABELS)
    assert [one["color"] for one in ome["omero"]["channels"]] == ["FFFFFF", "C80A00", "FFFFFF"]
    (scales,) = ome["multiscales"]
    assert [axis["name"] for axis in scales["axes"]] == ["c", "y", "x"]
    assert scales["datasets"][2]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.0, 2.0, 1.0]},
        {"type": "translation", "translation": [0.0, 0.75, 0.375]},
    ]
    level = np.rint(VALUES * np.float32(255)).astype(np.uint8)
    for dataset in scales["datasets"]:
        array = group[dataset["path"]]
        assert array.metadata.dimension_names == ("c", "y", "x")
        np.testing.assert_array_equal(np.moveaxis(array[:], 0, -1), level)
        padded = np.pad(level, [(0, level.shape[0] % 2), (0, level.shape[1] % 2), (0, 0)], mode="edge").astype(float)
        sides = padded.shape[0] // 2, 2, padded.shape[1] // 2, 2, 3
        level = np.floor(padded.reshape(sides).mean((1, 3)) + 0.5).astype(np.uint8)
    assert level.shape == (163, 223, 3)


def test_a_slide_reader_opens_it(tmp_path: Path) -> None:
    write_probabilities(tmp_path / "p.zarr", VALUES.shape[:2], read, LABELS, mpp=(0.5, 0.25))
    with open_slide(tmp_path / "p.zarr") as slide:
        assert slide.shape == VALUES.shape[:2]
        assert slide.mpp == (0.5, 0.25)
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
        np.testing.assert_allclose(slide.read(0, 500, 500, 600, 600) / 255, VALUES[500:600, 500:600], atol=0.5001 / 255)


def test_the_same_values_give_the_same_bytes_and_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "p.zarr"
    write_probabilities(path, (700, 600), read, LABELS)
    first = digest(path)
    (tmp_path / ".p.zarr.new").mkdir()
    (tmp_path / ".p.zarr.new" / "junk").touch()
    write_probabilities(path, (700, 600), read, LABELS)
    assert digest(path) == first
    assert [file.name for file in tmp_path.iterdir()] == ["p.zarr"]


def test_each_block_is_asked_for_once(tmp_path: Path) -> None:
    asked = []

    def watched(*box: int) -> NDArray[Any]:
        asked.append(box)
        return read(*box)

    write_probabilities(tmp_path / "p.zarr", (1100, 600), watched, LABELS)
    assert sorted(asked) == [(y, x, min(y + 512, 1100), min(x + 512, 600)) for y in (0, 512, 1024) for x in (0, 512)]


def test_what_goes_wrong_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "p.zarr"
    with pytest.raises(InputError, match=r"floats of shape \(8, 8, 3\), not float32 of \(8, 8, 2\)"):
        write_probabilities(path, (8, 8), lambda *box: read(*box)[..., :2], LABELS)
    for bad in (2, -0.5, np.nan):
        with pytest.raises(InputError, match="must lie in 0 to 1"):
            write_probabilities(path, (8, 8), lambda *box, bad=bad: read(*box) * np.float32(bad), LABELS)
    with pytest.raises(InputError, match="there is no folder"):
        write_probabilities(tmp_path / "none" / "p.zarr", (8, 8), read, LABELS)
    assert list(tmp_path.iterdir()) == []
    path.mkdir()
    (path / "thesis.txt").touch()
    with pytest.raises(InputError, match="no Zarr store, so it is not replaced"):
        write_probabilities(path, (8, 8), read, LABELS)
    assert (path / "thesis.txt").is_file()
