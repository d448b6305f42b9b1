"""Images with one class each, through the real command line: train, resume, predict, evaluate, info."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from patchtree.errors import InputError
from patchtree.inference import load
from patchtree.io.images import write_image
from patchtree.runs import load_config
from patchtree.training import train
from slide_files import small_slide

from .conftest import SMALL, Result, Run, Trained, run_process

CLASSIFY = (*SMALL, "--task", "classify", "--budget", 24)


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
    assert "model: patchtree:nano, " in said.err
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


def test_it_resumes_predicts_and_evaluates(run: Run, classified: Trained, tmp_path: Path) -> None:
    longer = run("train", classified.data, "--out", classified.run, "--resume", "--max-epochs", 9)
    assert longer.code == 0, longer
    assert [int(row["step"]) for row in read_csv(classified.run / "metrics.csv")] == list(range(3, 28, 3))

    new = write_labelled(tmp_path / "new", (3, 2), seed=1)
    (new / "images" / "broken.png").write_bytes((new / "images" / "noise0.png").read_bytes()[:500])
    result = run("predict", classified.run, new / "images", "--out", tmp_path / "out", "--flips")
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert "broken.png" in result.err
    assert result.out.splitlines()[-1] == f"wrote {tmp_path / 'out' / 'predictions.csv'}"
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert [(row["name"], row["label"]) for row in rows] == [
        ("noise0", "noise"), ("noise1", "noise"), ("stripes0", "stripes"), ("stripes1", "stripes"),
        ("stripes2", "stripes"),
    ]  # fmt: skip
    for row in rows:
        shares = {label: float(row[f"probability {label}"]) for label in ("noise", "stripes")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert row["label"] == max(shares, key=lambda label: shares[label])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.csv"]
    [told] = run("predict", classified.run, new / "images" / "noise0.png", "--out", tmp_path / "one", "--json").json
    assert (told["name"], told["label"], told["probabilities"].keys()) == ("noise0", "noise", {"noise", "stripes"})

    (new / "images" / "broken.png").unlink()
    told = run("evaluate", classified.run, new, "--json").json
    # By the names three of the five were trained on, or more.
    assert told["left_out"] > 0
    (new / "labels.csv").write_text((new / "labels.csv").read_text().replace("noise0,noise", "noise0,stripes"))
    told = run("evaluate", classified.run, new, "--all", "--json").json
    assert told["accuracy"] == 0.8
    assert told["balanced_accuracy"] == (0.75 + 1) / 2
    assert told["confusion"] == {"noise": {"noise": 1, "stripes": 0}, "stripes": {"noise": 1, "stripes": 3}}
    assert told["classes"]["noise"] == {"precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "images": 1}
    assert told["by_image"]["noise0"] == {"label": "stripes", "predicted": "noise"}
    shown = run("evaluate", classified.run, new, "--all").out
    assert "accuracy 0.8000, balanced accuracy 0.8750, macro F1" in shown
    assert "as stripes" in shown


@pytest.mark.parametrize("options", [{}, {"model": "timm:test_vit", "lora": 2}])
@pytest.mark.filterwarnings("ignore:what is not trained of the encoder", "ignore:the model's patches are 16")
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    options: dict[str, Any], classified: Trained, tmp_path: Path
) -> None:
    def report(line: str) -> None:
        if line.startswith("step 6, "):
            signal.raise_signal(signal.SIGTERM)

    here: dict[str, Any] = {"workers": 0, "accelerator": "cpu", "progress": False}
    first = {"task": "classify", "patch_size": 8, "budget": 16, "batch_size": 4, "max_epochs": 3, **options, **here}
    with pytest.raises(SystemExit):
        train(classified.data, tmp_path / "one", report=report, **first)
    train(classified.data, tmp_path / "one", resume=True, max_epochs=3, **here)
    train(classified.data, tmp_path / "two", **first)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    scores = [[row | {"seconds": ""} for row in read_csv(tmp_path / name / "metrics.csv")] for name in ("one", "two")]
    assert scores[0] == scores[1]


def test_info(run: Run, classified: Trained) -> None:
    told, data = run("info", classified.run, classified.data, "--json").json
    assert (told["task"], told["balanced_accuracy"]) == ("classify", 1)
    assert data["shares"] == {"noise": 0.3333, "stripes": 0.6667}
    assert (len(data["train"]), len(data["val"]), data["problems"]) == (12, 3, [])


def test_a_model_of_another_library(run: Run, classified: Trained, tmp_path: Path) -> None:
    weights = tmp_path / "vit.pt"
    torch.save(timm.create_model("test_vit").state_dict(), weights)
    (classified.data / "splits.json").write_text(json.dumps({"train": ["stripes0", "noise3"], "val": ["noise0"]}))
    try:
        words = ("--model", "timm:test_vit", "--weights", weights, "--freeze", 1, "--layer-decay", 0.5)
        made = run("train", classified.data, "--out", tmp_path / "run", *CLASSIFY, *words, "--max-epochs", 2)
        assert made.code == 0, made
        assert f"weights: {weights}; images normalised by its mean and deviation; " in made.err
        assert "times 0.5 a block down" in made.err
        assert load_config(tmp_path / "run").val == ("noise0",)
        weights.unlink()
        assert run("train", classified.data, "--out", tmp_path / "run", "--resume", "--max-epochs", 3).code == 0
    finally:
        (classified.data / "splits.json").unlink()
    image = classified.data / "images" / "noise0.png"
    assert run("predict", tmp_path / "run", image, "--out", tmp_path).code == 0
    assert len(read_csv(tmp_path / "predictions.csv")) == 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (None, "labels.csv: no such file"),
        ("name,class\na,x\nb,y\n", "labels.csv: the first line is 'name,class'; it must name the columns name,label"),
        ("a,x\nb,y\n", "the first line is 'a,x'"),
        ("", "the first line is ''"),
        ("name,label\na,x\n", "b.png: has no label in labels.csv; add a line"),
        ("name,label\n", "a.png: has no label in labels.csv (and 1 more)"),
        ("name,label\na,x\nb,y\nc,x\n", "labels.csv: line 4: there is no image 'c'"),
        ("name,label\na,x\nb,y, z\n", "labels.csv: line 3 has more cells than there are columns ('z')"),
        ("name,label\na.jpg,x\nb,y\n", "line 2: there is no image 'a.jpg'"),
        ("name,label\na,x\nb,y\na.png,x\n", "line 4: 'a.png' has a label already"),
        ("name,label\na,\nb,y\n", "line 2 has no label"),
        ("name,label\n,x\nb,y\n", "line 2 has no name"),
        ("name,label\na\nb,y\n", "line 2 has no label"),
        ("name,label\na,x\nb,x\n", "every image is 'x'; there is nothing to learn from"),
        ("name;label\na;x\nb;y\n", "one image a class cannot be split"),
        (b"name,label\na,\xff\nb,y\n", "no text in UTF-8"),
    ],
)
def test_bad_labels(table: str | bytes | None, words: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in "ab":
        write_image(tmp_path / "data" / "images" / f"{name}.png", np.eye(32, dtype=np.uint8))
    if table is not None:
        text = table.encode() if isinstance(table, str) else table
        (tmp_path / "data" / "labels.csv").write_bytes(text)
    command = ("train", tmp_path / "data", "--out", tmp_path / "run", "--task", "classify", "--budget", 4)
    result = run(*command)
    assert words in result.err
    result = Result(result.code, result.out, result.err.splitlines(keepends=True)[-1])
    assert result.failed_with(words)


def test_what_is_for_masks_is_refused(run: Run, classified: Trained, trained: Trained, tmp_path: Path) -> None:
    data, out = classified.data, ("--out", tmp_path / "run")
    for option in (("--head", "linear"), ("--window", 64)):
        words = f"{option[0].removeprefix('--')} is for masks"
        assert run("train", data, *out, "--task", "classify", *option).failed_with(words)
    classify = ("train", data, *out, "--task", "classify")
    assert run(*classify, "--model", "monai:unet").failed_with("gives every pixel's classes, not the image's")
    assert run("train", data, *out).failed_with("no masks/", "or learn labels.csv with --task classify")
    assert run("train", trained.data, *out, "--task", "classify").failed_with("labels.csv: no such file")
    image = data / "images" / "noise0.png"
    for option in ("--probabilities", "--geojson", "--overlay", "--resume"):
        assert run("predict", classified.run, image, *out, option).failed_with(f"{option} is for masks")
    assert run("evaluate", classified.run, trained.data).failed_with("labels.csv: no such file")
    assert run("evaluate", trained.run, data).failed_with("no masks/")
    resumed = ("train", data, "--out", classified.run, "--resume", "--task", "segment")
    assert run(*resumed).failed_with("was started with task classify")
    for folder, task in ((classified.run, "segment"), (trained.run, "classify")):
        with pytest.raises(InputError, match=f"and {task} is wanted; name another run"):
            load(folder, task=task)


def test_slides_are_not_classified(run: Run, classified: Trained, tmp_path: Path) -> None:
    slide, _ = small_slide(tmp_path)
    result = run("predict", classified.run, slide, "--out", tmp_path / "out")
    assert result.failed_with("slide.tif: is a slide, and the run labels images")
    result = run("predict", classified.run, "s3://bucket/a.png", "--out", tmp_path / "out")
    assert result.failed_with("s3://bucket/a.png: images to be labelled are not read through URLs; copy the file here")
    assert not list((tmp_path / "out").iterdir())


def test_images_of_one_name(run: Run, classified: Trained, tmp_path: Path) -> None:
    image = classified.data / "images" / "noise0.png"
    (tmp_path / "noise0.png").write_bytes(image.read_bytes())
    two = (image, tmp_path / "noise0.png")
    assert run("predict", classified.run, *two, "--out", tmp_path / "out").failed_with("would both be 'noise0'")
