from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from patchtree import Patcher, Tree
from patchtree.datasets import find_data, split_data
from patchtree.io.images import write_image, write_mask

from .conftest import TRAIN, Run, picture, write_data


def test_an_image(run: Run, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(1000, 5, (200, 300)).astype(np.uint16)
    write_image(tmp_path / "noise.tif", values)
    [result] = run("info", tmp_path / "noise.tif", "--json").json
    noise = result.pop("noise")
    assert result == {
        "path": str(tmp_path / "noise.tif"),
        "kind": "image",
        "shape": [200, 300],
        "dtype": "uint16",
        "bytes": 120_000,
        "lowest": [values.min()],
        "mean": [float(f"{values.mean():.4g}")],
        "highest": [values.max()],
    }
    assert abs(noise[0] - 5) < 0.3


def test_an_image_that_knows_its_pixel_size(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), resolution=(2e4, 4e4), resolutionunit="CENTIMETER", metadata=None)
    assert run("info", path, "--json").json[0]["mpp"] == [0.25, 0.5]
    assert "  mpp      0.25, 0.5 µm\n" in run("info", path).out


def test_patches_and_trees(run: Run, tmp_path: Path) -> None:
    patches = Patcher(budget=50)(picture())
    patches.save(tmp_path / "a.npz")
    patches.tree.save(tmp_path / "a.tree")
    Tree.uniform((20, 30, 40), 16).save(tmp_path / "deep.tree")
    result = run("info", tmp_path / "a.npz", tmp_path / "a.tree", tmp_path / "deep.tree", "--json")
    assert (result.code, result.err) == (0, "")
    first, second, third = result.json
    sizes, counts = np.unique(patches.tree.sizes(), return_counts=True)
    histogram = dict(zip(map(str, sizes.tolist()), counts.tolist(), strict=True))
    tree = {"shape": [200, 300], "patch_size": 16, "leaves": len(patches), "sizes": histogram}
    place = {"origin": [0, 0], "extent": [200, 300]}
    pixels = {"pixels": list(patches.pixels.shape), "dtype": "uint8"}
    assert first == {"path": str(tmp_path / "a.npz"), "kind": "patches", **tree, **pixels, **place}
    assert second == {"path": str(tmp_path / "a.tree"), "kind": "tree", **tree}
    assert (third["shape"], third["leaves"]) == ([20, 30, 40], 12)


@pytest.mark.parametrize("palette", [False, True])
def test_a_mask(palette: bool, run: Run, tmp_path: Path) -> None:
    ids = np.zeros((10, 20), np.uint8)
    ids[:2] = 3
    file = Image.fromarray(ids)
    if palette:
        file.putpalette([9, 9, 9, 0, 0, 0, 0, 0, 0, 255, 0, 128])
    file.save(tmp_path / "mask.png")
    [result] = run("info", tmp_path / "mask.png", "--json").json
    assert result["ids"] == {"0": 0.8, "3": 0.2}
    assert "  ids      0: 0.8, 3: 0.2" in run("info", tmp_path / "mask.png").out


def test_a_data_folder(run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", "abcdefghijkl", labels={"background": 0, "disc": 1, "ignore": 255})
    write_image(data / "images" / "a.png", picture(30, 40))
    write_mask(data / "masks" / "a.png", np.full((30, 40), 255))
    result = run("info", data, "--json")
    assert (result.code, result.err) == (0, "")
    dataset = find_data(data)
    share = np.mean([pair.read_mask() for pair in dataset.pairs[1:]])
    train, val = split_data(dataset)
    assert result.json == [
        {
            "path": str(data),
            "kind": "data",
            "images": 12,
            "smallest": [30, 40],
            "largest": [96, 128],
            "channels": {"3": 12},
            "dtype": {"uint8": 12},
            "labels": {"background": 0, "disc": 1},
            "ignore": 255,
            "shares": {"background": float(f"{1 - share:.4g}"), "disc": float(f"{share:.4g}")},
            "train": [pair.name for pair in train.pairs],
            "val": [pair.name for pair in val.pairs],
            "problems": [],
        }
    ]
    out = run("info", data).out
    assert "  largest   96, 128" in out
    assert ", ... (10 in all)" in out
    assert "  problems  none" in out


def test_a_data_folder_that_training_would_refuse(run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", labels={"background": 0, "disc": 1})
    write_mask(data / "masks" / "a.png", np.zeros((5, 5), np.uint8))
    write_mask(data / "masks" / "b.png", np.full((96, 128), 7))
    (data / "images" / "c.png").write_bytes((data / "images" / "c.png").read_bytes()[:500])
    (data / "splits.json").write_text("{}")
    words = [
        "a.png: 5 x 5 px, but a.png has 128 x 96 px",
        "b.png: holds id 7",
        "c.png: ",
        "splits.json: has no names under 'train'",
    ]
    result = run("info", data, "--json")
    assert result.code == 1
    [found] = result.json
    assert len(found["problems"]) == 4
    assert all(word in problem for word, problem in zip(words, found["problems"], strict=True))
    assert result.err.splitlines() == [f"error: {problem}" for problem in found["problems"]]
    assert found["channels"] == {"3": 3}
    assert "  problems  4\n" in run("info", data).out


def test_an_image_smaller_than_a_patch(run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    write_image(data / "images" / "tiny.png", picture()[:9, :7])
    write_mask(data / "masks" / "tiny.png", np.zeros((9, 7), np.uint8))
    result = run("info", data, "--json")
    assert result.code == 1
    assert result.json[0]["problems"] == [
        f"{data / 'images' / 'tiny.png'}: is 7 x 9 px, less than a patch of 16; leave it out, or give a smaller patch "
        "size"
    ]


@pytest.mark.parametrize("odd", [np.zeros((96, 128), np.uint8), np.zeros((96, 128, 3), np.uint16)])
def test_images_that_differ_in_kind(odd: NDArray[Any], run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    write_image(data / "images" / "b.png", odd)
    assert run("train", data, "--out", tmp_path / "run", *TRAIN).code == 1
    result = run("info", data)
    assert result.code == 1
    found = "1 channel of uint8" if odd.ndim == 2 else "3 channels of uint16"
    assert result.err == (
        f"error: {data}: a.png has 3 channels of uint8, b.png has {found}; give all images the same channels and type\n"
    )


def test_a_folder_that_is_neither_a_run_nor_data(run: Run, tmp_path: Path) -> None:
    assert run("info", tmp_path).failed_with(str(tmp_path), "neither a run (config.json) nor a data folder")


def test_a_folder_of_images_is_each_of_them(run: Run, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("b.png", "a.png"):
        (folder / name).write_bytes(image.read_bytes())
    (folder / "notes.txt").write_text("two of them")
    told = run("info", folder, image, "--json").json
    assert [one["path"] for one in told] == [str(path) for path in (folder / "a.png", folder / "b.png", image)]
    assert {one["kind"] for one in told} == {"image"}


def test_what_a_person_reads(run: Run, image: Path) -> None:
    result = run("info", image)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == str(image)
    assert "  shape    200, 300, 3" in result.out


def test_bad_ones_are_named_and_the_rest_is_told(run: Run, image: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pixels=np.zeros(3))
    (tmp_path / "a.tree").write_bytes(b"PTRE\x09" + bytes(60))
    result = run("info", tmp_path / "a.npz", tmp_path / "a.tree", image)
    assert result.code == 1
    assert str(image) in result.out
    first, second = result.err.splitlines()
    assert first.startswith(f"error: {tmp_path / 'a.npz'}: not a patches file")
    assert second.startswith(f"error: {tmp_path / 'a.tree'}: this tree has format version 9, newer")
