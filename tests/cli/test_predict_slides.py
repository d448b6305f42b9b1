from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from PIL import Image

from patchtree.cli.masks import _outline
from patchtree.errors import InputError
from patchtree.io import outlines
from patchtree.io.annotations import Annotations
from patchtree.io.images import read_image, write_image
from patchtree.io.pyramids import write_class_map
from patchtree.io.slides import open_slide
from patchtree.runs import load_config, save_config
from slide_files import small_slide

from .conftest import Result, Run, Trained, outputs, picture


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_slide(tmp_path_factory.mktemp("slide"), (640, 800), tissue=0.3)[0]


def test_a_slide_beside_an_image(run: Run, trained: Trained, slide: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", picture())
    words = [slide, tmp_path / "photo.png", "--out", tmp_path / "out", "--geojson", "--overlay", "--json"]
    result = run("predict", trained.run, *words)
    assert (result.code, result.err) == (0, "")
    out = tmp_path / "out"
    names = [f"{stem}{suffix}" for stem in ("photo", "slide") for suffix in (".geojson", "_overlay.png")]
    assert outputs(out) == sorted([*names, "areas.csv", "photo.png", "slide.tif"])
    photo, figures = result.json
    assert (photo["image"], figures["image"]) == (str(tmp_path / "photo.png"), str(slide))
    assert figures["files"] == [str(out / name) for name in ("slide.tif", "slide.geojson", "slide_overlay.png")]
    assert (figures["shape"], figures["mpp"]) == ([640, 800, 3], [0.25, 0.25])
    assert figures["windows"] >= 1
    ids = tifffile.imread(out / "slide.tif")
    assert figures["pixels"] == {"background": int((ids == 0).sum()), "disc": int((ids == 1).sum())}
    assert 0.05 < (ids == 1).mean() < 0.6
    with openslide.OpenSlide(out / "slide.tif") as opened:
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.25)
    with Image.open(out / "slide_overlay.png") as opened:
        assert opened.size == (1600, 1280)
    for name, mask in (("slide", ids), ("photo", read_image(out / "photo.png"))):
        features = json.loads((out / f"{name}.geojson").read_text())["features"]
        shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
        assert all(shape.is_valid for shape in shapes)
        assert {feature["properties"]["classification"]["name"] for feature in features} <= {"disc"}
        assert all(len(feature["properties"]["classification"]["color"]) == 3 for feature in features)
        assert sum(shape.area for shape in shapes) == pytest.approx((mask == 1).sum(), rel=0.01)


def test_every_option_has_its_effect(run: Run, trained: Trained, slide: Path, tmp_path: Path) -> None:
    words = ["--format", "ome-tiff", "--mpp", "0.5", "--min-mpp", "1", "--workers", "1", "--probabilities"]
    result = run("predict", trained.run, slide, "--out", tmp_path, *words, "--json")
    assert (result.code, result.err) == (0, "")
    assert outputs(tmp_path) == ["areas.csv", "slide.ome.tif", "slide_probabilities.zarr"]
    with tifffile.TiffFile(tmp_path / "slide.ome.tif") as file:
        ids = file.asarray()
        assert 'PhysicalSizeX="0.5"' in (file.ome_metadata or "")
    with open_slide(tmp_path / "slide_probabilities.zarr") as opened:
        assert opened.mpp == (0.5, 0.5)
        shares = opened.read(0, 0, 0, *opened.shape).astype(int)
    sure = abs(shares[..., 1] - shares[..., 0]) > 1
    np.testing.assert_array_equal(shares.argmax(-1)[sure], ids[sure])
    plain = run("predict", trained.run, slide, "--out", tmp_path / "plain", "--json")
    assert plain.code == 0
    assert (tifffile.imread(tmp_path / "plain" / "slide.tif") != ids).any()
    one = run("predict", trained.run, slide, "--out", tmp_path, "--flips")
    assert one.failed_with("slide.tif: --flips is for images")


