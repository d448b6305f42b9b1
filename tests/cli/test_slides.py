"""Slides through the command line: one, many, damaged ones, and killed at any moment."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from patchtree import Patcher, Patches, open_slide
from patchtree.io.images import read_image, write_image
from patchtree.show import show_small
from patchtree.slides import patch_slide
from patchtree.slides.thumbnail import thumbnail
from slide_files import small_slide

from .conftest import Result, Run, outputs, picture, run_process

OPTIONS = ("--detail", "residual", "--budget", 59)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,100 x 1,300 pixels in three levels, 15% tissue, 0.25 µm a pixel."""
    return small_slide(tmp_path_factory.mktemp("slide"), (1100, 1300))[0]


@pytest.fixture
def many(slide: Path, tmp_path: Path) -> Path:
    """A folder of slides."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in "abcd":
        os.link(slide, folder / f"{name}.tif")
    return folder


def write_zarr(path: Path) -> Path:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(path, mode="w", zarr_format=2)
    scales = []
    for name, step in (("0", 1), ("1", 2)):
        group.create_array(name, data=np.full((3, 300 // step, 400 // step), 200, np.uint8), chunks=(3, 64, 64))
        scales.append(
            {"path": name, "coordinateTransformations": [{"type": "scale", "scale": [1, step / 2, step / 2]}]}
        )
    axes = [
        {"name": "c", "type": "channel"},
        *({"name": name, "type": "space", "unit": "micrometer"} for name in "yx"),
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": scales}]
    return path


# One slide


@pytest.mark.filterwarnings("ignore:Residual found too little detail")
def test_patches_picture_and_figures(run: Run, slide: Path, tmp_path: Path) -> None:
    result = run("patch", slide, "--out", tmp_path, "--json", "--budget", 2000, "--detail", "residual", "--workers", 2)
    assert result.code == 0
    assert result.err.startswith(f"warning: {slide}: Residual found too little detail to use a budget of 2000")
    [figures] = result.json
    assert outputs(tmp_path) == ["slide.npz", "slide_leaves.png"]
    expected = patch_slide(Patcher(budget=2000, detail="residual"), open_slide(slide))
    patches = Patches.load(tmp_path / "slide.npz")
    assert patches.tree == expected.tree
    np.testing.assert_array_equal(patches.pixels, expected.pixels)
    drawn = show_small(thumbnail(open_slide(slide), 3200), expected.tree)
    np.testing.assert_array_equal(read_image(tmp_path / "slide_leaves.png"), drawn)
    seconds = figures.pop("seconds")
    assert list(seconds) == ["patch", "save", "draw"]
    tissue, read = figures.pop("tissue"), figures.pop("read")
    assert 0.16 < tissue < 0.3
    assert 0.1 < read < 1 + 1 / 4 + 1 / 16
    sizes, counts = np.unique(expected.tree.sizes(), return_counts=True)
    assert figures == {
        "image": str(slide),
        "kind": "generic TIFF, jpeg, tifffile",
        "shape": [1100, 1300, 3],
        "dtype": "uint8",
        "mpp": [0.25, 0.25],
        "patches": len(expected),
        "patch_size": 16,
        "uniform": 69 * 82,
        "reduction": 69 * 82 / len(expected),
        "leaves": dict(zip(map(str, sizes.tolist()), counts.tolist(), strict=True)),
        "tissue_cell": 32,
        "files": [str(tmp_path / "slide.npz"), str(tmp_path / "slide_leaves.png")],
    }


def test_what_a_person_reads(run: Run, slide: Path, tmp_path: Path) -> None:
    out = run("patch", slide, "--out", tmp_path, *OPTIONS).out
    for words in (
        "slide.tif: 1,300 x 1,100 px, 3 channels, uint8, 0.25 µm a pixel\n",
        "5,658 if they were uniform",
        "    64 px       1 µm/px ",
        "tissue   at most ",
        "% as many pixels as the finest level has\n",
        "painted  not compared",
    ):
        assert words in out


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs"])
def test_a_scanners_slide(name: str, run: Run, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "wsi" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    [figures] = run("patch", path, "--out", tmp_path, "--json", *OPTIONS).json
    assert (figures["shape"], figures["mpp"], figures["patches"]) == ([2967, 2220, 3], [0.499, 0.499], 59)
    [told] = run("info", path, "--json").json
    assert (told["kind"], told["format"], told["mpp"]) == ("slide", "svs TIFF, jpeg, tifffile", [0.499, 0.499])


def test_min_mpp_is_the_finest_that_is_made(run: Run, slide: Path, tmp_path: Path) -> None:
    words = ("patch", slide, "--out", tmp_path, "--json", *OPTIONS, "--budget", 500)
    smallest = [min(map(int, run(*words, *more).json[0]["leaves"])) for more in ((), ("--min-mpp", 1))]
    assert smallest == [16, 64]
    [figures] = run(*words, "--min-mpp", 1, "--mpp", 0.5).json
    assert (figures["mpp"], min(map(int, figures["leaves"]))) == ([0.5, 0.5], 32)


def test_min_mpp_makes_an_image_a_slide(run: Run, image: Path, tmp_path: Path) -> None:
    result = run("patch", image, "--out", tmp_path, "--json", *OPTIONS, "--mpp", 0.5, "--min-mpp", 1)
    assert result.code == 0
    assert (result.json[0]["kind"], min(map(int, result.json[0]["leaves"]))) == ("image", 32)
    assert run("patch", image, "--out", tmp_path, "--min-mpp", 1).code == 1


def test_a_slide_without_a_pixel_size(run: Run, tmp_path: Path) -> None:
    path, _ = small_slide(tmp_path, (600, 700), mpp=None)
    result = run("patch", path, "--out", tmp_path / "out", *OPTIONS)
    assert result.code == 0
    assert result.err == f"warning: {path}: has no pixel size, so sizes are in pixels; --mpp sets it\n"
    assert "µm" not in result.out
    assert run("patch", path, "--out", tmp_path / "out", *OPTIONS, "--mpp", 0.5).err == ""
    words = ("patch", path, "--out", tmp_path / "out", "--min-mpp", 1)
    assert "has no pixel size, which min_mpp needs; set it with mpp (--mpp)" in run(*words).err
    told = run("info", path)
    assert "  mpp         none\n" in told.out
    assert told.err == f"warning: {path}: has no pixel size; --mpp of other commands sets it\n"
    assert run("info", path, "--json").json[0]["mpp"] is None


def test_glass_alone_has_no_tissue(run: Run, tmp_path: Path) -> None:
    levels = [np.full((size, size, 3), 243, np.uint8) for size in (512, 256)]
    with tifffile.TiffWriter(tmp_path / "glass.tif") as file:
        for at, level in enumerate(levels):
            file.write(level, tile=(64, 64), photometric="rgb", subfiletype=at, resolution=(4e4, 4e4), resolutionunit=3)
    [figures] = run("patch", tmp_path / "glass.tif", "--out", tmp_path / "out", "--json", *OPTIONS).json
    assert (figures["patches"], figures["tissue"]) == (1, 0)
    words = ("--out", tmp_path / "out", "--max-level", 0, "--budget", 2000)
    assert "tissue   not known" in run("patch", tmp_path / "glass.tif", *words).out


def test_ome_zarr(run: Run, tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "sample.ome.zarr")
    [told] = run("info", path, "--json").json
    assert told["mpp"] == [0.5, 0.5]
    assert [level["shape"] for level in told["levels"]] == [[300, 400], [150, 200]]
    result = run("patch", path, "--out", tmp_path / "out", *OPTIONS, "--json")
    assert (result.code, result.json[0]["shape"]) == (0, [300, 400, 3])
    assert outputs(tmp_path / "out") == ["sample.ome.npz", "sample.ome_leaves.png"]
    assert len(run("patch", tmp_path, "--out", tmp_path / "out", *OPTIONS, "--json").json) == 1


def test_info_for_people_and_machines(run: Run, slide: Path) -> None:
    [told] = run("info", slide, "--json").json
    with open_slide(slide) as opened:
        expected = opened.info()
    assert told == {"path": str(slide), "kind": "slide", "format": expected.pop("kind"), **expected}
    out = run("info", slide).out
    assert "  mpp         0.25, 0.25 µm\n" in out
    assert "  levels      1,300 x 1,100 px  1 : 1  tiles of 256 x 256 px\n" in out
    assert "              650 x 550 px      1 : 2  tiles of 256 x 256 px\n" in out


def test_urls(run: Run, slide: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    write_image(tmp_path / "plain.png", picture())
    tifffile.imwrite(tmp_path / "plain.tif", picture())
    for path in (slide, tmp_path / "plain.png", tmp_path / "plain.tif"):
        fsspec.filesystem("memory").put(str(path), f"/urls/{path.name}")
    expected = run("info", slide, "--json").json[0]
    [told] = run("info", "memory://urls/slide.tif", "--json").json
    assert told == {**expected, "path": "memory://urls/slide.tif"}
    assert run("info", "memory://urls/plain.tif", "--json").json[0]["shape"] == [200, 300, 3]
    [figures] = run("patch", "memory://urls/slide.tif", "--out", tmp_path / "out", *OPTIONS, "--json").json
    assert (figures["image"], figures["patches"]) == ("memory://urls/slide.tif", 59)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "memory://urls/plain.png",
            "no TIFF and no OME-Zarr; other kinds are not read through URLs: copy",
        ),
        ("memory://urls/none.tif", "no such file; check the URL"),
        ("nosuch://a/b.tif", "cannot be opened (Protocol not known"),
        ("needing://a/b.tif", "cannot be opened (Install needing); pip install fsspec and what it names"),
        ("refusing://a/b.tif", "cannot be opened (no credentials)"),
    ],
)
def test_bad_urls(url: str, words: str, run: Run, image: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").put(str(image), "/urls/plain.png")

    class Refusing(fsspec.AbstractFileSystem):  # type: ignore[misc]
        def __init__(self, **_: Any) -> None:
            raise RuntimeError("no credentials")

    fsspec.register_implementation("refusing", Refusing, clobber=True)
    fsspec.register_implementation("needing", "needing.Files", clobber=True, errtxt="Install needing")
    assert run("info", url).failed_with(f"{url}: {words}")
    assert run("patch", url, "--out", tmp_path / "out", *OPTIONS).failed_with(f"{url}: {words}")


def test_the_library_takes_slides(slide: Path) -> None:
    patcher = Patcher(budget=59, detail="residual")
    patches = patcher(open_slide(slide))
    assert patches.tree == patch_slide(patcher, open_slide(slide)).tree
    assert patches.pixels.shape == (59, 16, 16, 3)
    with pytest.raises(ValueError, match="a slide cannot be split in 3-D"):
        Patcher(budget=59, ndim=3)(open_slide(slide))


# Many slides


def test_folders_patterns_and_manifests(run: Run, many: Path, tmp_path: Path) -> None:
    write_image(many / "photo.png", picture())
    (tmp_path / "list.csv").write_text("path,mpp,name\nslides/d.tif,0.5,last\nslides/photo.png,,\n")
    words = (many / "[ab].tif", many / "c.tif", "--manifest", tmp_path / "list.csv", "--out", tmp_path / "out")
    result = run("patch", *words, *OPTIONS, "--json", "--mpp", 1)
    assert result.code == 0
    assert outputs(tmp_path / "out")[::2] == ["a.npz", "b.npz", "c.npz", "last.npz", "photo.npz"]
    assert [figures.get("mpp") for figures in result.json] == [[1, 1]] * 3 + [[0.5, 0.5], None]


def test_nothing_to_do(run: Run, tmp_path: Path) -> None:
    assert run("patch", "--out", tmp_path / "out").failed_with("nothing to do; name images", "--manifest")
    assert run("patch", tmp_path / "*.svs", "--out", tmp_path / "out").failed_with("no image or slide matches")


def test_parts_do_everything_once(run: Run, many: Path, tmp_path: Path) -> None:
    words = ("patch", many, "--out", tmp_path / "out", *OPTIONS, "--json", "--num-parts", 3)
    parts = [[Path(figures["image"]).stem for figures in run(*words, "--part-id", part).json] for part in range(3)]
    assert parts == [["a", "d"], ["b"], ["c"]]
    assert run(*words).failed_with("--num-parts 3 needs --part-id, from 0 to 2")
    assert run(*words, "--part-id", 3).failed_with("part 3 of 3 is not possible")
    # More parts than inputs is no error.
    assert run("patch", many, "--out", tmp_path / "out", "--num-parts", 9, "--part-id", 8, "--json").json == []


def test_those_of_one_name_fail_and_the_others_are_done(run: Run, many: Path, slide: Path, tmp_path: Path) -> None:
    twin, out = tmp_path / "a.tif", tmp_path / "out"
    os.link(slide, twin)
    words = ("patch", twin, many, "--out", out, *OPTIONS, "--num-parts", 2, "--json", "--part-id")
    for part, mine, other, done in ((0, twin, many / "a.tif", ["b", "d"]), (1, many / "a.tif", twin, ["c"])):
        result = run(*words, part)
        assert result.code == 1
        assert [Path(figures["image"]).stem for figures in result.json] == done
        [line] = result.err.splitlines()
        assert line == (
            f"error: {mine}: would be written to {out / 'a.npz'}, as would {other}; run them with different --out "
            "folders, or give them names in a --manifest"
        )
    assert outputs(out)[::2] == ["b.npz", "c.npz", "d.npz"]


def test_resume_does_what_is_left(run: Run, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("patch", many, "--out", out, *OPTIONS, "--resume")
    good = (many / "b.tif").read_bytes()
    (many / "b.tif").unlink()
    (many / "b.tif").write_bytes(good[:2000])
    first = run(*words, "--json")
    assert (first.code, len(first.json)) == (1, 3)
    [reason] = first.err.splitlines()
    told = run("info", out)
    assert told.code == 1
    assert "  done      3\n  failed    1\n" in told.out
    assert told.err.splitlines() == [reason]
    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.suffix}
    assert run(*words).err.splitlines() == [reason]
    (many / "b.tif").write_bytes(good)
    (out / "c_leaves.png").unlink()
    second = run(*words)
    assert (second.code, second.err) == (0, "")
    assert second.out.startswith("2 of 4 were done before and are skipped\n")
    after = {path.name for path in out.iterdir() if path.suffix and path.stat().st_mtime_ns != before.get(path)}
    assert after == {"b.npz", "b_leaves.png", "c.npz", "c_leaves.png"}
    third = run(*words, "--json")
    assert [Path(figures["image"]).stem for figures in third.json] == list("abcd")
    assert third.json[0] == first.json[0]
    assert "  failed    0\n" in run("info", out).out


@pytest.mark.parametrize("words", [("--budget", 61), ("--mpp", 2), ("--min-mpp", 4), ("--balanced",)])
def test_other_options_are_other_work(words: tuple[Any, ...], run: Run, slide: Path, tmp_path: Path) -> None:
    command = ("patch", slide, "--out", tmp_path, *OPTIONS, "--resume")
    run(*command)
    assert "skipped" in run(*command, "--workers", 1).out
    assert "skipped" not in run(*command, *words).out
    assert "skipped" not in run(*command).out


def test_what_other_options_have_begun_to_overwrite_is_not_done(
    run: Run, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("patch", slide, "--out", tmp_path, *OPTIONS)
    run(*command)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("patchtree.io.images.write_image", stop)
        assert run(*command, "--budget", 30).code == 130
    assert len(Patches.load(tmp_path / "slide.npz")) <= 30
    assert "skipped" not in run(*command, "--resume").out
    assert len(Patches.load(tmp_path / "slide.npz")) == 59


@pytest.mark.parametrize("option", ["--workers", "--mpp", "--min-mpp"])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_an_impossible_option_spoils_nothing_that_is_done(
    option: str, value: str, run: Run, slide: Path, tmp_path: Path
) -> None:
    command = ("patch", slide, "--out", tmp_path, *OPTIONS)
    run(*command)
    for words in (command, ("predict", tmp_path / "run", slide, "--out", tmp_path)):
        result = run(*words, option, value)
        assert (result.code, result.out) == (2, "")
        assert option in result.err
    assert "  done      1\n  failed    0\n" in run("info", tmp_path).out


def test_without_resume_all_is_done_again(run: Run, slide: Path, tmp_path: Path) -> None:
    command = ("patch", slide, "--out", tmp_path, *OPTIONS)
    run(*command)
    (tmp_path / "slide.npz").write_bytes(b"")
    assert "skipped" not in run(*command).out
    assert len(Patches.load(tmp_path / "slide.npz")) == 59


# Faults


def zero_bytes(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only_the_head(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9])


def no_slide(path: Path) -> None:
    path.write_text("a letter, not a slide")


def bad_tile(path: Path) -> None:
    """Every tile of tissue at the finest level is noise."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as file:
        for offset, count in places:
            if count > 2000:
                file.seek(offset)
                file.write(b"\x55" * count)


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (zero_bytes, "is empty (0 bytes)"),
    (truncated, ""),
    (only_the_head, ""),
    (no_slide, "not an image"),
    (bad_tile, "level 0, rows "),
]


