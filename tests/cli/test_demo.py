from __future__ import annotations

import json
import socket
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from patchtree.datasets import find_data, split_data
from patchtree.io.images import read_image, read_mask

from .conftest import Run

demo = import_module("patchtree.cli.demo")  # the name in the package is the command's


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be fetched; sockets between processes work."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX, "the demo must not use the network"
        connect(self, address)

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_the_whole_job(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = run("demo", "--out", out, "--max-time", "00:00:05", "--json")
    assert result.code == 0, result.err
    figures = result.json
    for path in (*figures["patches"]["files"], figures["picture"], out / "masks" / "test.png", out / "README.txt"):
        assert Path(path).is_file()
    image, mask = read_image(out / "test" / "images" / "test.png"), read_mask(out / "masks" / "test.png")
    assert mask.shape == image.shape[:2]
    assert 0 <= figures["test"]["classes"]["DAB stain"]["dice"] <= 1
    height, width, channels = read_image(out / "demo.png").shape
    assert (height, channels) == (224 * 3 + 144, 3)
    assert width == 3 * (280 * 3 + 24) + 24
    # A second demo replaces the first; anything else stays.
    (out / "README.txt").write_text("my notes")
    assert run("demo", "--out", out).failed_with("no demo wrote", "--out")
    assert (out / "demo.png").is_file()


def test_no_pixel_is_both_trained_on_and_tested(tmp_path: Path) -> None:
    seen = np.zeros((512, 512), int)
    for y0, x0, y1, x1 in demo._PARTS.values():
        seen[y0:y1, x0:x1] += 1
    assert (seen == 1).all()
    demo._write_data(tmp_path)
    dataset = find_data(tmp_path / "data")
    assert [[pair.name for pair in part.pairs] for part in split_data(dataset)] == [["train"], ["val"]]
    assert dataset.labels == {"unstained": 0, "DAB stain": 1}
    assert json.loads((tmp_path / "test" / "dataset.json").read_text()) == {"labels": dataset.labels}


def test_the_label_marks_the_brown_stain() -> None:
    image = skimage.data.immunohistochemistry()
    labels = demo.stain_labels(image)
    brown = image[labels == 1].mean(0)
    rest = image[labels == 0].mean(0)
    assert brown[0] - brown[2] > 40 > rest[0] - rest[2] + 30
    assert 0.4 < labels.mean() < 0.6


def test_a_tint_keeps_what_is_outside() -> None:
    image = np.full((20, 30, 3), 200, np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 5:10] = 1
    tinted = demo.tint(image, mask)
    assert tinted.shape == (60, 90, 3)
    changed = (tinted != 200).any(-1)
    np.testing.assert_array_equal(changed, mask.repeat(3, 0).repeat(3, 1) == 1)
    assert tinted[15, 20].tolist() == [0, 158, 115]
    assert tinted[20, 20].tolist() != [0, 158, 115]