def test_what_is_done_is_not_done_again(run: Run, trained: Trained, slide: Path, tmp_path: Path) -> None:
    words = ["predict", trained.run, slide, "--out", tmp_path, "--resume", "--json"]
    first = run(*words)
    assert (first.code, first.err) == (0, "")
    written = (tmp_path / "slide.tif").stat().st_mtime_ns
    assert run(*words).json == first.json
    assert (tmp_path / "slide.tif").stat().st_mtime_ns == written


def test_logs_tell_how_far_a_slide_is(
    run: Run, trained: Trained, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchtree.cli.progress._LINE_EVERY", 0)
    result = run("predict", trained.run, slide, "--out", tmp_path, "--json")
    count = result.json[0]["windows"]
    assert f"Predicting: 0 of 1; slide.tif, windows: {count} of {count}, 0:00:00 left\n" in result.err
    assert result.err.endswith("Predicting: 1 of 1, 0:00:00 left\n")


def _forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing may be predicted."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("predicts again")

    monkeypatch.setattr("patchtree.inference.Predictor.in_patches", refuse)


def test_outlines_and_overlays_are_made_of_finished_masks(
    run: Run, trained: Trained, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "photo.png", picture())
    both, out = (slide, tmp_path / "photo.png"), tmp_path / "out"
    whole = run("predict", trained.run, *both, "--out", tmp_path / "whole", "--geojson", "--overlay")
    assert (whole.code, whole.err) == (0, "")
    words = ["predict", trained.run, *both, "--resume", "--json", "--out"]
    assert run(*words, out).code == 0
    with monkeypatch.context() as patched:
        _forbid(patched)
        more = run(*words, out, "--geojson", "--overlay")
        assert (more.code, more.err) == (0, "")
        assert outputs(out) == outputs(tmp_path / "whole")
        for name in outputs(out):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
        names = ["slide.tif", "slide.geojson", "slide_overlay.png"]
        assert [Path(file).name for file in more.json[-1]["files"]] == names
        # Once more with nothing missing, with less, and with what was lost; the folder may be spelled otherwise.
        monkeypatch.chdir(tmp_path)
        assert run(*words, "out", "--geojson", "--overlay").json == more.json
        assert run(*words, out).json == more.json
        (out / "slide.geojson").unlink()
        assert [Path(file).name for file in run(*words, out).json[-1]["files"]] == [names[0], names[2]]
        assert run(*words, out, "--geojson").code == 0
        assert (out / "slide.geojson").read_bytes() == (tmp_path / "whole" / "slide.geojson").read_bytes()
    # Probabilities are no longer there to be written.
    assert run(*words, out, "--probabilities").code == 0
    assert (out / "slide_probabilities.zarr").is_dir()


def test_what_belongs_to_an_earlier_mask_goes_with_it(run: Run, trained: Trained, slide: Path, tmp_path: Path) -> None:
    words = ["predict", trained.run, slide, "--out", tmp_path]
    (tmp_path / "slide.xml").write_text("somebody's own")
    assert run(*words, "--geojson", "--overlay", "--probabilities").code == 0
    assert run(*words, "--mpp", "0.5").code == 0
    assert outputs(tmp_path) == ["areas.csv", "slide.tif", "slide.xml"]
    (tmp_path / "slide.geojson").write_text("somebody's own")
    assert run(*words).code == 0
    assert outputs(tmp_path) == ["areas.csv", "slide.geojson", "slide.tif", "slide.xml"]
    # Patches have states of the same name.
    assert run("patch", slide, "--out", tmp_path, "--budget", "60").code == 0
    assert run(*words, "--mpp", "0.5").code == 0
    kept = ["slide.geojson", "slide.npz", "slide.tif", "slide.xml", "slide_leaves.png"]
    assert outputs(tmp_path) == ["areas.csv", *kept]


def test_outlines_that_fail_do_not_cost_the_mask(
    run: Run, trained: Trained, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", trained.run, slide, "--out", tmp_path, "--geojson", "--resume"]

    def fail(error: BaseException) -> None:
        raise error

    def failing(error: BaseException) -> Result:
        with monkeypatch.context() as patched:
            patched.setattr("patchtree.io.annotations.write_annotations", lambda *_: fail(error))
            return run(*words)

    assert failing(KeyboardInterrupt()).code == 130
    written = (tmp_path / "slide.tif").stat().st_mtime_ns
    assert failing(InputError("slide.geojson: cannot be written")).failed_with("slide.geojson: cannot be written")
    assert (tmp_path / "slide.tif").stat().st_mtime_ns == written
    assert outputs(tmp_path) == ["areas.csv", "slide.tif"]
    assert run("info", tmp_path).err == "error: slide.geojson: cannot be written\n"
    _forbid(monkeypatch)
    assert run(*(word for word in words if word != "--geojson")).code == 0
    assert "  done      1\n" in run("info", tmp_path).out
    result = run(*words)
    assert (result.code, result.err) == (0, "")
    assert outputs(tmp_path) == ["areas.csv", "slide.geojson", "slide.tif"]
    assert "  done      1\n" in run("info", tmp_path).out


def spoil_tiles(slide: Path, path: Path, tiles: slice) -> None:
    """Write a copy of a slide that is whole but for some tiles of its finest level."""
    data = bytearray(slide.read_bytes())
    with tifffile.TiffFile(slide) as file:
        page = file.pages[0]
        for offset, count in zip(page.dataoffsets[tiles], page.databytecounts[tiles], strict=True):
            data[offset : offset + count] = bytes(count)
    path.write_bytes(data)


def test_one_bad_slide_stops_nothing(run: Run, trained: Trained, slide: Path, tmp_path: Path) -> None:
    bad = tmp_path / "in" / "bad.tif"
    bad.parent.mkdir()
    spoil_tiles(slide, bad, slice(5, 15))
    (tmp_path / "in" / "empty.svs").touch()
    (tmp_path / "in" / "fine.tif").write_bytes(slide.read_bytes())
    result = run("predict", trained.run, tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert result.code == 1
    assert [Path(figures["image"]).name for figures in result.json] == ["fine.tif"]
    lines = sorted(result.err.splitlines())
    assert len(lines) == 2
    assert lines[0].startswith(f"error: {bad}: level 0, rows ")
    assert "cannot be read" in lines[0]
    assert lines[1].startswith(f"error: {tmp_path / 'in' / 'empty.svs'}: is empty")
    assert not (tmp_path / "out" / "bad.tif").exists()


def test_areas_of_all_slides_are_in_one_table(run: Run, trained: Trained, slide: Path, tmp_path: Path) -> None:
    bare, _ = small_slide(tmp_path, (300, 700), tissue=0.3, mpp=None)
    bare = bare.rename(tmp_path / "bare.tif")
    out = tmp_path / "out"
    one = run("predict", trained.run, slide, "--out", out, "--geojson", "--json").json[0]
    pixels = one["pixels"]
    assert one["mm2"] == {name: pytest.approx(count * 0.25**2 / 1e6, abs=1e-6) for name, count in pixels.items()}
    features = json.loads((out / "slide.geojson").read_text(encoding="utf-8"))["features"]
    areas = [feature["properties"]["measurements"]["Area µm^2"] for feature in features]
    assert sum(areas) / 1e6 == pytest.approx(one["mm2"]["disc"], rel=0.01)
    two = run("predict", trained.run, bare, "--out", out, "--json").json[0]
    assert two["mm2"] is None
    (tmp_path / "broken.tif").write_bytes(slide.read_bytes()[:3000])
    result = run("predict", trained.run, slide, tmp_path / "broken.tif", "--out", out, "--resume")
    assert result.code == 1
    with (out / "areas.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {
            "name": name,
            "image": str(path),
            "background mm2": str(areas["background"]) if areas else "",
            "background px": str(told["pixels"]["background"]),
            "disc mm2": str(areas["disc"]) if areas else "",
            "disc px": str(told["pixels"]["disc"]),
        }
        for name, path, told, areas in (("bare", bare, two, two["mm2"]), ("slide", slide, one, one["mm2"]))
    ]
    assert " mm²)" in run("predict", trained.run, slide, "--out", out).out


def test_bad_tiles_may_be_background(run: Run, trained: Trained, slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.tif"
    spoil_tiles(slide, path, slice(5, 9))
    words = ("predict", trained.run, path, "--out", tmp_path / "out", "--overlay", "--json")
    assert run(*words).code == 1
    result = run(*words, "--resume", "--skip-bad-tiles")
    assert result.code == 0
    assert 1 <= result.json[0]["bad_tiles"] <= 4
    assert result.err.startswith(f"warning: {path}: {result.json[0]['bad_tiles']} tile")
    assert outputs(tmp_path / "out") == ["areas.csv", "bad.tif", "bad_overlay.png"]


def test_pixel_sizes_that_differ_or_are_not_there(run: Run, trained: Trained, slide: Path, tmp_path: Path) -> None:
    config = load_config(trained.run)
    other = tmp_path / "run"
    other.mkdir()
    (other / "weights.safetensors").write_bytes((trained.run / "weights.safetensors").read_bytes())
    save_config(other, type(config)(**{**config.__dict__, "mpp": 1.0}))
    result = run("predict", other, slide, "--out", tmp_path / "out")
    assert result.code == 0
    assert "0.25 µm a pixel, the run was trained at 1; --min-mpp 1 shows it as coarse" in result.err
    assert run("predict", other, slide, "--out", tmp_path / "out", "--min-mpp", "1").err == ""
    assert "expect worse" in run("predict", other, slide, "--out", tmp_path / "out", "--mpp", "3").err
    folder = tmp_path / "bare"
    folder.mkdir()
    bare, _ = small_slide(folder, (300, 700), tissue=0.3, mpp=None)
    result = run("predict", trained.run, bare, "--out", tmp_path / "out")
    assert result.code == 0
    assert "has no pixel size, so its mask has none; --mpp sets it" in result.err


def test_a_mask_that_cannot_be_read_has_not_too_many_corners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> Annotations:
        if given[-1] == 0:
            raise InputError("ids.tif: a tile cannot be read")
        return whole(*given)  # type: ignore[arg-type]

    whole = outlines.outline_slide
    write_class_map(tmp_path / "ids.tif", (800, 1200), lambda y0, x0, y1, x1: np.zeros((y1 - y0, x1 - x0), np.uint8))
    monkeypatch.setattr(outlines, "outline_slide", fail)
    with open_slide(tmp_path / "ids.tif") as mask, pytest.raises(InputError, match="a tile cannot be read"):
        _outline(mask, {"glass": 0, "cells": 1})


def test_what_is_for_slides_is_refused_for_images(run: Run, trained: Trained, slide: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", picture())
    for words in (["--mpp", "0.5"], ["--min-mpp", "1"]):
        result = run("predict", trained.run, slide, tmp_path / "photo.png", "--out", tmp_path / "out", *words)
        assert result.failed_with("photo.png", "are for slides")
    assert not (tmp_path / "out").exists()


def test_outlines_of_too_many_corners_are_those_of_a_coarser_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.zeros((800, 1200), np.uint8)
    ids[100:500, 200:900] = 1
    # Dots of one pixel have many corners, and are gone from the next level.
    ids[600:700:4, ::4] = 1
    write_class_map(tmp_path / "ids.tif", ids.shape, lambda y0, x0, y1, x1: ids[y0:y1, x0:x1])
    monkeypatch.setattr(outlines, "_MOST_CORNERS", 1000)
    with open_slide(tmp_path / "ids.tif") as mask, pytest.warns(UserWarning, match=r"so outlines are coarser, to 2 pi"):
        found = _outline(mask, {"glass": 0, "cells": 1})
    assert [one.area for one in found.polygons] == [400 * 700]
