"""Images with one class each, through the real command line: train, resume, predict, evaluate, info."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchtree.io.images import write_image
from patchtree.runs import load_config

from .conftest import Result, Run, Trained, run_process

CLASSIFY = ("--task", "classify", "--patch-size", 8, "--budget", 24, "--workers", 0)


def write_labelled(root: Path, counts: tuple[int, int] = (10, 5), seed: int = 0) -> Path:
    """Stripes and noise of the same grey, 48 x 64, in images/, and labels.csv."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = ["name,label"]
    for label, count in zip(("stripes", "noise"), counts, strict=True):
        for number in range(count):
            image = rng.integers(0, 255, (48, 64, 3))
            if label == "stripes":
                image[:] = 255 * ((np.arange(48) + number) // 4 % 2)[:, None, None] * rng.uniform(0.6, 1)
            write_image(root / "images" / f"{label}{number}.png", image.astype(np.uint8))
            lines.append(f"{label}{number}{'.png' * (number % 2)},{label}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("classified")
    data = write_labelled(root / "data")
    result = run_process("train", data, "--out", root / "run", *CLASSIFY, "--max-epochs", 8, "--batch-size", 4)
    assert result.code == 0, result
    return Trained(data, root / "run", result)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_is_made(classified: Trained) -> None:
    said = classified.result
    assert said.out == ""
    assert "12 images of 64 x 48 px to train on, 3 to validate on; noise, stripes" in said.err
    assert "24 of 8 x 8 px an image, by residual; seen whole" in said.err
    assert "model: patchtree:tiny, " in said.err
    config = load_config(classified.run)
    assert json.loads((classified.run / "config.json").read_text())["task"] == config.task == "classify"
    assert config.labels == {"noise": 0, "stripes": 1}
    # A fifth of each class.
    assert sorted(name.rstrip("0123456789") for name in config.val) == ["noise", "stripes", "stripes"]
    assert config.patcher_for((48, 64)).budget == config.patcher_for((480, 640)).budget == 24
    rows = read_csv(classified.run / "metrics.csv")
    assert len(rows) == 8
    assert {"loss", "balanced accuracy", "accuracy", "macro f1", "recall noise", "recall stripes"} <= rows[0].keys()
    assert float(rows[-1]["balanced accuracy"]) == 1
    assert said.err.splitlines()[-1].startswith("best balanced accuracy 1.000 at step ")
