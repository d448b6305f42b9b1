"""Volumes from the command line: trained on, predicted in the same place, and looked at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from patchtree.io.images import read_image, write_image
from patchtree.io.volumes import Grid, read_grid, read_volume, read_volume_mask, write_volume
from patchtree.runs import load_config

from .conftest import Run, Trained, outputs, run_process

QUICK = ("--model", "patchtree:nano", "--max-epochs", 2, "--workers", 0, "--batch-size", 2)
DIRECTION = (1.0, 0.0, 0.0, 0.0, 0.8, -0.6, 0.0, 0.6, 0.8)


def write_scan(root: Path, name: str, seed: int, suffix: str = ".nii.gz") -> Grid:
    """A bright ball in noise and its mask."""
    rng = np.random.default_rng(seed)
    shape = (16 + seed, 40, 36 + 2 * seed)
    centre = np.array(shape) / 2 + rng.uniform(-3, 3, 3)
    inside = sum(((axis - at) / r) ** 2 for axis, at, r in zip(np.indices(shape), centre, (6, 12, 12), strict=True)) < 1
    volume = rng.normal(-100, 20, shape) + 200 * inside
    grid = Grid(shape, (2.5, 0.8, 0.8), (-10.0, 20.0, 30.0), DIRECTION)
    for folder, values in (("images", volume.astype(np.int16)), ("masks", inside.astype(np.uint8))):
        (root / folder).mkdir(parents=True, exist_ok=True)
        write_volume(root / folder / f"{name}{suffix}", values, grid)
    return grid


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("scans")
    for seed, name in enumerate("abcd"):
        write_scan(root / "data", name, seed)
    options = ("--model", "patchtree:nano", "--max-epochs", 40, "--workers", 0, "--batch-size", 2)
    result = run_process("train", root / "data", "--out", root / "run", *options)
    assert result.code == 0, result
    return Trained(root / "data", root / "run", result)


def test_a_run_is_made(scans: Trained) -> None:
    config = load_config(scans.run)
    assert (config.ndim, config.model["ndim"], config.patcher["patch_size"], config.channels) == (3, 3, 8, 1)
    assert config.dtype == "int16"
    for line in (
        "data: 3 volumes of 38 x 40 x 17 voxels to train on, 1 to validate on; background, class 1",
        "of 8 x 8 x 8 voxels a volume, by residual",
    ):
        assert line in scans.result.err


def test_prediction_lies_where_the_volume_does(scans: Trained, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("predict", scans.run, scans.data / "images", "--out", out, "--probabilities", "--overlay", "--json")
    assert (result.code, result.err) == (0, "")
    assert outputs(out) == sorted(
        f"{name}{what}" for name in "abcd" for what in (".nii.gz", "_probabilities.nii.gz", "_overlay.png")
    )
    for told in result.json:
        name = Path(told["image"]).name.removesuffix(".nii.gz")
        image, true = (
            scans.data / "images" / f"{name}.nii.gz",
            read_volume_mask(scans.data / "masks" / f"{name}.nii.gz"),
        )
        ids, shares = read_volume_mask(out / f"{name}.nii.gz"), read_volume(out / f"{name}_probabilities.nii.gz")
        assert ids.dtype == np.uint8
        assert read_grid(out / f"{name}.nii.gz").covers(read_grid(image))
        assert read_grid(out / f"{name}_probabilities.nii.gz").covers(read_grid(image))
        assert told["shape"] == list(ids.shape)
        assert told["pixels"] == {"background": int((ids == 0).sum()), "class 1": int((ids == 1).sum())}
        assert np.allclose(shares.sum(-1), 1, atol=1e-3)
        assert np.array_equal(shares.argmax(-1), ids)
        assert 2 * (ids & true).sum() / (ids.sum() + true.sum()) > 0.5
        # Another program reads it alike.
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{name}.nii.gz"))), ids)
        assert read_image(out / f"{name}_overlay.png").ndim == 3


def test_the_suffix_is_the_volumes_own(scans: Trained, run: Run, tmp_path: Path) -> None:
    for seed, suffix in enumerate((".nrrd", ".mha", ".nii")):
        write_scan(tmp_path, f"s{seed}", seed, suffix)
    assert run("predict", scans.run, tmp_path / "images", "--out", tmp_path / "out", "--flips").code == 0
    assert outputs(tmp_path / "out") == ["s0.nrrd", "s1.mha", "s2.nii.gz"]


def test_evaluate_counts_voxels(scans: Trained, run: Run) -> None:
    result = run("evaluate", scans.run, scans.data, "--all", "--json")
    assert result.code == 0
    voxels = sum(read_volume(path).size for path in (scans.data / "masks").iterdir())
    assert sum(scores["pixels"] for scores in result.json["classes"].values()) == voxels
    assert result.json["classes"]["class 1"]["dice"] > 0.5


def test_images_and_volumes_are_told_apart(scans: Trained, trained: Trained, run: Run, tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", np.zeros((20, 20, 3), np.uint8))
    scan = scans.data / "images" / "a.nii.gz"
    result = run("predict", scans.run, tmp_path / "photo.png", scan, "--out", tmp_path / "out")
    assert (result.code, outputs(tmp_path / "out")) == (1, ["a.nii.gz"])
    assert f"photo.png: is no volume, and {scans.run} was trained on volumes; name another run" in result.err
    result = run("predict", trained.run, scan, "--out", tmp_path / "out2")
    assert result.code == 1
    assert f"a.nii.gz: is a volume, and {trained.run} was trained on images; name another run" in result.err
    result = run("predict", scans.run, scan, "--out", tmp_path / "out3", "--geojson")
    assert result.failed_with("was trained on volumes, and --geojson is for images and slides")


def test_a_damaged_scan_stops_no_other(scans: Trained, run: Run, tmp_path: Path) -> None:
    shutil.copytree(scans.data / "images", tmp_path / "in")
    path = tmp_path / "in" / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:1000])
    result = run("predict", scans.run, tmp_path / "in", "--out", tmp_path / "out")
    assert result.code == 1
    assert outputs(tmp_path / "out") == ["a.nii.gz", "c.nii.gz", "d.nii.gz"]
    assert "b.nii.gz: cannot be read (Compressed file ended" in result.err


def test_patch_and_info(scans: Trained, run: Run, tmp_path: Path) -> None:
    scan = scans.data / "images" / "a.nii.gz"
    result = run("patch", scan, "--out", tmp_path, "--budget", 20, "--detail", "residual", "--json")
    (told,) = result.json
    assert (told["kind"], told["patch_size"], told["uniform"]) == ("volume", 8, 2 * 5 * 5)
    assert told["patches"] <= 20
    assert outputs(tmp_path) == ["a.npz", "a_leaves.png"]
    assert "of 8 x 8 x 8 voxels; 50 if they were uniform" in run("patch", scan, "--out", tmp_path, "--budget", 20).out
    (told,) = run("info", scan, "--json").json
    assert (told["kind"], told["shape"], told["spacing"]) == ("volume", [16, 40, 36], [2.5, 0.8, 0.8])
    (told,) = run("info", scans.data, "--json").json
    assert (told["images"], told["smallest"], told["problems"]) == (4, [16, 40, 36], [])
    assert run("patch", scan, "--out", tmp_path, "--mpp", 1).failed_with("--mpp and --min-mpp are for slides")
    assert run("patch", scan, "--out", tmp_path, "--patch-size", 64).failed_with("36 x 40 x 16 voxels")


def two_channels(path: Path) -> NDArray[np.int16]:
    """A scan and its negative."""
    scan = read_volume(path)
    return np.stack([scan, -scan], axis=-1)


def test_the_decathlons_layout(run: Run, tmp_path: Path) -> None:
    """All channels in one file without a number, or with one that is the case's own, and labels by id."""
    data = tmp_path / "data"
    for seed, name in enumerate(("BRATS_0001", "b.v2")):
        grid = write_scan(data, name, seed)
        path = data / "images" / f"{name}.nii.gz"
        write_volume(path, two_channels(path), grid)
    (data / "images").rename(data / "imagesTr")
    (data / "masks").rename(data / "labelsTr")
    (data / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "ball"}}))
    (told,) = run("info", data, "--json").json
    assert (told["images"], told["labels"], told["channels"]) == (2, {"background": 0, "ball": 1}, {"2": 2})
    assert run("train", data, "--out", tmp_path / "run", *QUICK).code == 0
    assert run("predict", tmp_path / "run", data / "imagesTr", "--out", tmp_path / "out").code == 0
    assert outputs(tmp_path / "out") == ["BRATS_0001.nii.gz", "b.v2.nii.gz"]


