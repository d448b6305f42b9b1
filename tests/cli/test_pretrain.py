"""`patchtree pretrain`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from patchtree.io.images import write_image

from .conftest import Run

OPTIONS = ("--max-epochs", 1, "--patch-size", 8, "--budget", 16, "--workers", 0)


def test_a_folder_of_images_becomes_weights(tmp_path: Path, run: Run) -> None:
    (tmp_path / "scans").mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        write_image(tmp_path / "scans" / f"{name}.png", rng.integers(0, 255, (64, 64, 3), np.uint8))
    done = run("pretrain", tmp_path / "scans", "--out", tmp_path / "run", *OPTIONS)
    assert (done.code, done.out) == (0, "")
    assert "2 images of 64 x 64 px to train on, 1 to validate on; no labels" in done.err
    assert "best explained variance" in done.err
    told = run("info", tmp_path / "run", "--json")
    assert told.json[0]["task"] == "pretrain"
    assert told.json[0]["explained_variance"] <= 1
    assert told.json[0]["labels"] is None
    refused = run("predict", tmp_path / "run", tmp_path / "scans", "--out", tmp_path / "masks")
    assert refused.failed_with(str(tmp_path / "run"), "was pretrained and knows no classes")


def test_a_folder_without_images_is_told(tmp_path: Path, run: Run) -> None:
    assert run("pretrain", tmp_path, "--out", tmp_path / "run").failed_with(str(tmp_path), "without images")
