"""Slides are chosen by what the file is, and levels by how coarse they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

import patchtree.io.slides as slides
from patchtree.errors import InputError
from patchtree.io.images import write_image
from patchtree.io.slides import Level, is_pyramid, is_slide, level_for, open_slide
from patchtree.io.slides.base import micrometres, over_background, true_downsample
from slide_files import small_slide


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_slide(tmp_path_factory.mktemp("slide"), (1100, 1300))[0]


# Choosing


def test_suffix_does_not_matter(pyramid: Path, tmp_path: Path) -> None:
    disguised = tmp_path / "slide.png"
    disguised.write_bytes(pyramid.read_bytes())
    with open_slide(disguised) as slide:
        assert len(slide.levels) == 3
    assert is_slide(disguised)
    assert is_pyramid(disguised)
    write_image(tmp_path / "image.png", np.zeros((1100, 20, 3), np.uint8))
    image = (tmp_path / "image.png").rename(tmp_path / "image.svs")
    with open_slide(image) as slide:
        assert slide.kind == "image"
    assert not is_slide(image)


def test_plain_images_are_no_slides(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        write_image(tmp_path / name, np.zeros((2100, 30), np.uint16))  # the TIFF is tiled
        assert not is_slide(tmp_path / name)
        with open_slide(tmp_path / name) as slide:
            assert slide.shape == (2100, 30)


def test_large_tiffs_are_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((100, 100), np.uint8))
    assert not is_slide(path)
    assert open_slide(path).kind == "image"
    monkeypatch.setattr(slides, "_LARGE", 9999)
    assert is_slide(path)
    assert open_slide(path).kind.startswith("shaped TIFF")


def test_tiled_tiffs_that_know_their_pixel_size_are_slides_from_4096_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((100, 120), np.uint8)
    known: dict[str, Any] = {"resolution": (4e4, 4e4), "resolutionunit": "CENTIMETER"}
    printed: dict[str, Any] = {"resolution": (300, 300), "resolutionunit": "INCH"}
    kinds = {"a": {"tile": (64, 64), **known}, "b": {"tile": (64, 64), **printed}, "c": known}
    for name, options in kinds.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, metadata=None, **options)
        assert not is_slide(tmp_path / f"{name}.tif")
    monkeypatch.setattr(slides, "_SINGLE", pixels.size - 1)
    assert [is_slide(tmp_path / f"{name}.tif") for name in kinds] == [True, False, False]
    # A folder of images to train on keeps them.
    assert not any(is_pyramid(tmp_path / f"{name}.tif") for name in kinds)
    # Images have their pixel size, too.
    for name, mpp in {"a": (0.25, 0.25), "b": None, "c": (0.25, 0.25)}.items():
        with open_slide(tmp_path / f"{name}.tif") as slide:
            assert slide.mpp == (mpp and pytest.approx(mpp))
            assert slide.kind == ("image" if name == "c" else "uniform TIFF, none, tifffile")


def test_aperio_slides_are_slides_however_small(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    pixels = np.zeros((100, 100, 3), np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, description="Aperio Image Library v11\r\n100x100 |MPP = 0.5", **options
    )
    tifffile.imwrite(tmp_path / "b.tif", pixels, **options)
    assert is_slide(tmp_path / "a.tif")
    assert not is_slide(tmp_path / "b.tif")


def test_real_slide_is_one_also_through_a_url(shared_data: Path) -> None:
    path = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    if not path.is_file():
        pytest.skip(f"no {path}")
    assert is_slide(path)
    assert is_slide(path.as_uri())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "cannot be read, no such file or directory; check the file"),
        (lambda path: path.touch(), r"is empty \(0 bytes\)"),
        (lambda path: path.mkdir(), "a folder that is no OME-Zarr"),
        (lambda path: path.write_text("no slide"), "not an image in PNG, JPEG, TIFF"),
        (lambda path: path.write_bytes(b"II*\0\x10\0\0\0"), "TIFF that is damaged, cut short or of a rare kind"),
        (lambda path: path.write_bytes(b"MM\0+" + b"\xff" * 60), "TIFF that is damaged, cut short or of a rare kind"),
    ],
)
@pytest.mark.parametrize("name", ["a.svs", "a.ndpi", "a.mrxs", "a.zarr", "a"])
def test_what_is_no_slide_is_told_in_one_line(tmp_path: Path, make: Any, told: str, name: str) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError, match=told) as caught:
        open_slide(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not is_slide(path)


@pytest.mark.parametrize("name", ["a.mrxs", "a.dcm", "a.zarr"])
def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    if name == "a.zarr":
        path.mkdir()
        (path / ".zgroup").write_text("{}")
    else:
        path.write_bytes(b"\xff\xd8\xff" + b"\0" * 200)
    monkeypatch.setattr(
        slides, "find_spec", lambda name: None if name in ("openslide", "zarr") else importlib.util.find_spec(name)
    )
    with pytest.raises(InputError, match=r'pip install "patchtree\[slides\]"'):
        open_slide(path)


@pytest.mark.parametrize("mpp", [0, -1, float("nan"), float("inf"), (1, 2, 3), (0.5, 0)])
def test_impossible_pixel_sizes_are_refused(pyramid: Path, mpp: Any) -> None:
    with pytest.raises(InputError, match=r"slide\.tif: a pixel size of .* micrometres; give one or two positive"):
        open_slide(pyramid, mpp=mpp)


def test_info_is_plain(pyramid: Path) -> None:
    with open_slide(pyramid) as slide:
        assert slide.info() == {
            "kind": "generic TIFF, jpeg, tifffile",
            "shape": [1100, 1300, 3],
            "dtype": "uint8",
            "mpp": [0.25, 0.25],
            "background": [255, 255, 255],
            "levels": [
                {"shape": [1100, 1300], "downsample": [1, 1], "tile": [256, 256]},
                {"shape": [550, 650], "downsample": [2, 2], "tile": [256, 256]},
                {"shape": [275, 325], "downsample": [4, 4], "tile": [256, 256]},
            ],
        }


# Levels and colours


def test_level_for_is_the_coarsest_that_is_fine_enough() -> None:
    factors = (1, 2.0005, 8.002, 31.9)
    slide: Any = SimpleNamespace(levels=[Level((1, 1), (factor, factor * 0.999), (1, 1)) for factor in factors])
    wanted = (0.5, 1, 1.97, 2, 7.9, 8, 32, 1000)
    assert [level_for(slide, factor) for factor in wanted] == [0, 0, 0, 1, 1, 2, 3, 3]


@given(st.integers(64, 10**5), st.integers(64, 10**5), st.integers(0, 6), st.booleans())
def test_halved_shapes_are_powers_of_two(height: int, width: int, level: int, up: bool) -> None:
    shape = height, width
    for _ in range(level):
        shape = ((shape[0] + up) // 2, (shape[1] + up) // 2)
    y, x = true_downsample((height, width), shape)
    # A few pixels do not tell 1 / 64 from 1 / 63.
    if min(shape) > 2 * 2**level:
        assert (y, x) == (2**level, 2**level)
    assert abs(height / y - shape[0]) <= 1
    assert abs(width / x - shape[1]) <= 1


def test_few_pixels_are_taken_for_powers_of_two() -> None:
    assert true_downsample((1000, 1000), (7, 7)) == (128, 128)
    assert true_downsample((1000, 3000), (7, 23)) == (128, 128)


def test_premultiplied_colours_do_not_overflow() -> None:
    mixed = over_background(np.uint8([[[200]]]), np.uint8([[55]]), np.uint8([255]), premultiplied=True)
    assert mixed.tolist() == [[[255]]]


@pytest.mark.parametrize(("alpha", "dtype"), [(255, np.uint8), (65535, np.uint16), (1.0, np.float32)])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_colours_over_background(alpha: float, dtype: Any, premultiplied: bool) -> None:
    shares = np.linspace(0, 1, 11)
    colours = np.full((1, 11, 2), 0.5 * alpha) * (shares[:, None] if premultiplied else 1)
    background = np.array([alpha, 0], dtype)
    mixed = over_background(colours.astype(dtype), (shares * alpha).astype(dtype)[None], background, premultiplied)
    expected = alpha * (0.5 * shares[:, None] + (1 - shares[:, None]) * [1, 0])
    assert mixed.dtype == dtype
    np.testing.assert_allclose(mixed[0], expected, atol=alpha / 250)


def test_units() -> None:
    lengths = {"nm": 250, "µm": 0.25, "\N{GREEK SMALL LETTER MU}m": 0.25, " Micrometer ": 0.25, "mm": 2.5e-4}
    assert {micrometres(value, unit) for unit, value in lengths.items()} == {0.25}
    assert [micrometres(1, unit) for unit in (None, "", "pixel")] == [None] * 3
    assert [micrometres(value, "um") for value in (0, -1, float("nan"), float("inf"))] == [None] * 4
