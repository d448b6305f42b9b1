"""The benchmarks run and print their tables; what they compare with is what it says. No times are looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patchtree as pt
from patchtree.datasets import find_data
from patchtree.io.images import write_image, write_mask

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))

from bench import common, loss, mosaic, quality, tokenize, train_step  # noqa: E402
from bench.peers import quadtree  # noqa: E402

LIGHT = ["tokenize", "slides", "predict_slide"]
HEAVY = ["adapt", "loss", "mosaic", "train_step", "quality"]


@pytest.mark.parametrize("name", LIGHT + [pytest.param(name, marks=pytest.mark.slow) for name in HEAVY])
def test_script_prints_tables(name: str, tmp_path: Path) -> None:
    script = REPOSITORY / "bench" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, script, "--quick"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| :-- | --: |" in done.stdout
    assert "failed" not in done.stderr
    assert not list(tmp_path.iterdir())


# What the benchmarks share


def test_fill_mirrors() -> None:
    assert common.fill(np.arange(3)[None, :], (2, 8)).tolist() == [[0, 1, 2, 2, 1, 0, 0, 1]] * 2


def test_labels_by_stain() -> None:
    labels = common.stain_labels(common.load_picture("ihc"))
    assert labels.shape == (512, 512)
    assert set(np.unique(labels)) == {0, 1, 2}


def test_extra_memory_sees_what_is_let_go() -> None:
    size = 64 << 20
    memory, value = common.extra_memory(lambda: int(np.ones(size, np.uint8).sum()))
    assert value == size
    assert memory > 0.9 * size


SCRIPT = """
import json, os, sys, time
case = json.loads(sys.argv[2])
if "sleep" in case: time.sleep(case["sleep"])
if "hold" in case: held = bytearray(case["hold"] << 20); time.sleep(60)
if "raise" in case: raise ValueError(case["raise"])
if "kill" in case: os.kill(os.getpid(), case["kill"])
open(sys.argv[3], "w").write(json.dumps({"threads": os.environ["OMP_NUM_THREADS"]}))
"""


@pytest.mark.parametrize(
    ("case", "result"),
    [
        ({}, {"threads": "3"}),
        ({"sleep": 60}, {"failed": "took over 1 s"}),
        ({"hold": 600}, {"failed": "took over 0.5 GB"}),
        ({"raise": "too bad"}, {"failed": "ValueError: too bad"}),
        ({"kill": 9}, {"failed": "out of memory"}),
    ],
    ids=lambda value: next(iter(value), "fine"),
)
def test_fresh_tells_what_became_of_a_case(case: dict[str, Any], result: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    timeout = 1 if "sleep" in case else 60
    assert common.fresh(str(script), case, threads=3, timeout=timeout, memory=1 << 29) == result


# Tokenize


def test_published_way_makes_the_same_leaves() -> None:
    image = common.fill(common.load_picture("ihc"), (256, 256))
    edges = quadtree.find_edges(image, 100, 200)
    squares = quadtree.split_by_heap(edges, 8, 1 << 20)
    tree = pt.Patcher(8, None, threshold=0, detail="edges").plan(image)
    assert sorted((y, x, y + side, x + side) for y, x, side in squares) == sorted(map(tuple, tree.boxes().tolist()))
    assert sorted(squares) == sorted(quadtree.split_by_list(edges, 8, 1 << 20))
    assert quadtree.cut(image, squares, 8).shape == (len(tree), 8, 8, 3)


def test_published_way_keeps_the_budget() -> None:
    edges = quadtree.find_edges(common.load_picture("ihc"), 100, 200)
    assert len(quadtree.split_by_heap(edges, 8, 100)) == len(quadtree.split_by_list(edges, 8, 100)) == 100


def test_thresholds_that_use_up_the_budget() -> None:
    image = common.load_picture("ihc")
    assert tokenize.filling_thresholds(image, 8, 2000) == tokenize.DEFAULT
    low, high = tokenize.filling_thresholds(image, 8, 4000)
    assert high == 2 * low < 200
    assert len(pt.Patcher(8, None, threshold=0, detail=pt.Edges(low, high)).plan(image)) >= 3997


# Mosaic


def test_borders_of_the_mosaic_and_of_the_image() -> None:
    assert mosaic.borders(pt.Tree.uniform((64, 64), 16)) == (1, 1)
    # A square with its first quarter split: two rows of the mosaic, 0 1 4 5 and 2 3 6.
    index = [[0, 0], [0, 1], [1, 0], [1, 1], [0, 1], [1, 0], [1, 1]]
    tree = pt.Tree(np.array([0, 0, 0, 0, 1, 1, 1]), np.array(index), patch_size=16, shape=(64, 64), max_level=2)
    assert mosaic.borders(tree) == (5 / 8, 6 / 8)


# Loss and training step


def test_loss_on_patches_is_that_of_the_image() -> None:
    case = {"side": 300, "pixels_per_token": 1024, "repeats": 1}
    patches, image = (loss.measure({**case, "way": way}) for way in ("patches", "image"))
    assert (
        patches["values"].keys() == image["values"].keys() == {"cross-entropy", "Dice loss", "confusion", "Dice", "IoU"}
    )
    assert sum(patches["values"]["confusion"]) == 300 * 300
    assert loss.largest_difference(patches, image) < 1e-5
    patches["values"]["Dice"][0] *= 1.01
    assert loss.largest_difference(patches, image) > 0.009
    patches["values"]["Dice"][0] = float("nan")
    assert np.isnan(loss.largest_difference(patches, image))
    image["values"]["Dice"][0] = float("nan")
    assert loss.largest_difference(patches, image) < 1e-5


def test_training_step_both_ways() -> None:
    case = {
        "side": 128,
        "patch_size": 16,
        "budget": 16,
        "detail": "residual",
        "size": "tiny",
        "repeats": 1,
        "threads": 1,
    }
    adaptive, uniform = (train_step.measure({**case, "way": way}) for way in ("adaptive", "uniform"))
    assert (adaptive["tokens"], uniform["tokens"]) == (16, 64)
    assert min(adaptive["step"], uniform["step"]) > 0
    assert len(train_step.row(128, adaptive, uniform, 16)) == len(train_step.HEADER)


def test_uniform_that_does_not_fit_is_a_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"tokens": 4, "prepare": 1.0, "step": 1.0, "memory": 10**6, "device": "the CPU"}
    tried = []

    def fresh(script: str, case: dict[str, Any], *limits: Any) -> dict[str, Any]:
        tried.append((case["way"], case["side"]))
        slow = {**good, "step": 3.0}
        return good if case["way"] == "adaptive" else slow if case["side"] < 100 else {"failed": "out of memory"}

    monkeypatch.setattr(train_step, "fresh", fresh)
    train_step.main(["--sides", "64", "128", "256"])
    assert ("adaptive", 256) in tried
    assert ("uniform", 256) not in tried
    printed = capsys.readouterr().out
    assert "out of memory" in printed
    assert "the 1 sizes that ran both ways: the step is 3.00 times as fast, 2.00 times with" in printed


# Quality


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return quality.make_example(tmp_path / "example")


def fake_result(case: dict[str, Any]) -> dict[str, Any]:
    table = [[80, 10, 0], [0, 5, 5], [0, 0, 0]]
    return {
        "train_seconds": 3.0,
        "train_memory": 10**9,
        "steps": 7,
        "parameters": 10**6,
        "predict_seconds": dict.fromkeys(case["test"], 0.5),
        "tokens": dict.fromkeys(case["test"], 1234) if case["method"] == "patchtree" else {},
        "confusions": dict.fromkeys(case["test"], table),
        "memory": 10**9,
    }


def test_finished_runs_are_not_repeated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []
    broken = {"unet, input x 0.5"}

    def fresh(script: str, case: dict[str, Any], threads: int) -> dict[str, Any]:
        tried.append(quality.describe(case))
        trained = {pair.name for pair in find_data(case["train"]).pairs}
        assert not trained & set(case["test"])
        return {"failed": "out of memory"} if tried[-1] in broken else fake_result(case)

    monkeypatch.setattr(quality, "fresh", fresh)
    command = [str(data), "--out", str(tmp_path / "out"), "--max-time", "00:00:03", "--scales", "1", "0.5"]
    quality.main(command)
    assert tried == ["patchtree", "unet, input x 1", "unet, input x 0.5"]
    printed = capsys.readouterr().out
    # 2 * 5 / (10 + 15) for class 1, 0 of 5 predicted for class 2.
    assert "| patchtree | **mean** | 0.200 | 0.125 | 0.200 |" in printed
    assert "| patchtree | 3 | 7 | 1.00 | 0.50 | 1,234 | 1.00 M |" in printed
    assert "unet, input x 0.5: out of memory." in printed

    broken.clear()
    quality.main([*command, "--seeds", "2"])
    assert tried[3:] == ["unet, input x 0.5", "patchtree", "unet, input x 1", "unet, input x 0.5"]
    assert "0.200 ± 0.000" in capsys.readouterr().out
    quality.main([*command, "--seeds", "2"])
    assert len(tried) == 7
    assert len(json.loads((tmp_path / "out" / "quality.json").read_text())["runs"]) == 6


def test_confusion_leaves_out_what_is_ignored(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "images" / "a.png", np.zeros((2, 2), np.uint8))
    write_mask(tmp_path / "masks" / "a.png", np.array([[0, 1], [1, 9]], np.uint8))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "cell": 1, "ignore": 9}}')
    dataset = find_data(tmp_path)
    found = quality.confusion(np.array([[0, 0], [1, 1]]), dataset.pairs[0].read_mask(), dataset)
    assert found.tolist() == [[1, 0], [1, 1]]


def test_dice_and_iou() -> None:
    table = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert np.allclose(quality.dice(table), [6 / 7, 4 / 5, np.nan], equal_nan=True)
    assert np.allclose(quality.iou(table), [3 / 4, 2 / 3, np.nan], equal_nan=True)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_unet_learns_from_crops_and_predicts_at_full_size(data: Path, tmp_path: Path, scale: float) -> None:
    import torch
    from bench.peers import crops

    from patchtree.cache import cache_data

    torch.manual_seed(0)
    images = cache_data(find_data(data), tmp_path / "cache")
    settings = crops.Settings(scale=scale, crop=96, workers=0)
    supply = crops.Crops.of(images[:4], 3, ignore=2, settings=settings)
    image, target = supply[5]
    assert image.shape == (3, 96, 96)
    assert target.shape == (96, 96)
    assert set(target.unique().tolist()) <= {-1, 0, 1}
    assert supply[5][0].equal(image)
    network = crops.make_unet(3, 3, width=2)
    device = torch.device("cpu")
    before = [weight.clone() for weight in network.parameters()]
    assert crops.train(network, supply, 0.5, device) >= 1
    assert any(not old.equal(new) for old, new in zip(before, network.parameters(), strict=True))
    ids = crops.predict(network, np.asarray(images[0].image())[:130, :77], settings, device)
    assert ids.shape == (130, 77)


def test_crops_pad_images_that_are_smaller(data: Path, tmp_path: Path) -> None:
    from bench.peers import crops

    from patchtree.cache import cache_data

    images = cache_data(find_data(data), tmp_path / "cache")
    image, target = crops.Crops.of(images, 3, None, crops.Settings(crop=320))[0]
    assert image.shape == (3, 320, 320)
    assert (target == -1).sum() == 320**2 - 256**2
    assert (image[:, target == -1] == 0).all()