def test_nnunets_layout(run: Run, tmp_path: Path) -> None:
    """A file a channel; one that lies elsewhere is told."""
    data = tmp_path / "data"
    for seed, name in enumerate("ab"):
        grid = write_scan(data, name, seed)
        path = data / "images" / f"{name}.nii.gz"
        for channel in (0, 1):
            write_volume(path.with_name(f"{name}_000{channel}.nii.gz"), two_channels(path)[..., channel], grid)
        path.unlink()
    (data / "images").rename(data / "imagesTr")
    (data / "masks").rename(data / "labelsTr")
    assert run("train", data, "--out", tmp_path / "run", *QUICK).code == 0
    assert load_config(tmp_path / "run").channels == 2
    moved = data / "imagesTr" / "b_0001.nii.gz"
    write_volume(moved, read_volume(moved), Grid(grid.shape, grid.spacing, (0.0, 0.0, 0.0), DIRECTION))
    result = run("predict", tmp_path / "run", data / "imagesTr", "--out", tmp_path / "out")
    assert (result.code, outputs(tmp_path / "out")) == (0, ["a.nii.gz", "b.nii.gz"])
    assert f"b_0000.nii.gz: {moved} lies elsewhere by its spacing" in result.err


def test_one_volume_without_some_labels_resumed(run: Run, tmp_path: Path) -> None:
    """splits.json names it twice; ids to ignore are left out; a second call goes on, and predicts nothing twice."""
    data = tmp_path / "data"
    grid = write_scan(data, "A", 0)
    ids = read_volume_mask(data / "masks" / "A.nii.gz")
    ids[:, :5] = 255
    write_volume(data / "masks" / "A.nii.gz", ids, grid)
    (data / "images" / "A.nii.gz").rename(data / "images" / "A.NII.GZ")
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": 1, "ignore": 255}}))
    (data / "splits.json").write_text(json.dumps({"train": ["A"], "val": ["A"]}))
    assert run("train", data, "--out", tmp_path / "run", *QUICK).code == 0
    result = run("train", data, "--out", tmp_path / "run", "--resume", "--max-epochs", 4, "--workers", 0)
    assert result.code == 0
    result = run("evaluate", tmp_path / "run", data, "--all", "--json")
    assert sum(scores["pixels"] for scores in result.json["classes"].values()) == np.count_nonzero(ids != 255)
    (tmp_path / "list.csv").write_text(f"path,name\n{data / 'images' / 'A.NII.GZ'},first\n")
    predict = ("predict", tmp_path / "run", "--manifest", tmp_path / "list.csv", "--out", tmp_path / "out")
    assert run(*predict).code == 0
    assert outputs(tmp_path / "out") == ["first.nii.gz"]
    assert "1 of 1 were done before" in run(*predict, "--resume").out


