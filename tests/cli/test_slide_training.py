"""Data sets of whole slides through the command line: trained, predicted, evaluated, told of, refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from patchtree.io.annotations import Annotations, Polygon, write_annotations
from patchtree.io.images import write_image
from patchtree.metrics import dice
from patchtree.runs import CACHE, load_config
from patchtree.training import train
from slide_files import slide_set

from .conftest import SMALL, Run

TRAIN = (*SMALL, "--max-epochs", 1, "--budget", 200, "--window", 500, "--batch-size", 2)


@dataclass(frozen=True)
class Learnt:
    """A data set, a run made from it, and what was told on the way."""

    data: Path
    run: Path
    lines: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slide_set(tmp_path_factory.mktemp("slides") / "data", "abc", tissue=0.2)


@pytest.fixture(scope="module")
def learnt(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """A run of one epoch, with a process that makes samples."""
    lines: list[str] = []
    out = tmp_path_factory.mktemp("learnt") / "run"
    words: dict[str, Any] = {"patch_size": 8, "budget": 200, "window": 500, "batch_size": 2, "workers": 1}
    train(made, out, max_epochs=1, accelerator="cpu", progress=False, report=lines.append, **words)
    return Learnt(made, out, lines)


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def test_a_run_is_made(learnt: Learnt) -> None:
    config = load_config(learnt.run)
    assert config.labels == {"background": 0, "stained": 1}
    assert config.mpp == pytest.approx(0.25)
    assert (config.window, config.channels, config.dtype) == (500, 3, "uint8")
    assert (len(config.train), len(config.val)) == (2, 1)
    lines = learnt.lines
    assert lines[0].startswith("data: 2 slides of 1,300 x 1,100 px to train on, 1 to validate on by ")
    assert lines[0].endswith(" windows; background, stained")
    assert "of 8 x 8 px for the tissue of a slide, by residual; windows of 500 px" in lines[1]
    assert "best Dice" in lines[-1]
    assert not (learnt.run / CACHE).exists()


def test_it_is_evaluated_on_whole_slides(run: Run, learnt: Learnt, tmp_path: Path) -> None:
    result = run("evaluate", learnt.run, learnt.data, "--json").json
    assert (result["images"], result["left_out"], result["chosen_on"]) == (1, 2, 1)
    assert sum(scores["pixels"] for scores in result["classes"].values()) == 1100 * 1300
    [name] = result["by_image"]
    assert run("predict", learnt.run, learnt.data / "images" / f"{name}.tif", "--out", tmp_path).code == 0
    [predicted] = (path for path in tmp_path.rglob("*.tif"))
    found = tifffile.imread(predicted, level=0)
    truth = tifffile.imread(learnt.data / "masks" / f"{name}.tif", level=0)
    both = np.bincount(truth.reshape(-1).astype(int) * 2 + found.reshape(-1), minlength=4).reshape(2, 2)
    assert result["classes"]["stained"]["pixels"] == (truth == 1).sum()
    assert result["classes"]["stained"]["dice"] == pytest.approx(dice(_tensor(both))[1].item())
    assert run("evaluate", learnt.run, learnt.data, "--flips").failed_with(f"{name}.tif", "without flips")


def _tensor(table: Any) -> Any:
    import torch

    return torch.from_numpy(table.astype(float))


def test_slides_of_another_pixel_size_are_told(run: Run, learnt: Learnt, tmp_path: Path) -> None:
    other = slide_set(tmp_path / "other", "z", size=(600, 700), mpp=0.5)
    result = run("evaluate", learnt.run, other)
    assert result.code == 0
    assert "z.tif: has pixels of 0.5 µm, the run was trained on 0.25 µm" in result.err


def test_it_goes_on(run: Run, learnt: Learnt, tmp_path: Path) -> None:
    copy = shutil.copytree(learnt.run, tmp_path / "run")
    result = run("train", learnt.data, "--out", copy, "--resume", "--max-epochs", 2, "--workers", 0)
    assert result.code == 0, result
    assert len((copy / "metrics.csv").read_text().splitlines()) > len(
        (learnt.run / "metrics.csv").read_text().splitlines()
    )


def test_info_tells_of_a_data_set_of_slides(run: Run, made: Path) -> None:
    [told] = run("info", made, "--json").json
    assert (told["kind"], told["images"], told["smallest"], told["problems"]) == ("data", 3, [1100, 1300], [])
    assert sum(told["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert 0.01 < told["shares"]["stained"] < 0.2


def test_a_folder_of_paip_is_data_and_its_slides_are_what_is_worked_on(run: Run, made: Path, tmp_path: Path) -> None:
    paip = tmp_path / "paip"
    paip.mkdir()
    for name in "ab":
        shutil.copy(made / "images" / f"{name}.tif", paip / f"{name}.svs")
        for part in ("viable", "whole"):
            shutil.copy(made / "masks" / f"{name}.tif", paip / f"{name}_{part}.tif")
    result = run("info", paip, "--json")
    assert (result.code, result.err) == (0, "")
    assert (result.json[0]["kind"], result.json[0]["images"]) == ("data", 2)
    assert list(result.json[0]["labels"]) == ["background", "viable tumour"]
    done = run("patch", paip, "--out", tmp_path / "out", "--budget", 50, "--detail", "residual", "--json").json
    assert [Path(one["image"]).name for one in done] == ["a.svs", "b.svs"]
    # A mask that is named is patched.
    [one] = run("patch", paip / "a_whole.tif", "--out", tmp_path / "out", "--budget", 50, "--json").json
    assert Path(one["image"]).name == "a_whole.tif"
    # Beside the states of what was written, outputs are outputs.
    assert "outputs" in run("info", tmp_path / "out").out


def test_the_layout_of_paip_and_smaller_masks(run: Run, made: Path, tmp_path: Path) -> None:
    for name in "ab":
        shutil.copy(made / "images" / f"{name}.tif", tmp_path / f"{name}.svs")
        ids = tifffile.imread(made / "masks" / f"{name}.tif", level=0)[::2, ::2]
        tifffile.imwrite(tmp_path / f"{name}_viable.tif", ids, tile=(64, 64))
        (tmp_path / f"{name}.xml").write_text("<Annotations></Annotations>")
    result = run("train", tmp_path, "--out", tmp_path / "run", *TRAIN)
    assert result.code == 0, result
    assert "2 times smaller than the slide" in result.err
    assert load_config(tmp_path / "run").labels == {"background": 0, "viable tumour": 1}


def test_annotations_are_learnt_from(run: Run, data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "masks")
    (data / "dataset.json").unlink()
    (data / "annotations").mkdir()
    ring = np.array([(300, 300), (900, 300), (900, 800), (300, 800)], float)
    for name in "abc":
        drawn = Annotations((Polygon("tumour", (ring,)),))
        write_annotations(data / "annotations" / f"{name}.geojson", drawn)
    result = run("train", data, "--out", tmp_path / "run", *TRAIN)
    assert result.code == 0, result
    assert load_config(tmp_path / "run").labels == {"background": 0, "tumour": 1}


def mask_of_another_size(data: Path) -> None:
    tifffile.imwrite(data / "masks" / "b.tif", np.eye(900, 1300, dtype=np.uint8), tile=(64, 64))


def unknown_id(data: Path) -> None:
    tifffile.imwrite(data / "masks" / "b.tif", np.full((1100, 1300), 7, np.uint8), tile=(64, 64))


def unknown_class(data: Path) -> None:
    (data / "masks" / "b.tif").unlink()
    (data / "annotations").mkdir()
    ring = np.array([(300, 300), (900, 300), (900, 800)], float)
    write_annotations(data / "annotations" / "b.geojson", Annotations((Polygon("nerve", (ring,)),)))


def slide_without_mask(data: Path) -> None:
    (data / "masks" / "b.tif").unlink()


def annotation_without_slide(data: Path) -> None:
    (data / "annotations").mkdir()
    (data / "annotations" / "x.geojson").write_text("[]")


def damaged_slide(data: Path) -> None:
    path = data / "images" / "b.tif"
    path.rename(path.with_suffix(".svs"))
    path.with_suffix(".svs").write_bytes(b"II*\x00" + b"\x00" * 99)


def damaged_mask(data: Path) -> None:
    path = data / "masks" / "b.tif"
    path.write_bytes(path.read_bytes()[:500])


def an_image_among_slides(data: Path) -> None:
    write_image(data / "images" / "x.png", np.zeros((9, 9), np.uint8))


def no_names(data: Path) -> None:
    (data / "dataset.json").unlink()


def only_background(data: Path) -> None:
    for name in "abc":
        tifffile.imwrite(data / "masks" / f"{name}.tif", np.zeros((1100, 1300), np.uint8), tile=(64, 64))


def names_with_a_gap(data: Path) -> None:
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "stained": 2}}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (mask_of_another_size, ["masks/b.tif: a mask of 1,300 x 900 px, but the slide has 1,300 x 1,100"]),
        (unknown_id, ["masks/b.tif: holds id 7, which no label has"]),
        (unknown_class, ["b.geojson: class 'nerve' is not among the labels (background, stained)"]),
        (slide_without_mask, ["images/b.tif: has no mask in masks/"]),
        (annotation_without_slide, ["annotations/x.geojson: has no slide in images/"]),
        (damaged_slide, ["images/b.svs"]),
        (damaged_mask, ["masks/b.tif"]),
        (an_image_among_slides, ["images/x.png: is an image, but a.tif beside it is a slide"]),
        (no_names, ["masks/a.tif", "dataset.json"]),
        (only_background, ["nothing to learn from"]),
        (names_with_a_gap, ["dataset.json", "gaps"]),
    ],
)
def test_bad_data(spoil: Any, words: list[str], run: Run, data: Path, tmp_path: Path) -> None:
    spoil(data)
    assert run("train", data, "--out", tmp_path / "run", *TRAIN).failed_with(*words)
    assert not (tmp_path / "run").exists()
