from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from patchtree.cli.common import DetailName
from patchtree.cli.train import HeadName
from patchtree.detail import DETAILS
from patchtree.io.images import read_image, read_mask, write_image, write_mask
from patchtree.models.heads import HEADS
from patchtree.runs import load_config

from .conftest import SMALL, TRAIN, Run, Trained, picture, write_data


def test_names_on_the_command_line_are_those_of_the_library() -> None:
    ours = [name for name, detail in DETAILS.items() if detail.__module__.startswith("patchtree.")]
    assert [name.value for name in DetailName] == ours
    assert {name.value for name in HeadName} == set(HEADS)


def test_a_run_is_made(trained: Trained) -> None:
    assert trained.result.out == ""
    assert "best Dice" in trained.result.err
    config = load_config(trained.run)
    assert config.labels == {"background": 0, "disc": 1}
    assert (config.patcher["patch_size"], config.patcher["budget"], config.window) == (8, 100, 64)
    assert len(config.train) + len(config.val) == 4
    assert {path.name for path in trained.run.iterdir()} >= {"config.json", "weights.safetensors", "metrics.csv"}


def test_every_option_reaches_the_library(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from patchtree import training

    asked: dict[str, Any] = {}

    def train(data: Path, out: Path, **options: Any) -> None:
        asked.update(options, data=data, out=out)

    known = get_type_hints(training.train)
    monkeypatch.setattr(training, "train", train)
    given = {
        "task": "classify",
        "max_time": "00:10:05",
        "max_epochs": 3,
        "patch_size": 8,
        "budget": 99,
        "detail": "residual",
        "model": "timm:vit_tiny_patch16_224",
        "head": "depths",
        "weights": "vit.safetensors",
        "freeze": 4,
        "layer_decay": 0.8,
        "lora": 3,
        "window": 512,
        "batch_size": 2,
        "lr": 0.01,
        "workers": 3,
        "accelerator": "cpu",
        "devices": 2,
        "num_nodes": 4,
        "strategy": "ddp",
        "precision": "bf16-mixed",
        "seed": 7,
    }
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert run("train", "data", "--out", "run", "--resume", *words).code == 0
    asked.pop("report")
    assert asked == {**given, "max_time": 605.0, "resume": True, "data": Path("data"), "out": Path("run")}
    assert asked.keys() <= known.keys()
    asked.clear()
    assert run("train", "data", "--out", "run", "--freeze", "all").code == 0
    assert asked["freeze"] == -1
    asked.clear()
    assert run("train", "data", "--out", "run", "--devices", "0,1").code == 0
    assert asked.keys() == {"data", "out", "report", "devices"}
    assert asked["devices"] == "0,1"


def test_json_says_what_the_run_became(run: Run, trained: Trained) -> None:
    result = run("train", trained.data, "--out", trained.run, "--resume", "--max-epochs", 4, "--json")
    assert result.code == 0
    assert "is complete" in result.err
    (said,) = run("info", trained.run, "--json").json
    assert result.json == said


def test_a_folder_that_holds_a_run(run: Run, trained: Trained) -> None:
    before = (trained.run / "weights.safetensors").read_bytes()
    assert run("train", trained.data, "--out", trained.run, *TRAIN).failed_with(str(trained.run), "--resume")
    assert (trained.run / "weights.safetensors").read_bytes() == before


def test_resume_keeps_options(run: Run, trained: Trained) -> None:
    result = run("train", trained.data, "--out", trained.run, "--resume", "--patch-size", 16, "--max-epochs", 4)
    assert result.failed_with("patch_size")


def mask_of_another_size(data: Path) -> None:
    write_mask(data / "masks" / "b.png", np.eye(50, dtype=np.uint8))


def unknown_label(data: Path) -> None:
    ids = np.zeros((96, 128), np.uint8)
    ids[3] = 7
    write_mask(data / "masks" / "b.png", ids)


def image_without_mask(data: Path) -> None:
    (data / "masks" / "b.png").unlink()


def mask_without_image(data: Path) -> None:
    (data / "images" / "b.png").unlink()


def truncated_image(data: Path) -> None:
    path = data / "images" / "b.png"
    path.write_bytes(path.read_bytes()[:1000])


def truncated_mask(data: Path) -> None:
    path = data / "masks" / "b.png"
    path.write_bytes(path.read_bytes()[:60])


def colour_mask(data: Path) -> None:
    write_image(data / "masks" / "b.png", picture(96, 128))


def only_background(data: Path) -> None:
    for name in "abcd":
        write_mask(data / "masks" / f"{name}.png", np.zeros((96, 128), np.uint8))


def damaged_labels(data: Path) -> None:
    (data / "dataset.json").write_text("{labels")


def labels_with_a_gap(data: Path) -> None:
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "disc": 2}}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (mask_of_another_size, ["b.png", "50 x 50"]),
        (unknown_label, ["b.png", "id 7"]),
        (image_without_mask, ["b.png", "no mask"]),
        (mask_without_image, ["b.png", "no image"]),
        (truncated_image, ["b.png", "cut short"]),
        (truncated_mask, ["b.png", "cut short"]),
        (colour_mask, ["b.png", "class ids"]),
        (only_background, ["background", "nothing to learn"]),
        (damaged_labels, ["dataset.json"]),
        (labels_with_a_gap, ["dataset.json", "gaps"]),
    ],
)
def test_bad_data(spoil: Any, words: list[str], run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", labels={"background": 0, "disc": 1})
    spoil(data)
    assert run("train", data, "--out", tmp_path / "run", *TRAIN).failed_with(*words)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_a_model_of_another_library(run: Run, trained: Trained, tmp_path: Path) -> None:
    weights = tmp_path / "vit.pt"
    torch.save({"model": timm.create_model("test_vit").state_dict()}, weights)
    words = ("--model", "timm:test_vit", "--weights", weights, "--head", "linear", "--freeze", 1)
    made = run("train", trained.data, "--out", tmp_path / "run", *TRAIN, *words)
    assert made.code == 0
    lines = dict(line.split(": ", 1) for line in made.err.splitlines() if ": " in line)
    assert lines["model"].startswith("timm:test_vit with the linear head, ")
    assert "M of them trained" in lines["model"]
    assert lines["weights"].startswith(f"{weights}; images normalised by its mean and deviation; learning rate 0.0001,")
    assert lines["weights"].endswith("times 0.75 a block down")
    assert made.err.count("its patch embedding is resized") == 1
    config = load_config(tmp_path / "run")
    assert config.mean == (0.5, 0.5, 0.5)
    weights.unlink()
    assert run("train", trained.data, "--out", tmp_path / "run", "--resume", "--max-epochs", 6).code == 0
    result = run("predict", tmp_path / "run", trained.data / "images" / "a.png", "--out", tmp_path / "masks")
    assert result.code == 0
    assert read_mask(tmp_path / "masks" / "a.png").shape == (96, 128)
    [told] = run("info", tmp_path / "run", "--json").json
    assert told["model"] == "timm:test_vit"


def test_weights_of_a_run_on_grey_images(run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for path in (data / "images").iterdir():
        write_image(path, read_image(path)[..., 0])
    words = ("--patch-size", 8, "--budget", 50, "--max-epochs", 1, "--workers", 0)
    assert run("train", data, "--out", tmp_path / "one", *words).code == 0
    weights = tmp_path / "one" / "weights.safetensors"
    made = run("train", data, "--out", tmp_path / "two", "--weights", weights, "--freeze", "all", *words)
    assert made.code == 0
    assert f"weights: {weights}, all of it; images normalised by its mean" in made.err
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], value) for name, value in two.items() if name.startswith("encoder."))
    assert any(not torch.equal(one[name], value) for name, value in two.items() if name.startswith("head."))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "timm:vit_smal_patch16_224"], "near it: timm:vit_small_patch16_224"),
        (["--model", "vit_small_patch16_224"], "did you mean timm:vit_small_patch16_224?"),
        (["--model", "timm:resnet18"], "of no family that adapt knows"),
        (["--model", "hf:/no/such/folder"], "no such folder"),
        (["--model", "timm:test_vit", "--weights", "WEIGHTS"], "lacks"),
        (["--weights", "nowhere.pt"], "nowhere.pt: no such file of weights"),
        (["--model", "patchtree:tiny", "--weights", "pretrained"], "patchtree:tiny comes without trained weights"),
        (["--model", "timm:test_vit", "--patch-size", "12"], "patch size 12 does not suit the mesh"),
        (["--model", "timm:test_vit", "--freeze", "99"], "freeze 99 is not possible"),
        (["--model", "monai:unet", "--layer-decay", "0.5"], "layer_decay needs a model with blocks"),
        (["--model", "monai:unet", "--head", "linear"], "leave the head out"),
        (["--lora", "2", "--freeze", "1"], "exclude each other"),
    ],
)
def test_models_that_cannot_be(words: list[str], message: str, run: Run, trained: Trained, tmp_path: Path) -> None:
    weights = tmp_path / "other.pt"
    torch.save({"some.weight": torch.zeros(2)}, weights)
    words = [str(weights) if word == "WEIGHTS" else word for word in words]
    assert run("train", trained.data, "--out", tmp_path / "run", *words).failed_with(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--patch-size", "4096", "--model", "patchtree:tiny"],
            "less than a patch of 4096; leave it out, or give",
        ),
        (["--accelerator", "cpu", "--devices", "9999"], "devices 9999 would start as many processes"),
    ],
)
def test_options_that_cannot_be(words: list[str], message: str, run: Run, trained: Trained, tmp_path: Path) -> None:
    assert run("train", trained.data, "--out", tmp_path / "run", *words).failed_with(message)


