from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchtree.inference import load
from patchtree.io.images import read_image, read_mask, write_image
from untrained import untrained_run

from .conftest import Run, Trained, outputs, picture, run_process


def test_masks_of_the_images_own_size(run: Run, trained: Trained, tmp_path: Path) -> None:
    paths = []
    for at, shape in enumerate([(96, 128), (33, 17), (1, 1), (3000, 2)]):
        paths.append(tmp_path / f"{at}.png")
        write_image(paths[-1], picture(*shape, seed=at))
    result = run("predict", trained.run, *paths, "--out", tmp_path / "new" / "masks", "--json")
    assert (result.code, result.err) == (0, "")
    predictor = load(trained.run)
    for path, figures in zip(paths, result.json, strict=True):
        mask = tmp_path / "new" / "masks" / path.name
        assert (figures["image"], figures["files"]) == (str(path), [str(mask)])
        ids, image = read_mask(mask), read_image(path)
        assert ids.shape == image.shape[:2]
        np.testing.assert_array_equal(ids, predictor(image))
        assert figures["pixels"] == {"background": int((ids == 0).sum()), "disc": int((ids == 1).sum())}


def test_probabilities_and_flips(run: Run, trained: Trained, tmp_path: Path) -> None:
    path = trained.data / "images" / "a.png"
    result = run("predict", trained.run, path, "--out", tmp_path, "--probabilities", "--flips")
    assert (result.code, result.err) == (0, "")
    shares = read_image(tmp_path / "a_probabilities.tif")
    expected = load(trained.run).probabilities(read_image(path), flips=True)
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), expected.argmax(-1))
    assert outputs(tmp_path) == ["a.png", "a_probabilities.tif"]


@pytest.mark.parametrize("words", [["--format", "ome-tiff"], ["--skip-bad-tiles"]])
def test_what_is_for_slides_is_refused_where_there_are_none(
    words: list[str], run: Run, trained: Trained, tmp_path: Path
) -> None:
    result = run("predict", trained.run, trained.data / "images" / "a.png", "--out", tmp_path / "out", *words)
    assert result.failed_with("are for slides; predict images without them")
    assert not (tmp_path / "out").exists()


def test_images_too_large_for_png(run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchtree.io.images._PNG_SIDE", 100)
    result = run("predict", trained.run, trained.data / "images" / "a.png", "--out", tmp_path)
    assert (result.code, result.err) == (0, "")
    assert read_mask(tmp_path / "a.tif").shape == (96, 128)


def test_one_bad_image_among_good_ones(run: Run, trained: Trained, tmp_path: Path) -> None:
    grey, broken = tmp_path / "grey.png", tmp_path / "broken.png"
    write_image(grey, picture()[..., 0])
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    words = ["predict", trained.run, grey, broken, trained.data / "images", "--out", tmp_path / "out", "--json"]
    result = run(*words)
    assert result.code == 1
    assert len(result.json) == 4
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert any(line.startswith(f"error: {grey}: the image has 1 channel") for line in lines)
    assert any(line.startswith(f"error: {broken}: ") for line in lines)


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("two") / "run", channels=2)


def write_channels(folder: Path, *names: str, seed: int = 0) -> list[Path]:
    paths = [folder / name for name in names]
    for at, path in enumerate(paths):
        write_image(path, picture(seed=seed + at)[..., at % 3])
    return paths


def test_files_of_one_channel_each_are_one_image(run: Run, two_channels: Path, tmp_path: Path) -> None:
    files = write_channels(tmp_path, "a_0001.tif", "b_0000.tif", "b_0001.tif", "a_0000.tif")
    write_image(tmp_path / "c_0000.tif", picture()[..., :2])
    write_image(tmp_path / "d.tif", picture()[..., 1:])
    out = tmp_path / "out"
    result = run("predict", two_channels, *files, tmp_path / "c_0000.tif", tmp_path / "d.tif", "--out", out, "--json")
    assert (result.code, result.err) == (0, "")
    assert [figures["image"] for figures in result.json] == [
        str(tmp_path / name) for name in ("a_0000.tif", "b_0000.tif", "c_0000.tif", "d.tif")
    ]
    assert outputs(out) == ["a.png", "b.png", "c_0000.png", "d.png"]
    image = np.stack([read_image(tmp_path / f"a_{channel:04}.tif") for channel in (0, 1)], axis=-1)
    np.testing.assert_array_equal(read_mask(out / "a.png"), load(two_channels)(image))


