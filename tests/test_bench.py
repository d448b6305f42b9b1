"""The benchmarks run and print their tables; what they compare with is what it says. No times are looked at."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from importlib import import_module
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
from bench.peers import networks, nnunet_plan, quadtree  # noqa: E402
from bench.segmentation import methods, pictures, report, scores  # noqa: E402

LIGHT = ["tokenize", "slides", "predict_slide"]
HEAVY = ["adapt", "equal_dice", "loss", "mosaic", "train_step", "quality", "whole_job"]


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
    """In a process of its own: this one's allocator may have kept as much from other tests."""
    code = """
import time
import numpy as np
from bench import common
def hold():
    held = np.ones(64 << 20, np.uint8)
    time.sleep(0.05)  # on one core, who watches has to have a turn
    return int(held.sum())
print(*common.extra_memory(hold))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    memory, value = map(int, done.stdout.split())
    assert value == 64 << 20
    assert memory > 0.9 * value


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


EXAMPLES = [
    "common",
    "peers.crops",
    "peers.nnunet_plan",
    "peers.uniform",
    "segmentation.methods",
    "segmentation.scores",
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    tried = doctest.testmod(import_module(f"bench.{name}"), optionflags=doctest.ELLIPSIS)
    assert (tried.failed, tried.attempted > 0) == (0, True)


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
    case = {"side": 128, "patch_size": 16, "detail": "residual", "size": "tiny", "repeats": 1, "threads": 1}
    results = [
        {**train_step.measure({**case, **way, "what": "time"}), **train_step.measure({**case, **way, "what": "count"})}
        for way in ({"way": "sparse", "budget": 16}, {"way": "uniform", "budget": 64})
    ]
    assert [result["tokens"] for result in results] == [16, 64]
    assert all(result["step"] > 0 for result in results)
    budgets = [{**result, "budget": result["tokens"]} for result in results]
    assert len(train_step.row(128, *budgets)) == len(train_step.HEADER)


def test_what_is_counted_from_shapes_is_what_a_step_multiplies() -> None:
    model = pt.build_model("patchtree:tiny", train_step.CLASSES)
    tree = pt.Tree.uniform((48, 64), 16)
    tokens = pt.collate([pt.Patches(np.zeros((12, 16, 16, 3), np.uint8), tree)])
    done = methods.count_multiply_adds(lambda: model(tokens).sum().backward())
    counted = train_step.count_step({"patch_size": 16, "budget": 12, "size": "tiny"})
    # Attention of 12 tokens, whose backward pass on a CPU torch does not count, is next to nothing.
    assert counted == pytest.approx(done, rel=0.01)


def test_uniform_that_does_not_fit_is_a_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"tokens": 4, "prepare": 1.0, "step": 1.0, "memory": 10**6, "device": "the CPU"}
    tried = []

    def fresh(script: str, case: dict[str, Any], *limits: Any) -> dict[str, Any]:
        if case["what"] == "count":
            return {"multiply_adds": case["budget"] ** 2}
        tried.append((case["way"], case["side"]))
        if case["way"] != "uniform":
            return good
        return {**good, "step": 3.0} if case["side"] < 200 else {"failed": "out of memory"}

    monkeypatch.setattr(train_step, "fresh", fresh)
    train_step.main(["--sides", "128", "256", "4096"])
    assert ("sparse", 4096) in tried
    assert ("default", 4096) not in tried  # as many as the sparse ones
    assert ("uniform", 256) in tried
    assert ("uniform", 4096) not in tried
    printed = capsys.readouterr().out
    assert "out of memory" in printed
    assert "the 1 sizes that ran both ways, the step is 3.00 times as fast, 2.00 times with" in printed
    assert "| 4,096 x 4,096 | 65,536 | 4,096 | not tried | 1 |" in printed


# Quality


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pictures.make_data(tmp_path / "example", "ihc", 256)


def fake_result(case: dict[str, Any]) -> dict[str, Any]:
    table = [[80, 10, 0], [0, 5, 5], [0, 0, 0]]
    good = [[90, 0, 0], [0, 10, 0], [0, 0, 5]]
    return {
        "train_seconds": 3.0,
        "train_memory": 10**9,
        "steps": 7,
        "parameters": 10**6,
        "multiply_adds": 3 * 10**9,
        "validation": {"one": good if case.get("scale") == 0.5 else table},
        "predict_seconds": dict.fromkeys(case["test"], 0.5),
        "tokens": dict.fromkeys(case["test"], 1234) if case["method"] == "patchtree" else {},
        "confusions": dict.fromkeys(case["test"], table),
        "hausdorff": {name: [3.0, None] for name in case["test"]},
        "memory": 10**9,
    }


OLD = ("multiply_adds", "validation", "hausdorff")


def test_finished_runs_are_not_repeated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []
    broken = {"unet, input x 0.5"}

    def fresh(script: str, case: dict[str, Any], threads: int) -> dict[str, Any]:
        tried.append(quality.describe(case))
        trained = {pair.name for pair in find_data(case["train"]).pairs}
        assert not trained & set(case["test"])
        assert Path(case["data"], "images").is_dir()
        return {"failed": "out of memory"} if tried[-1] in broken else fake_result(case)

    monkeypatch.setattr(quality, "fresh", fresh)
    command = [str(data), "--out", str(tmp_path / "out"), "--max-time", "00:00:03", "--scales", "1", "0.5"]
    command += ["--methods", "patchtree", "unet"]
    quality.main(command)
    assert tried == ["patchtree", "unet, input x 1", "unet, input x 0.5"]
    printed = capsys.readouterr().out
    # 2 * 5 / (10 + 15) for class 1, 0 of 5 predicted for class 2; 2 * 5 / (10 + 20) together.
    assert "| patchtree | 0.200 [0.20, 0.20] | 0.200 | 0.333 | 0.125 | 3.0 | 0.400 | 0.000 |" in printed
    assert "| patchtree | 3 | 7 | 1.00 | 0.50 | 1,234 | 3.0 | 1.00 M |" in printed
    assert "unet, input x 0.5 failed: out of memory." in printed
    assert "| unet, input x 1 |" in printed

    broken.clear()
    quality.main([*command, "--seeds", "2"])
    assert tried[3:] == ["unet, input x 0.5", "patchtree", "unet, input x 1", "unet, input x 0.5"]
    printed = capsys.readouterr().out
    assert "| unet, input x 0.5 |" in printed
    assert "| unet, input x 1 |" not in printed
    assert "Dice on validation images: unet, input x 1 0.200; unet, input x 0.5 1.000" in printed
    quality.main([*command, "--seeds", "2"])
    assert len(tried) == 7
    runs = json.loads((tmp_path / "out" / "quality.json").read_text())["runs"]
    assert len(runs) == 6
    assert {run["case"]["data"] for run in runs} == {"example"}


def test_runs_of_before_leave_cells_empty(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fresh(script: str, case: dict[str, Any], threads: int) -> dict[str, Any]:
        return {key: value for key, value in fake_result(case).items() if key not in OLD}

    monkeypatch.setattr(quality, "fresh", fresh)
    command = [str(data), "--out", str(tmp_path / "out"), "--methods", "unet", "--scales", "1", "0.5"]
    quality.main(command)
    path = tmp_path / "out" / "quality.json"
    runs = json.loads(path.read_text())["runs"]
    for run in runs:  # as they were written
        run["case"]["data"] = str(data)
    path.write_text(json.dumps({"runs": runs}))
    monkeypatch.setattr(quality, "fresh", None)
    quality.main(command)
    printed = capsys.readouterr().out
    for scale in ("1", "0.5"):
        assert f"| unet, input x {scale} | 0.200 [0.20, 0.20] | 0.200 | 0.333 | 0.125 |  | 0.400 | 0.000 |" in printed
        assert f"| unet, input x {scale} | 3 | 7 | 1.00 | 0.50 |  |  | 1.00 M |" in printed


def test_published_runs_can_be_read() -> None:
    book = quality.Book(common.RESULTS / "quality.json")
    assert book.runs
    for run in book.runs:
        results = [run["result"]]
        labels = ["background"] + ["class"] * (len(next(iter(run["result"]["confusions"].values()))) - 1)
        parts = report.report("head", {"method": {quality.describe(run["case"]): results}}, labels)
        assert len(parts) == 3


def test_pictures_of_all_sizes_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def fresh(script: str, case: dict[str, Any], threads: int) -> dict[str, Any]:
        assert Path(case["data"], "images").is_dir()
        tried.append(Path(case["data"]).name)
        return fake_result(case)

    monkeypatch.setattr(quality, "fresh", fresh)
    command = ["--sizes", "64", "96", "--pictures", "ihc", "--methods", "patchtree", "--out", str(tmp_path / "out")]
    quality.main(command)
    quality.main(command)
    assert tried == ["ihc_64", "ihc_96"]
    assert "### ihc_96: 7 images to train and validate on, 2 held out" in capsys.readouterr().out
    command[command.index("--methods") + 1 :] = ["patchtree", "uniform", "unet", "--out", str(tmp_path / "out")]
    quality.main([*command, "--finished"])
    assert tried == ["ihc_64", "ihc_96"]
    printed = capsys.readouterr().out
    assert "| patchtree |" in printed
    assert "| unet" not in printed


@pytest.mark.parametrize("picture", pictures.PICTURES)
def test_pictures_show_the_same_at_every_size(picture: str, tmp_path: Path) -> None:
    shares = []
    for side in (128, 512):
        dataset = find_data(pictures.make_data(tmp_path / f"{side}", picture, side))
        masks = [pair.read_mask() for pair in dataset.pairs]
        assert len(masks) == 9
        assert dataset.pairs[0].read_image().shape == (side, side, 3)
        counts = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=len(dataset.labels))
        shares.append(counts / side**2 / 9)
        assert shares[-1].min() > 0.01
    assert np.allclose(*shares, atol=0.02)


def test_borders_of_labels_are_smooth() -> None:
    labels = np.array([[0, 0], [0, 1]], np.uint8)
    large = pictures.resize_labels(labels, 2, 64)
    assert large[0, 0] == 0
    assert large[-1, -1] == 1
    # Half of it is where linear interpolation passes one half, which is no square.
    assert len(set(large.sum(axis=0).tolist())) > 4


def test_an_option_that_is_not_possible(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, what in (([], "data set"), ([str(data), "--crop", "100"], "multiple of 32")):
        with pytest.raises(SystemExit):
            quality.main(words)
        assert what in capsys.readouterr().err


# Scores


def test_confusion_leaves_out_what_is_ignored(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "images" / "a.png", np.zeros((2, 2), np.uint8))
    write_mask(tmp_path / "masks" / "a.png", np.array([[0, 1], [1, 9]], np.uint8))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "cell": 1, "ignore": 9}}')
    dataset = find_data(tmp_path)
    mask = dataset.pairs[0].read_mask()
    assert scores.confusion(np.array([[0, 0], [1, 1]]), mask, dataset).tolist() == [[1, 0], [1, 1]]
    assert scores.hausdorff(np.array([[0, 1], [1, 1]]), mask, dataset) == [0.0]
    assert scores.hausdorff(np.array([[0, 0], [0, 1]]), mask, dataset) == [8**0.5]
    assert scores.hausdorff(np.array([[0, 0], [0, 1]]), np.full((2, 2), 9), dataset) == [None]


def test_dice_and_iou() -> None:
    table = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert np.allclose(scores.dice(table), [6 / 7, 4 / 5, np.nan], equal_nan=True)
    assert np.allclose(scores.iou(table), [3 / 4, 2 / 3, np.nan], equal_nan=True)
    assert scores.mean(scores.dice(table)) == 4 / 5
    assert scores.micro(np.array([[3, 1, 0], [0, 2, 1], [1, 0, 4]])) == 2 * 6 / (8 + 8)
    assert np.isnan(scores.micro(np.array([[3, 0], [0, 0]])))


def test_distance_is_that_of_whole_distance_maps() -> None:
    from scipy.ndimage import binary_erosion, distance_transform_edt

    rng = np.random.default_rng(0)
    found, true = (np.kron(rng.random((8, 10)) < 0.2, np.ones((5, 7))) > 0 for _ in range(2))
    found[:, :20] = true[:, :20] = False
    found[0, 30:] = True
    edges = [mask & ~binary_erosion(mask) for mask in (found, true)]
    ways = zip(edges, [distance_transform_edt(~edge) for edge in edges[::-1]], strict=True)
    expected = max(np.percentile(far[edge], 95) for edge, far in ways)
    assert expected > 5
    distance = scores.distance(found, true)
    assert distance == pytest.approx(expected, abs=1e-5)


def test_interval_holds_images_and_seeds() -> None:
    rng = np.random.default_rng(1)
    hits = rng.integers(20, 80, (3, 10))
    tables = np.array([[[[100, 0], [100 - hit, hit]] for hit in seed] for seed in hits])
    middle = float(scores.mean(scores.dice(tables.sum(1))).mean())
    low, high = scores.interval(tables)
    assert low < middle < high
    assert (low, high) == scores.interval(tables)
    slow = []
    for _ in range(2000):
        seeds, images = rng.integers(3, size=3), rng.integers(10, size=10)
        slow.append(np.mean([scores.mean(scores.dice(tables[seed, images].sum(0))) for seed in seeds]))
    assert np.allclose((low, high), np.percentile(slow, (2.5, 97.5)), atol=0.01)
    assert scores.interval(tables[:1, :1]) == (pytest.approx(scores.mean(scores.dice(tables[0, 0]))),) * 2
    assert np.isnan(scores.interval(np.array([[[[4, 0], [0, 0]]]]))).all()


# Methods


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_give_logits_of_every_pixel(name: str) -> None:
    import torch
    from bench.peers import crops

    torch.manual_seed(0)
    network = networks.NETWORKS[name].make(4, 3, 64, 4)
    images, target = torch.randn(2, 4, 64, 64), torch.randint(-1, 3, (2, 64, 64))
    assert network.eval()(images).shape == (2, 3, 64, 64)
    logits = network.train()(images)
    assert logits.shape[-3:] == (3, 64, 64)
    assert logits.ndim == (5 if name == "nnunet_like" else 4)
    crops.supervise(logits, target).backward()
    taught = [weight.grad is not None for weight in network.parameters()]
    assert sum(taught) > 0.8 * len(taught)  # some have parts that they do not use


def test_no_time_is_left(data: Path, tmp_path: Path) -> None:
    import torch
    from bench.peers import crops

    from patchtree.cache import cache_data

    images = cache_data(find_data(data), tmp_path / "cache")
    supply = crops.Crops.of(images, 3, None, crops.Settings(crop=64, workers=0))
    network = networks.make_unet(3, 3, 64, 1)
    assert crops.train(network, supply, -1.0, torch.device("cpu")) == 0


def test_deeper_outputs_weigh_half_as_much() -> None:
    import torch
    from bench.peers import crops

    logits, target = torch.randn(2, 3, 2, 8, 8), torch.randint(0, 2, (2, 8, 8))
    each = [crops.supervise(logits[:, at], target) for at in range(3)]
    expected = (each[0] + each[1] / 2 + each[2] / 4) / 1.75
    assert crops.supervise(logits, target).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("name", "scale"), [("unet", 1.0), ("unet", 0.5), ("nnunet_like", 1.0)])
def test_network_learns_from_crops_and_predicts_at_full_size(
    data: Path, tmp_path: Path, name: str, scale: float
) -> None:
    import torch
    from bench.peers import crops

    from patchtree.cache import cache_data

    torch.manual_seed(0)
    kind = networks.NETWORKS[name]
    images = cache_data(find_data(data), tmp_path / "cache")
    settings = crops.Settings(scale=scale, crop=96, workers=0, lr=kind.lr)
    if kind.plan is not None:
        settings = kind.plan(settings, [image.shape for image in images])
    side = settings.crop
    assert side == (96 if name == "unet" else 192)
    supply = crops.Crops.of(images[:4], 3, ignore=2, settings=settings)
    image, target = supply[5]
    assert image.shape == (3, side, side)
    assert target.shape == (side, side)
    assert set(target.unique().tolist()) <= {-1, 0, 1}
    assert supply[5][0].equal(image)
    network = kind.make(3, 3, side, 2)
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


@pytest.mark.parametrize("shape", [(50, 64), (64, 65), (100, 300), (113, 160)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_windows_are_counted_as_they_are_slid(shape: tuple[int, int], scale: float) -> None:
    import torch
    from bench.peers import crops

    seen = 0

    class Counting(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += len(inputs)
            return inputs[:, :2]

    settings = crops.Settings(scale=scale, crop=64, overlap=0.25)
    crops.predict(Counting(), np.zeros((*shape, 3), np.uint8), settings, torch.device("cpu"))
    assert crops.count_windows(shape, settings) == seen


def test_plan_follows_the_median_image() -> None:
    from bench.peers.crops import Settings

    shapes = [(300, 500), (320, 480), (2000, 3000)]
    full, half = (nnunet_plan.plan(Settings(scale=scale), shapes) for scale in (1.0, 0.5))
    assert (full.crop, full.batch_size, full.course) == (320, 5, "sgd")
    assert (half.crop, half.batch_size) == (160, 20)
    assert nnunet_plan.plan(Settings(), [(2848, 4288)]).crop == 512


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_counted(masked: bool) -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    query = torch.randn(2, 3, 40, 16)
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool) if masked else None
    counted = methods.count_multiply_adds(lambda: scaled_dot_product_attention(query, query, query, mask))
    assert counted == 2 * (2 * 3 * 40 * 40 * 16)
    with torch.inference_mode():
        layer, image = torch.nn.Linear(5, 7), torch.ones(3, 5)
        assert methods.count_multiply_adds(lambda: layer(image)) == 3 * 5 * 7


@pytest.mark.parametrize("shape", [(256, 256), (130, 77), (300, 700)])
def test_uniform_takes_the_finest_patches_everywhere(shape: tuple[int, int]) -> None:
    from math import prod

    from bench.peers import uniform

    from patchtree.budget import with_budget
    from patchtree.patcher import Patcher

    # Three of one size, so that it is the median one that the budget is of.
    asked = uniform.options([(256, 256)] * 3, [shape] * 9, tokens=300)
    patcher = Patcher.from_dict(Patcher(asked["patch_size"], asked["budget"], detail=asked["detail"]).to_dict())
    density = asked["budget"] / 256**2
    for height, width in (shape, (256, 256)):
        tree = with_budget(patcher, (height, width), density).plan(np.zeros((height, width, 3), np.uint8))
        assert not tree.level.any()
        assert len(tree) == prod(-(-side // 16) for side in (height, width))


def test_uniform_refuses_what_would_not_be_uniform() -> None:
    from bench.peers import uniform

    with pytest.raises(pt.errors.InputError, match="patches"):
        uniform.options([(64, 64)], [(8192, 8192)], tokens=300)


# How soon a Dice is reached


def test_the_dice_of_counts_is_that_of_the_painted_image() -> None:
    import torch
    from bench import equal_dice, train_step

    from patchtree.models.choose import build_model
    from patchtree.models.precision import half_where_quick

    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(2):
        mask = np.kron(rng.integers(0, 3, (10, 11)), np.ones((9, 9))).astype(np.uint8)
        pairs.append(((80 * mask)[..., None].repeat(3, -1), mask))
    torch.manual_seed(0)
    model = build_model("patchtree:nano", 3, patch_size=8)
    case = {"way": "adaptive", "patch_size": 8, "budget": 60, "detail": "residual"}
    tests = [train_step.prepare(case, [pair], model) for pair in pairs]
    expected = np.zeros((3, 3), np.int64)
    for batch, (_, mask) in zip(tests, pairs, strict=True):
        with torch.inference_mode(), half_where_quick("cpu"):
            logits = model.eval()(batch.tokens, batch.ghosts)[0].float()
        painted = batch.tokens.trees[0].paint(logits.numpy()).argmax(-1)
        np.add.at(expected, (mask, painted), 1)
    assert equal_dice.score(model, tests) == pytest.approx(float(scores.mean(scores.dice(expected))))


def test_sooner_is_a_bound_where_uniform_patches_never_get_there() -> None:
    from bench.equal_dice import Row, Way, summary

    def way(*courses: list[tuple[float, int, float]]) -> Way:
        return Way([{"tokens": 4, "course": course} for course in courses])

    adaptive = way([(1, 1, 0.0), (2, 3, 0.6)], [(1, 1, 0.0), (4, 7, 0.7)])
    uniform = way([(2, 1, 0.0), (9, 3, 0.6)], [(2, 1, 0.0), (9, 5, 0.4)])
    row = Row(64, uniform, adaptive)
    assert (adaptive.step, uniform.step) == (0.5, (7 / 2 + 7 / 4) / 2)
    assert (adaptive.reach(0.5), adaptive.reach(0.5, 1), adaptive.reach(0.65)) == (3, 5, None)
    assert row.sooner(0.5) == 3
    assert row.sooner(0.65) is None
    assert row.times(0.5) == ("64 x 64", "", "over 9", "5", "3", "at least 3.00")
    assert row.times(0.65)[-1] == ""
    assert summary([row], 0.5) == "Geometric mean over 64 px: at least 3.00 times sooner."
