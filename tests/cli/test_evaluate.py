from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.table import Table

from patchtree.cli.common import print_table
from patchtree.inference import load
from patchtree.io.images import read_image, read_mask, write_mask
from patchtree.runs import load_config, save_config

from .conftest import Run, Trained, write_data


def overlap(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> tuple[float, float]:
    """Dice and IoU, the obvious way."""
    both = float((truth & found).sum())
    return 2 * both / (truth.sum() + found.sum()), both / (truth | found).sum()


def test_scores_are_those_of_the_painted_masks(run: Run, trained: Trained, tmp_path: Path) -> None:
    data = write_data(tmp_path / "other", "xyz", seed=1)
    result = run("evaluate", trained.run, data, "--json")
    assert (result.code, result.err) == (0, "")
    scores = result.json
    assert (scores["images"], scores["trained_on"], scores["chosen_on"]) == (3, 0, 0)
    predictor = load(trained.run)
    truth = [read_mask(data / "masks" / f"{name}.png") for name in "xyz"]
    found = [predictor(read_image(data / "images" / f"{name}.png")) for name in "xyz"]
    for label, name in enumerate(("background", "disc")):
        each = [overlap(a == label, b == label) for a, b in zip(truth, found, strict=True)]
        dice, iou = overlap(np.stack(truth) == label, np.stack(found) == label)
        of_class = scores["classes"][name]
        assert of_class["dice"] == pytest.approx(dice)
        assert of_class["iou"] == pytest.approx(iou)
        assert (of_class["mean_dice"], of_class["mean_iou"]) == pytest.approx(tuple(np.mean(each, axis=0)))
        assert of_class["pixels"] == int((np.stack(truth) == label).sum())
        for image, (image_dice, image_iou) in zip("xyz", each, strict=True):
            assert scores["by_image"][image][name] == pytest.approx({"dice": image_dice, "iou": image_iou})
    assert scores["dice"] == scores["classes"]["disc"]["dice"]


def test_of_its_own_data_a_run_is_tested_on_what_was_held_out(run: Run, trained: Trained) -> None:
    config = load_config(trained.run)
    held_out = run("evaluate", trained.run, trained.data, "--json").json
    assert (held_out["trained_on"], held_out["chosen_on"], held_out["left_out"]) == (0, 1, 3)
    assert list(held_out["by_image"]) == list(config.val)
    everything = run("evaluate", trained.run, trained.data, "--all", "--json").json
    assert (everything["trained_on"], everything["chosen_on"], everything["left_out"]) == (3, 1, 0)
    assert list(everything["by_image"]) == list("abcd")
    out = run("evaluate", trained.run, trained.data, "--all").out
    assert "4 images; 3 trained on; 1 named as images that chose the best weights" in out
    for word in ("class", "background", "disc", "mean Dice", f"{everything['dice']:.4f}"):
        assert word in out


def test_images_trained_on_are_left_out_of_any_data(run: Run, trained: Trained, tmp_path: Path) -> None:
    config = load_config(trained.run)
    own = write_data(tmp_path / "own", config.train[0] + "z")
    scores = run("evaluate", trained.run, own, "--json").json
    assert (scores["trained_on"], scores["left_out"], list(scores["by_image"])) == (0, 1, ["z"])
    known = write_data(tmp_path / "known", "".join(config.train))
    assert run("evaluate", trained.run, known).failed_with("was trained on", "--all")


def test_a_class_that_is_nowhere_has_no_score(run: Run, trained: Trained, tmp_path: Path) -> None:
    data = write_data(tmp_path / "plain", "xy")
    for name in "xy":
        write_mask(data / "masks" / f"{name}.png", np.zeros((96, 128), np.uint8))
    scores = run("evaluate", trained.run, data, "--json").json
    assert scores["classes"]["disc"]["pixels"] == 0
    assert scores["classes"]["background"]["dice"] > 0.5
    assert scores["dice"] is None
    assert scores["mean_dice"] is None
    assert set(scores["by_image"]) == {"x", "y"}


def test_tables_are_whole_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(*("a long name of a class" for _ in range(12)))
    print_table(table)
    assert capsys.readouterr().out.count("a long name of a class") == 12


def test_flips_are_used(run: Run, trained: Trained) -> None:
    plain, flipped = (run("evaluate", trained.run, trained.data, *words, "--json").json for words in ([], ["--flips"]))
    assert plain["classes"]["disc"]["pixels"] == flipped["classes"]["disc"]["pixels"]
    assert plain["classes"]["background"]["dice"] != flipped["classes"]["background"]["dice"]


def test_labels_that_mean_something_else(run: Run, trained: Trained, tmp_path: Path) -> None:
    other = write_data(tmp_path / "a", labels={"background": 0, "square": 1})
    assert run("evaluate", trained.run, other).failed_with("'square'", "1 'disc'")
    more = write_data(tmp_path / "b", labels={"background": 0, "disc": 1, "ring": 2})
    assert run("evaluate", trained.run, more).failed_with("'ring'")
    # Ids without names fit.
    assert run("evaluate", trained.run, write_data(tmp_path / "c")).code == 0


def test_without_names_ids_mean_what_the_run_says(run: Run, trained: Trained, tmp_path: Path) -> None:
    data, ignoring = write_data(tmp_path / "data", "x"), tmp_path / "run"
    shutil.copytree(trained.run, ignoring)
    save_config(ignoring, replace(load_config(trained.run), ignore=255))
    mask = read_mask(data / "masks" / "x.png")
    write_mask(data / "masks" / "x.png", np.where(mask == 1, 255, 0).astype(np.uint8))
    result = run("evaluate", ignoring, data, "--json")
    assert (result.code, result.err) == (0, "")
    pixels = {name: scores["pixels"] for name, scores in result.json["classes"].items()}
    assert pixels == {"background": int((mask == 0).sum()), "disc": 0}


def test_bad_data(run: Run, trained: Trained, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained.data, data)
    val = load_config(trained.run).val[0]
    write_mask(data / "masks" / f"{val}.png", np.eye(50, dtype=np.uint8))
    assert run("evaluate", trained.run, data).failed_with(f"{val}.png", "50 x 50 px")
    write_mask(data / "masks" / f"{val}.png", np.full((96, 128), 9, np.uint8))
    assert run("evaluate", trained.run, data).failed_with(f"{val}.png")
    (data / "images" / f"{val}.png").write_bytes(b"")
    assert run("evaluate", trained.run, data).failed_with(f"{val}.png", "empty")
    assert run("evaluate", trained.run, tmp_path / "none").failed_with("none: no such folder")