def test_masks_of_nnunets_test_images_have_the_names_of_the_cases(run: Run, two_channels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    write_image(folder / "a_0000.tif", picture()[..., :2])
    write_channels(folder, "b_0000.tif", "b_0001.tif")
    assert run("predict", two_channels, folder, "--out", tmp_path / "out").code == 0
    assert outputs(tmp_path / "out") == ["a.png", "b.png"]
    (tmp_path / "list.csv").write_text("path,name\nimagesTs/a_0000.tif,second\n")
    assert run("predict", two_channels, "--manifest", tmp_path / "list.csv", "--out", tmp_path / "named").code == 0
    assert outputs(tmp_path / "named") == ["second.png"]


def test_frames_that_hold_all_channels_are_images_of_their_own(run: Run, two_channels: Path, tmp_path: Path) -> None:
    for at in range(3):
        write_image(tmp_path / f"frame_{at:04}.tif", picture(seed=at)[..., :2])
    (tmp_path / "frame_0000.tif").write_bytes(b"II*\x00")
    result = run("predict", two_channels, tmp_path, "--out", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert f"{tmp_path / 'frame_0000.tif'}: " in result.err
    assert outputs(tmp_path / "out") == ["frame_0001.png", "frame_0002.png"]


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["a_0000.tif"], "a_0001.tif"),
        (["a_0001.tif"], "a_0000.tif"),
        (["a_0000.tif", "a_0002.tif"], "a_0001.tif"),
        (["a_0001.tif", "a_0002.tif", "a_0003.tif"], "a_0000.tif"),
    ],
)
def test_a_channel_that_is_missing_is_named(
    names: list[str], missing: str, run: Run, two_channels: Path, tmp_path: Path
) -> None:
    write_channels(tmp_path, *names, "b_0000.tif", "b_0001.tif")
    result = run("predict", two_channels, tmp_path, "--out", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert result.err.startswith(f"error: {tmp_path / missing}: is missing, an image has 2 channels")
    assert outputs(tmp_path / "out") == ["b.png"]


def test_channels_that_do_not_fit_each_other(run: Run, two_channels: Path, tmp_path: Path) -> None:
    write_channels(tmp_path, "a_0000.tif", "a_0001.tif", "b_0000.tif", "b_0001.tif", "b_0002.tif")
    write_image(tmp_path / "a_0001.tif", picture(40, 50)[..., 0])
    result = run("predict", two_channels, tmp_path, "--out", tmp_path / "out")
    assert result.code == 1
    first, second = result.err.splitlines()
    assert "a_0001.tif: 50 x 40 px of uint8, but a_0000.tif is 300 x 200 px" in first
    assert "b_0000.tif: the image has 3 channels (RGB), the run was trained on images with 2 channels" in second


def test_nothing_is_overwritten(run: Run, trained: Trained, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(trained.data / "images", images)
    assert run("predict", trained.run, images, "--out", images).failed_with("a.png", "overwritten", "--out")
    np.testing.assert_array_equal(read_image(images / "a.png"), read_image(trained.data / "images" / "a.png"))
    Image.fromarray(picture()).save(images / "a.jpg")
    result = run("predict", trained.run, images, "--out", tmp_path / "out", "--json")
    assert (result.code, len(result.json)) == (1, 3)
    assert [line.count(f"{images / 'a'}.") for line in result.err.splitlines()] == [2, 2]
    assert outputs(tmp_path / "out") == ["b.png", "c.png", "d.png"]


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_a_run_that_misses_a_file(name: str, verb: str, run: Run, trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained.run, copy, ignore=shutil.ignore_patterns(name))
    words = [trained.data / "images", "--out", tmp_path] if verb == "predict" else [trained.data]
    assert run(verb, copy, *words).failed_with(str(copy), name)


def test_a_run_that_is_damaged_or_newer(run: Run, trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained.run, copy)
    words = ["predict", copy, trained.data / "images", "--out", tmp_path]
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "format": 99}))
    assert run(*words).failed_with("config.json", "99", "update patchtree")
    assert run("info", copy).failed_with("config.json", "99", "update patchtree")
    (copy / "config.json").write_text("{")
    assert run(*words).failed_with("config.json")
    (copy / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "name": "patchtree:small"}}))
    assert run(*words).failed_with("weights.safetensors")
    (copy / "config.json").write_text(json.dumps(config))
    weights = (copy / "weights.safetensors").read_bytes()
    (copy / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    assert run(*words).failed_with("weights.safetensors")
    assert run("predict", tmp_path / "none", *words[2:]).failed_with("none")


def test_a_device_that_is_not_here(run: Run, trained: Trained, tmp_path: Path) -> None:
    words = [trained.data / "images", "--out", tmp_path, "--device"]
    assert run("predict", trained.run, *words, "cuda:99").failed_with("cuda:99")
    assert run("predict", trained.run, *words, "abacus").failed_with("abacus")


def test_as_a_process(trained: Trained, tmp_path: Path) -> None:
    result = run_process("predict", trained.run, trained.data / "images", "--out", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 4
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
