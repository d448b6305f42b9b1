"""A validation is of whole images at several budgets, and prediction takes the one that suits them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from patchtree.budget import FRACTIONS
from patchtree.cli.info import describe_run
from patchtree.datasets import choose, find_data
from patchtree.inference import load
from patchtree.io.images import write_image, write_mask
from patchtree.metrics import confusion, mean_dice
from patchtree.runs import load_config, weights_metadata
from patchtree.training import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of bright blots."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir()
    for at in range(6):
        mask = np.zeros((160, 192), np.uint8)
        for y, x in rng.integers(0, 140, (6, 2)):
            mask[y : y + 20, x : x + 20] = 1
        image = (mask * 120 + rng.integers(0, 40, mask.shape)).astype(np.uint8)
        write_image(root / "images" / f"{at}.png", image)
        write_mask(root / "masks" / f"{at}.png", mask)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    lines: list[str] = []
    out = tmp_path_factory.mktemp("out") / "run"
    options = {"max_epochs": 4, "patch_size": 8, "window": 64, "workers": 0, "accelerator": "cpu"}
    return train(data, out, **options, progress=False, report=lines.append), lines


def test_prediction_takes_the_budget_that_was_found(run: tuple[Path, list[str]]) -> None:
    out, lines = run
    config, about = load_config(out), weights_metadata(out)
    fraction = float(about["fraction"])
    assert load(out, "cpu").config.density == fraction * config.density
    assert describe_run(str(out))["pixels_a_patch"] == round(1 / (fraction * config.density))
    assert about["dice"] == about[f"dice at {fraction:g}"]
    found = [line for line in lines if line.startswith("prediction:")]
    assert len(found) == 1
    assert f" {round(fraction * config.options['budget'])} patches" in found[0]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_scores_are_those_of_the_run_s_predictions(run: tuple[Path, list[str]], data: Path, fraction: float) -> None:
    out, _ = run
    predictor = load(out, "cpu", smooth=False)
    config = replace(predictor.config, density=fraction * load_config(out).density)
    table = torch.zeros(2, 2, dtype=torch.float64)
    for pair in choose(find_data(data), config.val).pairs:
        ids = torch.from_numpy(replace(predictor, config=config)(pair.read_image())).long()
        table += confusion(ids, torch.eye(2)[pair.read_mask().astype(int)])
    assert float(weights_metadata(out)[f"dice at {fraction:g}"]) == pytest.approx(mean_dice(table), abs=1e-9)


def test_every_validation_tells_of_each_budget(run: tuple[Path, list[str]]) -> None:
    with (run[0] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        scores = {fraction: float(row[f"dice at {fraction:g}"]) for fraction in FRACTIONS}
        assert float(row["dice"]) == scores[float(row["fraction"])] >= max(scores.values()) - 0.006


def test_a_budget_that_was_asked_for_is_kept(data: Path, tmp_path: Path) -> None:
    options = {"max_epochs": 1, "patch_size": 8, "budget": 100, "window": 64, "workers": 0, "accelerator": "cpu"}
    lines: list[str] = []
    train(data, tmp_path / "run", **options, progress=False, report=lines.append)
    assert load_config(tmp_path / "run").patcher_for((160, 192)).budget == 100
    assert not [line for line in lines if line.startswith("prediction:")]
    assert "fraction" not in weights_metadata(tmp_path / "run")
