"""A validation is of whole images at several budgets, and prediction takes the one that suits them."""

from __future__ import annotations

import csv
import subprocess
import sys
import textwrap
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
from patchtree.models.choose import build_model
from patchtree.runs import load_config, save_weights, weights_metadata
from patchtree.tasks import Task
from patchtree.training import train
from untrained import untrained_run


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


def test_prediction_takes_the_fraction_that_the_weights_are_best_with(tmp_path: Path) -> None:
    out = untrained_run(tmp_path / "run")
    assert load(out, "cpu").config.density == load_config(out).density
    weights = load(out, "cpu").model.state_dict()
    save_weights(out, weights, {"fraction": "0.5"})
    assert load(out, "cpu").config.density == load_config(out).density / 2
    assert describe_run(str(out))["pixels_a_patch"] == round(2 / load_config(out).density)


def test_a_training_says_with_how_many_patches_prediction_is(run: tuple[Path, list[str]]) -> None:
    out, lines = run
    config, about = load_config(out), weights_metadata(out)
    fraction = float(about["fraction"])
    assert about["dice"] == about[f"dice at {fraction:g}"]
    found = [line for line in lines if line.startswith("prediction:")]
    assert len(found) == 1
    assert f" {round(fraction * config.options['budget'])} patches" in found[0]


def check_scores(out: Path, data: Path, fraction: float) -> None:
    """What the best validation says of a fraction is what a predictor reaches with it on the same images."""
    predictor = load(out, "cpu", smooth=False)
    config = replace(predictor.config, density=fraction * load_config(out).density)
    table = torch.zeros(2, 2, dtype=torch.float64)
    for pair in choose(find_data(data), config.val).pairs:
        ids = torch.from_numpy(replace(predictor, config=config)(pair.read_image())).long()
        table += confusion(ids, torch.eye(2)[pair.read_mask().astype(int)])
    assert float(weights_metadata(out)[f"dice at {fraction:g}"]) == pytest.approx(mean_dice(table), abs=1e-9)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_scores_are_those_of_the_run_s_predictions(run: tuple[Path, list[str]], data: Path, fraction: float) -> None:
    check_scores(run[0], data, fraction)


def test_two_processes_score_as_one(data: Path, tmp_path: Path) -> None:
    # One of them has no image at one of the fractions.
    script = tmp_path / "both.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            import warnings

            from patchtree.training import train

            if __name__ == "__main__":
                warnings.filterwarnings("error", ".*compute")
                train(sys.argv[1], sys.argv[2], max_epochs=1, patch_size=8, window=64, workers=0,
                      accelerator="cpu", devices=2, strategy="ddp", precision="32-true")
        """)
    )
    command = [sys.executable, str(script), str(data), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for fraction in FRACTIONS:
        check_scores(tmp_path / "run", data, fraction)


def test_the_score_is_that_of_the_most_patches_that_do_as_well() -> None:
    task = Task(build_model("patchtree:nano", 2, patch_size=8), lr=1e-3, fractions=(0.25, 0.5, 1.0))
    task.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    counts = torch.eye(2)[torch.tensor([0, 0, 1, 1])]
    for confusions, prediction in zip(task.confusions, ([0, 0, 0, 1], [0, 0, 1, 1], None), strict=True):
        if prediction is not None:  # a process may have none
            confusions.update(torch.tensor(prediction), counts)
    task.on_validation_epoch_end()
    assert task.scores == {"dice": 1, "dice background": 1, "dice class 1": 1}
    assert task.about == {"fraction": 0.5, "dice at 0.25": pytest.approx(2 / 3), "dice at 0.5": 1, "dice at 1": 0}


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
