"""The budget that predicts the validation images best is found after a training, and kept for prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from patchtree.cache import cache_data
from patchtree.data import Whole
from patchtree.datasets import choose, find_data
from patchtree.inference import load
from patchtree.io.images import write_image, write_mask
from patchtree.metrics import confusion, mean_dice
from patchtree.patcher import Patcher
from patchtree.runs import load_config, weights_metadata
from patchtree.training import train
from patchtree.trial import SHARES, choose_share, try_budgets


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
    config = load_config(out)
    share = config.density / config.options["density"]
    assert share in SHARES
    found = [line for line in lines if line.startswith("prediction:")]
    assert len(found) == 1
    assert f" {round(share * config.options['budget'])} patches" in found[0]


def test_scores_are_those_of_the_run_s_predictions(run: tuple[Path, list[str]], data: Path, tmp_path: Path) -> None:
    out, _ = run
    config, dataset = load_config(out), find_data(data)
    images = cache_data(dataset, tmp_path / "cache")[:2]
    patcher, density = Patcher.from_dict(config.patcher), config.options["density"]
    scores = try_budgets(out, Whole(images, 2, patcher, density=density, most=config.most), device="cpu")
    assert tuple(scores) == SHARES
    for share, score in scores.items():
        predictor = load(out, "cpu", smooth=False)
        predictor = replace(predictor, config=replace(config, density=share * density))
        table = torch.zeros(2, 2, dtype=torch.float64)
        for image in images:
            ids = torch.from_numpy(predictor(image.image())).long()
            table += confusion(ids, torch.eye(2)[image.mask().astype(int)])
        assert score == pytest.approx(mean_dice(table), abs=1e-9)


def test_the_best_validation_is_the_score_with_all_patches(
    run: tuple[Path, list[str]], data: Path, tmp_path: Path
) -> None:
    out, lines = run
    config = load_config(out)
    images = cache_data(choose(find_data(data), config.val), tmp_path / "cache")
    density, least, most = config.options["density"], config.least, config.most
    whole = Whole(images, 2, Patcher.from_dict(config.patcher), density=density, least=least, most=most)
    score = try_budgets(out, whole, (1.0,), device="cpu")[1.0]
    assert score == pytest.approx(float(weights_metadata(out)["dice"]), abs=1e-9)
    assert f"{score:.3f} with {config.options['budget']}" in lines[-1]


def test_a_budget_that_was_asked_for_is_kept(data: Path, tmp_path: Path) -> None:
    options = {"max_epochs": 1, "patch_size": 8, "budget": 100, "window": 64, "workers": 0, "accelerator": "cpu"}
    lines: list[str] = []
    train(data, tmp_path / "run", **options, progress=False, report=lines.append)
    assert load_config(tmp_path / "run").patcher_for((160, 192)).budget == 100
    assert not [line for line in lines if line.startswith("prediction:")]


def test_a_run_that_was_killed_while_budgets_were_tried_tries_them_when_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_epochs": 2, "workers": 0, "accelerator": "cpu", "progress": False}
    lines: list[str] = []

    def killed(*_: object, **__: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as context:
        context.setattr("patchtree.training.try_budgets", killed)
        with pytest.raises(SystemExit):
            train(data, tmp_path / "run", patch_size=8, window=64, **options)
    assert not load_config(tmp_path / "run").tried
    for expected in (1, 0):
        lines.clear()
        train(data, tmp_path / "run", resume=True, report=lines.append, **options)
        assert load_config(tmp_path / "run").tried
        assert len([line for line in lines if line.startswith("prediction:")]) == expected
        assert "is complete" in lines[-1]


@pytest.mark.parametrize(
    ("scores", "share"), [({0.25: 0.5, 0.5: 0.5, 1.0: 0.497}, 1.0), ({0.25: 0.946, 0.5: 0.95, 1.0: 0.93}, 0.5)]
)
def test_fewer_patches_only_where_they_are_better(scores: dict[float, float], share: float) -> None:
    assert choose_share(scores) == share
