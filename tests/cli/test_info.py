from __future__ import annotations

from pathlib import Path

import numpy as np

from patchtree import Patcher, Tree
from patchtree.io.images import write_image

from .conftest import Run, picture


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
