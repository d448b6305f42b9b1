"""Whatever a user may feed the command line gets one line that names it, and exit code 1."""

from __future__ import annotations

import os
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from .conftest import TRAIN, Run, Trained, outputs, picture, run_process, write_data


def empty(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    Image.fromarray(picture()).save(path, "png")
    path.write_bytes(path.read_bytes()[:500])


def truncated_jpeg(path: Path) -> None:
    Image.fromarray(picture()).save(path, "jpeg")
    path.write_bytes(path.read_bytes()[:2000])


def no_image(path: Path) -> None:
    path.write_text("a letter, not a picture")


def without_pixels(path: Path) -> None:
    path.write_bytes(png_of(0, 0))


def multi_page(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((3, 40, 50), np.uint8), photometric="minisblack")


def with_nan(path: Path) -> None:
    values = np.ones((40, 50), np.float32)
    values[3, 4] = np.nan
    tifffile.imwrite(path, values)


def huge_header(path: Path) -> None:
    path.write_bytes(png_of(900_000, 900_000))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder_without_images(path: Path) -> None:
    path.mkdir()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with no pixels to speak of."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 64))]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data


FILES: list[tuple[Callable[[Path], None] | None, str]] = [
    (None, "no such file"),
    (empty, "empty"),
    (truncated, "cut short"),
    (truncated_jpeg, "cut short"),
    (no_image, "not an image"),
    (without_pixels, ""),
    (multi_page, "pages"),
    (with_nan, "NaN"),
    (huge_header, "900,000 x 900,000"),
    (pipe, "is a pipe"),
    (folder_without_images, "without images"),
]
NAMES = [make.__name__ if make else "missing" for make, _ in FILES]


@pytest.mark.parametrize(("make", "word"), FILES, ids=NAMES)
def test_patch(make: Callable[[Path], None] | None, word: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "given.tif"
    if make:
        make(path)
    assert run("patch", path, "--out", tmp_path / "out").failed_with("given.tif", word)
    assert not outputs(tmp_path / "out")


@pytest.mark.parametrize(("make", "word"), FILES[:-1], ids=NAMES[:-1])
def test_info(make: Callable[[Path], None] | None, word: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "given.tif"
    if make:
        make(path)
    assert run("info", path).failed_with("given.tif", word)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "0"], "budget 0 is not possible"),
        (["--budget", "-3"], "budget -3 is not possible"),
        (["--patch-size", "0"], "patch size 0 is not possible"),
        (["--patch-size", "301"], "disc.png: patch size 301 is larger than the image of 300 x 200 px"),
        (["--budget", "3", "--max-level", "2"], "disc.png: budget 3 is below the number of roots, 20"),
        (["--max-level", "-1"], "max_level -1 is not possible"),
        (["--max-level", "9999999999"], "max_level 9999999999 is not possible; give 0 to 30"),
    ],
)
def test_options_that_cannot_be(words: list[str], message: str, run: Run, image: Path, tmp_path: Path) -> None:
    assert run("patch", image, "--out", tmp_path / "out", *words).failed_with(message)
    assert not outputs(tmp_path / "out")


def test_a_file_where_the_folder_should_be(run: Run, image: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    assert run("patch", image, "--out", tmp_path / "out").failed_with("out", "a file is in the way", "--out")
    assert run("patch", image, "--out", tmp_path / "out" / "deeper").failed_with("deeper", "a file is in the way")


@pytest.mark.parametrize("limit", [1000, 20_000])
def test_a_disk_that_fills_up_while_writing(limit: int, image: Path, tmp_path: Path) -> None:
    """The limit on file size stops the writing in the middle, as a full disk does."""
    result = run_process(
        *("patch", image, "--out", tmp_path / "out", "--budget", "100"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.failed_with("disc", "file too large", "free some space")
    # No half-written file stays behind.
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if path.stat().st_size == limit or path.name.startswith(".")]


@pytest.mark.parametrize("limit", [3000, 3_000_000])
def test_a_disk_that_fills_up_while_training(limit: int, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    result = run_process(
        *("train", data, "--out", tmp_path / "run", *TRAIN),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    last = result.err.splitlines()[-1]
    assert result.code == 1
    assert last.startswith("error: ")
    assert "free" in last
    assert "a bug in" not in last
    assert "Traceback" not in result.err
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_a_disk_that_fills_up_while_predicting(trained: Trained, tmp_path: Path) -> None:
    result = run_process(
        *("predict", trained.run, trained.data / "images" / "a.png", "--out", tmp_path / "out", "--probabilities"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
    )
    assert result.failed_with("file too large", "free some space")
    assert result.err.startswith(f"error: {tmp_path / 'out' / 'a_probabilities.tif'}: ")
    assert not outputs(tmp_path / "out")