@pytest.mark.parametrize("option", ["budget", "patch-size", "window", "batch-size", "max-epochs"])
def test_options_that_no_data_suit(option: str, run: Run, tmp_path: Path) -> None:
    result = run("train", tmp_path, "--out", tmp_path / "run", f"--{option}", "0")
    assert (result.code, result.out) == (2, "")
    assert f"--{option}" in result.err


def test_a_run_s_weights_say_which_model_they_fit(run: Run, trained: Trained, tmp_path: Path) -> None:
    """Without --model, the weights' own; the default would be another where time is long."""
    weights = trained.run / "weights.safetensors"
    options = ("--weights", weights, "--max-epochs", 1, "--workers", 0, "--budget", 100, "--window", 64)
    result = run("train", trained.data, "--out", tmp_path / "run", *options)
    assert result.code == 0, result
    model = load_config(tmp_path / "run").model
    assert (model["name"], model["patch_size"]) == ("patchtree:nano", 8)


def test_a_complete_run_is_left_as_it_is(run: Run, tmp_path: Path) -> None:
    """The last step ends before the time does, and --resume makes no other one."""
    data = write_data(tmp_path / "data")
    options = (*SMALL, "--budget", 100, "--window", 64, "--max-time", "00:00:04")
    assert run("train", data, "--out", tmp_path / "run", *options).code == 0
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    result = run("train", data, "--out", tmp_path / "run", "--resume", "--workers", 0)
    assert "is complete" in result.err
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_a_class_that_no_image_to_train_on_has(run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    ids = np.zeros((96, 128), np.uint8)
    ids[:20], ids[40:60] = 1, 2
    write_mask(data / "masks" / "d.png", ids)
    (data / "splits.json").write_text('{"train": ["a", "b", "c"], "val": ["d"]}')
    result = run("train", data, "--out", tmp_path / "run", *TRAIN)
    assert result.code == 0
    assert "no image to train on has 'class 2', but some to validate on do" in result.err


def test_a_class_that_no_image_to_validate_on_has(run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    write_mask(data / "masks" / "d.png", np.zeros((96, 128), np.uint8))
    (data / "splits.json").write_text('{"train": ["a", "b", "c"], "val": ["d"]}')
    result = run("train", data, "--out", tmp_path / "run", *TRAIN)
    assert result.code == 0
    assert "no image to validate on has 'class 1', so nothing is known of how well that is found" in result.err


def test_sigterm_to_all_processes_saves(trained: Trained, tmp_path: Path) -> None:
    """As a job is ended by its scheduler: the processes that make samples may go first."""
    command = [sys.executable, "-m", "patchtree", "train", trained.data, "--out", tmp_path / "run"]
    options = ["--model", "patchtree:nano", "--patch-size", "8", "--budget", "100", "--workers", "1"]
    options += ["--max-time", "00:02:00"]
    lines = []
    with subprocess.Popen(
        [*map(str, command), *options], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            lines.append(line)
            if line.startswith("step ") and not any(earlier.startswith("step ") for earlier in lines[:-1]):
                os.killpg(run.pid, signal.SIGTERM)
        assert run.wait(60) == 128 + signal.SIGTERM, lines
    assert lines[-1].startswith("stopped after "), lines
    assert lines[-1].endswith("all is saved; go on with --resume\n")
    assert (tmp_path / "run" / "last.ckpt").is_file()


def test_a_file_in_the_place_of_the_run(run: Run, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    assert run("train", trained.data, "--out", tmp_path / "run").failed_with("run: is a file; choose a folder")


def test_no_data(run: Run, tmp_path: Path) -> None:
    assert run("train", tmp_path / "nowhere", "--out", tmp_path / "run").failed_with("nowhere: no such folder")
    assert run("train", tmp_path, "--out", tmp_path / "run").failed_with("images/")


def test_info_says_what_a_run_is(run: Run, trained: Trained, tmp_path: Path) -> None:
    [result] = run("info", trained.run, "--json").json
    detail = load_config(trained.run).patcher["detail"]["name"]
    assert (result["kind"], result["model"], result["patch_size"], result["detail"]) == (
        "run",
        "patchtree:nano",
        8,
        detail,
    )
    assert result["labels"] == {"background": 0, "disc": 1}
    assert (result["train"], result["val"], result["weights"]) == (3, 1, True)
    assert 0 <= result["dice"] <= 1
    assert 0 < result["best_step"] <= result["steps"]
    assert "background: 0, disc: 1" in run("info", trained.run).out
    assert run("info", tmp_path).failed_with("neither a run (config.json)")
