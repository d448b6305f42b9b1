"""Bytes from files and URLs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from patchtree.errors import InputError
from patchtree.io.slides import is_slide, open_slide
from patchtree.io.slides.source import LocalFile, PerProcess, RemoteFile, open_source
from slide_files import small_slide

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = small_slide(tmp_path_factory.mktemp("slide"), (600, 700))[0]
    fsspec.filesystem("memory").put(str(path), "/source/slide.tif")
    return path


def test_ranges_are_the_same_from_everywhere(pyramid: Path) -> None:
    data = pyramid.read_bytes()
    ranges = [(0, 9), (500, 100), (len(data) - 5, 10), (len(data) + 5, 3)]
    expected = [data[offset : offset + count] for offset, count in ranges]
    for path, kind in (
        (str(pyramid), LocalFile),
        (pyramid.as_uri(), RemoteFile),
        ("memory://source/slide.tif", RemoteFile),
    ):
        source = open_source(path)
        assert isinstance(source, kind)
        assert source.fetch(ranges) == expected
        source.close()


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_slides_through_urls(pyramid: Path, scheme: str) -> None:
    url = pyramid.as_uri() if scheme == "file" else "memory://source/slide.tif"
    assert is_slide(url)
    with open_slide(url) as slide, open_slide(pyramid) as local:
        assert slide.info() == local.info()
        np.testing.assert_array_equal(slide.read(0, 100, 90, 600, 650), local.read(0, 100, 90, 600, 650))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://source/none.tif", "no such file; check the URL"),
        ("nosuch://a/b.tif", r"cannot be opened \(Protocol not known: .*copy the file here"),
        ("memory://source/text.tif", "no TIFF and no OME-Zarr; other kinds are not read through URLs"),
    ],
)
def test_bad_urls_are_told_in_one_line(url: str, told: str) -> None:
    fsspec.filesystem("memory").pipe("/source/text.tif", b"no slide")
    with pytest.raises(InputError, match=told) as caught:
        open_slide(url)
    assert str(caught.value).startswith(f"{url}: ")
    assert "\n" not in str(caught.value)
    assert not is_slide(url)


def test_closed_files_are_closed(pyramid: Path) -> None:
    source = LocalFile(str(pyramid))
    file = source._file
    os.fstat(file)
    source.close()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(file)
    with pytest.raises(ValueError, match="is closed"):
        source.fetch([(0, 1)])


def test_each_process_makes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter(range(9))
    own = PerProcess(lambda: next(made))
    assert [own.get(), own.get()] == [0, 0]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert [own.get(), own.drop(), own.get(), own.get()] == [1, 1, 2, 2]
    monkeypatch.undo()
    assert own.get() == 0