@pytest.mark.parametrize("name", ["b.tif", "b.svs"])
@pytest.mark.parametrize(("spoil", "word"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_a_bad_slide_is_told_and_the_rest_is_done(
    spoil: Callable[[Path], None], word: str, name: str, run: Run, many: Path, slide: Path, tmp_path: Path
) -> None:
    (many / "b.tif").unlink()
    path = shutil.copy(slide, many / name)
    spoil(path)
    (many / "d.tif").unlink()
    result = run("patch", many, "--out", tmp_path / "out", *OPTIONS, "--json", "--budget", 200)
    assert result.code == 1
    assert [Path(figures["image"]).stem for figures in result.json] == ["a", "c"]
    [line] = result.err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert word in line
    assert "a bug in" not in line
    assert not [file for file in outputs(tmp_path / "out") if file.startswith(("b", "."))]
    state = json.loads((tmp_path / "out" / ".patchtree" / "b.json").read_text())
    assert (state["state"], state["reason"]) == ("failed", line.removeprefix("error: "))
    if spoil is not bad_tile:
        assert run("info", path).failed_with(str(path), word)


def test_bad_tiles_may_be_background(run: Run, many: Path, slide: Path, tmp_path: Path) -> None:
    (many / "b.tif").unlink()
    path = shutil.copy(slide, many / "b.tif")
    bad_tile(path)
    words = ("patch", many, "--out", tmp_path / "out", *OPTIONS, "--budget", 200, "--json", "--resume")
    assert run(*words).code == 1
    result = run(*words, "--skip-bad-tiles")
    assert (result.code, len(result.json)) == (0, 4)
    count = result.json[1]["bad_tiles"]
    assert count > 1
    [line] = result.err.splitlines()
    assert line.startswith(
        f"warning: {path}: {count} tiles cannot be read and count as background, the first at level 0"
    )
    state = json.loads((tmp_path / "out" / ".patchtree" / "b.json").read_text())
    assert (state["state"], state["result"]["bad_tiles"]) == ("done", count)
    assert "bad_tiles" not in result.json[0]  # it was done before
    assert "bad_tiles" not in run(*words[:-1]).json[0]


def test_a_level_that_is_missing(run: Run, slide: Path, tmp_path: Path) -> None:
    """With levels 0 and 2 alone the same tree comes of it, but for what compression did to level 1."""
    with tifffile.TiffFile(slide) as file, tifffile.TiffWriter(tmp_path / "odd.tif") as writer:
        for at in (0, 2):
            writer.write(file.pages[at].asarray(), tile=(256, 256), photometric="rgb", subfiletype=int(at > 0))
    [told] = run("info", tmp_path / "odd.tif", "--json").json
    assert [level["downsample"] for level in told["levels"]] == [[1, 1], [4, 4]]
    result = run("patch", tmp_path / "odd.tif", "--out", tmp_path, *OPTIONS, "--mpp", 0.25, "--json")
    assert (result.code, result.err) == (0, "")
    patches, whole = Patches.load(tmp_path / "odd.npz"), Patcher(budget=59, detail="residual")(open_slide(slide))
    same = set(map(tuple, patches.tree.boxes().tolist())) & set(map(tuple, whole.tree.boxes().tolist()))
    assert len(same) > 50
    assert abs(float(patches.pixels.mean()) - float(whole.pixels.mean())) < 2


@pytest.mark.parametrize("name", ["slide.png", "slide.svs", "slide.txt", "slide"])
def test_a_wrong_suffix(name: str, run: Run, slide: Path, tmp_path: Path) -> None:
    path = shutil.copy(slide, tmp_path / name)
    [figures] = run("patch", path, "--out", tmp_path / "out", *OPTIONS, "--json").json
    assert (figures["kind"], figures["patches"]) == ("generic TIFF, jpeg, tifffile", 59)
    assert run("info", path, "--json").json[0]["kind"] == "slide"


@pytest.mark.parametrize("limit", [100, 5000])
def test_a_full_disk(limit: int, run: Run, many: Path, tmp_path: Path) -> None:
    """The limit on file size stops the writing in the middle, as a full disk does."""
    result = run_process(
        *("patch", many, "--out", tmp_path / "out", *OPTIONS, "--json"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (result.code, result.out) == (1, "[]\n")
    lines = result.err.splitlines()
    assert len(lines) == 4
    assert all("cannot be written, file too large; free some space" in line for line in lines)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if path.stat().st_size == limit]
    again = run("patch", many, "--out", tmp_path / "out", *OPTIONS, "--json", "--resume")
    assert (again.code, len(again.json), again.err) == (0, 4, "")


def test_an_output_folder_that_is_read_only(run: Run, many: Path, tmp_path: Path, monkeypatch: Any) -> None:
    # No test that root runs can make a folder that it may not write to; /proc is one.
    assert run("patch", many, "--out", "/proc/self", *OPTIONS).failed_with("/proc/self", "choose another folder")
    assert run("patch", many, "--out", "/proc/self/new", *OPTIONS).failed_with("/proc/self/new", "choose another --out")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert run("patch", many, "--out", tmp_path, *OPTIONS).failed_with(
        str(tmp_path), "read-only; choose another folder"
    )


# Killed


def kill_after(seconds: float, *words: object) -> int:
    """Start a command line and kill it after a time; gives its exit code."""
    command = [sys.executable, "-c", "from patchtree.cli import main; main()", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait()


def check_killed(times: int, many: Path, run: Run, tmp_path: Path) -> None:
    """Kill a job at random moments, each time going on; whatever has its final name is whole, and nothing is lost."""
    out = tmp_path / "out"
    words = ("patch", many, "--out", out, *OPTIONS, "--resume", "--json")
    started = time.perf_counter()
    expected = run_process("patch", many, "--out", tmp_path / "whole", *OPTIONS, "--json")
    whole = time.perf_counter() - started
    rng = random.Random(0)
    done: dict[str, int] = {}
    kills = 0
    while kills < times:
        code = kill_after(rng.uniform(0.4, 1.0) * whole, *words)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        for path in out.glob("[!.]*.npz"):
            assert len(Patches.load(path)) == 59
        for path in out.glob("[!.]*.png"):
            read_image(path)
        states = {path.stem: json.loads(path.read_text()) for path in (out / ".patchtree").glob("[a-z]*.json")}
        assert all(state["state"] == "done" for state in states.values())
        # What was done stays as it is.
        assert all(states.get(name) and (out / f"{name}.npz").stat().st_mtime_ns == at for name, at in done.items())
        done = {name: (out / f"{name}.npz").stat().st_mtime_ns for name in states}
        if code == 0:  # it was whole before the kill: go on sooner, with a new one
            whole *= 0.8
        if code == 0 or kills % 4 == 0:
            shutil.rmtree(out, ignore_errors=True)
            done = {}
    last: Result = run(*words)
    assert (last.code, last.err) == (0, "")
    assert [{name: value for name, value in one.items() if name not in ("seconds", "files")} for one in last.json] == [
        {name: value for name, value in one.items() if name not in ("seconds", "files")} for one in expected.json
    ]
    assert outputs(out) == outputs(tmp_path / "whole")
    for name in outputs(out):
        if name.endswith(".png"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        else:
            one, other = (Patches.load(folder / name) for folder in (out, tmp_path / "whole"))
            assert one.tree == other.tree
            np.testing.assert_array_equal(one.pixels, other.pixels)
    # Not even temporary files are left.
    assert not [path for path in out.rglob(".*") if path.is_file()]


def test_killed_in_the_middle_of_writing(many: Path, run: Run, tmp_path: Path) -> None:
    """Half of the patches of the third slide are on the disk when the process ends."""
    code = """
import os, signal
import numpy as np
from patchtree.cli import main
save, calls = np.savez_compressed, []
def killed(file, **arrays):
    calls.append(file)
    if len(calls) == 3:
        file.write(b"PK" * 1000)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, **arrays)
np.savez_compressed = killed
main()
"""
    out = tmp_path / "out"
    words = ("patch", many, "--out", out, *OPTIONS)
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    half = [name for name in outputs(out) if name.startswith(".c-")]
    assert len(half) == 1
    assert outputs(out)[1:] == ["a.npz", "a_leaves.png", "b.npz", "b_leaves.png"]
    result = run(*words, "--resume")
    assert (result.code, result.out.splitlines()[0]) == (0, "2 of 4 were done before and are skipped")
    assert outputs(out)[::2] == ["a.npz", "b.npz", "c.npz", "d.npz"]


def test_killed_at_random_moments(many: Path, run: Run, tmp_path: Path) -> None:
    check_killed(3, many, run, tmp_path)


@pytest.mark.slow
def test_killed_twenty_times(many: Path, run: Run, tmp_path: Path) -> None:
    check_killed(20, many, run, tmp_path)