def test_thin_volumes(run: Run, tmp_path: Path) -> None:
    """Of one slice, and of three."""
    data = tmp_path / "data"
    for name, depth in (("a", 1), ("b", 3)):
        ids = np.zeros((depth, 64, 80), np.uint8)
        ids[:, 10:40, 20:60] = 1
        volume = np.random.default_rng(depth).normal(0, 20, ids.shape) + 100 * ids
        for folder, values in (("images", volume.astype(np.float32)), ("masks", ids)):
            (data / folder).mkdir(parents=True, exist_ok=True)
            write_volume(data / folder / f"{name}.nii", values)
    assert run("train", data, "--out", tmp_path / "run", *QUICK).code == 0
    assert run("predict", tmp_path / "run", data / "images", "--out", tmp_path / "out").code == 0
    assert [read_volume_mask(tmp_path / "out" / f"{name}.nii.gz").shape[0] for name in "ab"] == [1, 3]


def test_what_training_refuses(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for seed, name in enumerate("ab"):
        write_scan(data, name, seed)
    write_volume(data / "masks" / "b.nii.gz", np.zeros((3, 4, 5), np.uint8))
    result = run("train", data, "--out", tmp_path / "run")
    assert result.failed_with("b.nii.gz: 5 x 4 x 3 voxels, but b.nii.gz has 38 x 40 x 17 voxels; make them equal")
    (data / "masks" / "b.nii.gz").unlink()
    write_image(data / "masks" / "b.png", np.zeros((4, 5), np.uint8))
    assert run("train", data, "--out", tmp_path / "run").failed_with("keep them in folders of their own")
    assert not (tmp_path / "run").exists()
    assert run("pretrain", data, "--out", tmp_path / "run").failed_with("is a volume, and an image is wanted")


def test_a_mask_that_lies_elsewhere_is_told(run: Run, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        grid = write_scan(tmp_path, name, seed)
    moved = Grid(grid.shape, grid.spacing, (0.0, 0.0, 0.0), DIRECTION)
    write_volume(tmp_path / "masks" / "b.nii.gz", read_volume_mask(tmp_path / "masks" / "b.nii.gz"), moved)
    result = run("info", tmp_path)
    assert result.code == 0
    mask = tmp_path / "masks" / "b.nii.gz"
    assert f"images/b.nii.gz: {mask} lies elsewhere by its spacing, origin or direction" in result.err
