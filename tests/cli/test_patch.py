from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from patchtree import Patcher, Patches
from patchtree.fidelity import measure_psnr
from patchtree.io.images import read_image, write_image
from patchtree.show import show

from .conftest import Run, outputs, picture, run_process


def test_patches_picture_and_figures(run: Run, image: Path, tmp_path: Path) -> None:
    result = run("patch", image, "--out", tmp_path / "new" / "out", "--budget", "100", "--json")
    assert (result.code, result.err) == (0, "")
    [figures] = result.json
    out = tmp_path / "new" / "out"
    assert outputs(out) == ["disc.npz", "disc_leaves.png"]
    assert figures["files"] == [str(out / "disc.npz"), str(out / "disc_leaves.png")]
    pixels = read_image(image)
    expected = Patcher(budget=100)(pixels)
    patches = Patches.load(out / "disc.npz")
    assert patches.tree == expected.tree
    np.testing.assert_array_equal(patches.pixels, expected.pixels)
    np.testing.assert_array_equal(read_image(out / "disc_leaves.png"), show(pixels, expected.tree))
    assert figures["image"] == str(image)
    assert (figures["shape"], figures["dtype"]) == ([200, 300, 3], "uint8")
    assert (figures["patches"], figures["patch_size"], figures["uniform"]) == (len(expected), 16, 13 * 19)
    assert figures["reduction"] == 13 * 19 / len(expected)
    assert sum(figures["leaves"].values()) == len(expected)
    assert set(figures["leaves"]) == {str(size) for size in expected.tree.sizes()}
    assert set(figures["seconds"]) == {"read", "plan", "cut"}
    painted = expected.tree.paint(expected.pixels)
    assert figures["psnr"] == pytest.approx(peak_signal_noise_ratio(pixels, painted))


def test_what_a_person_reads(run: Run, image: Path, tmp_path: Path) -> None:
    result = run("patch", image, "--out", tmp_path, "--budget", "100")
    assert (result.code, result.err) == (0, "")
    for word in ("disc.png: 300 x 200 px, 3 channels, uint8", "247 if they were uniform", "dB PSNR", "plan", "16 px"):
        assert word in result.out
    assert "exact (inf dB)" in run("patch", image, "--out", tmp_path, "--max-level", "0").out


def test_many_times_fewer_are_written_out(run: Run, tmp_path: Path) -> None:
    write_image(tmp_path / "blank.png", np.zeros((1024, 1024), np.uint8))
    told = run("patch", tmp_path / "blank.png", "--out", tmp_path / "out", "--budget", "1").out
    assert "patches  1 of 16 x 16 px; 4,096 if they were uniform (4,096 times)" in told


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--patch-size", "8"], {"patch_size": 8}),
        (["--budget", "40"], {"budget": 40}),
        (["--budget", "999", "--threshold", "300"], {"budget": 999, "threshold": 300.0}),
        (["--detail", "residual", "--budget", "60"], {"detail": "residual", "budget": 60}),
        (["--detail", "variance", "--budget", "60"], {"detail": "variance", "budget": 60}),
        (["--max-level", "1", "--budget", "90"], {"max_level": 1, "budget": 90}),
        (["--balanced", "--budget", "40", "--patch-size", "4"], {"balanced": True, "budget": 40, "patch_size": 4}),
    ],
)
@pytest.mark.filterwarnings("ignore:Edges found too little detail")
def test_every_option_does_what_it_says(
    words: list[str], options: dict[str, Any], run: Run, image: Path, tmp_path: Path
) -> None:
    assert run("patch", image, "--out", tmp_path, *words).code == 0
    tree = Patches.load(tmp_path / "disc.npz").tree
    assert tree == Patcher(**options).plan(read_image(image))
    if options:
        assert tree != Patcher().plan(read_image(image))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_psnr_equals_that_of_scikit_image(dtype: Any) -> None:
    image = (np.random.default_rng(0).random((3000, 70)) * 100).astype(dtype)
    patches = Patcher(patch_size=4, budget=64, detail="variance")(image)
    peak = {np.uint8: 255, np.uint16: 65535}.get(dtype, float(image.max()) - float(image.min()))
    painted = patches.tree.paint(patches.pixels)
    expected = peak_signal_noise_ratio(image.astype(float), painted.astype(float), data_range=peak)
    assert measure_psnr(image, patches) == pytest.approx(expected)


def test_folders_are_opened(run: Run, tmp_path: Path) -> None:
    for name in ("b.png", "a.tif"):
        write_image(tmp_path / name, picture())
    (tmp_path / "notes.txt").write_text("no image")
    result = run("patch", tmp_path, tmp_path / "b.png", "--out", tmp_path / "out", "--json", "--budget", "50")
    assert [Path(figures["image"]).name for figures in result.json] == ["a.tif", "b.png"]


def test_one_bad_image_among_good_ones(run: Run, image: Path, tmp_path: Path) -> None:
    bad, other = tmp_path / "bad.png", tmp_path / "other.png"
    bad.write_bytes(image.read_bytes()[:300])
    write_image(other, picture(seed=1))
    paths = [image, bad, tmp_path / "missing.png", other]
    result = run("patch", *paths, "--out", tmp_path / "out", "--json", "--budget", "50")
    assert result.code == 1
    assert [figures["image"] for figures in result.json] == [str(image), str(other)]
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)
    assert {name for name in ("bad.png", "missing.png") for line in lines if name in line} == {"bad.png", "missing.png"}
    assert len(outputs(tmp_path / "out")) == 4


def test_images_of_one_stem_do_not_overwrite_each_other(run: Run, image: Path, tmp_path: Path) -> None:
    twin = tmp_path / "disc.tif"
    write_image(twin, picture(seed=1))
    result = run("patch", image, twin, "--out", tmp_path / "out")
    assert (result.code, result.out, result.err.count("error: ")) == (1, "", 2)
    assert not outputs(tmp_path / "out")


def test_inputs_are_not_overwritten(run: Run, image: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "disc_leaves.png"
    drawn.write_bytes(image.read_bytes())
    result = run("patch", image, drawn, "--out", tmp_path)
    assert result.failed_with("disc_leaves.png", "overwritten")
    assert drawn.read_bytes() == image.read_bytes()


def test_a_line_a_picture_and_a_point(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("point", (1, 1)), ("line", (40000, 1)), ("row", (1, 3000, 3))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / f"{name}.png")
    result = run("patch", tmp_path, "--out", tmp_path / "out", "--detail", "variance", "--json")
    assert (result.code, result.err) == (0, "")
    counts = {Path(figures["image"]).stem: figures["patches"] for figures in result.json}
    assert counts == {"point": 1, "line": 1024, "row": 188}


@pytest.mark.parametrize("name", ["photo.jfif", "photo"])
def test_what_a_file_is_decides(name: str, run: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, format="JPEG")
    result = run("patch", tmp_path / name, "--out", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    assert "120 x 90 px, 3 channels" in result.out


def test_cmyk(run: Run, tmp_path: Path) -> None:
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "print.jpg")
    result = run("patch", tmp_path / "print.jpg", "--out", tmp_path / "out", "--budget", "100", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json[0]["shape"] == [200, 300, 3]


def test_as_a_process(image: Path, tmp_path: Path) -> None:
    result = run_process("patch", image, "--out", tmp_path / "out", "--budget", "50", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json[0]["patches"] == 50
