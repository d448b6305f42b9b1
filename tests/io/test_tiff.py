from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from patchtree.errors import InputError
from patchtree.io import tiff
from patchtree.io.images import image_size, read_image, read_mask, write_image, write_mask

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (60, 90)).astype(np.uint8)
RGB = RNG.integers(0, 256, (60, 90, 3)).astype(np.uint8)
SIX = RNG.integers(0, 65536, (60, 90, 6)).astype(np.uint16)
ROWS, COLUMNS = np.indices((60, 90), np.uint8)
SMOOTH = np.stack([COLUMNS, ROWS, np.full_like(ROWS, 90)], -1)


def save(path: Path, array: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


def same(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_array_equal(found, wanted)
    assert found.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "packbits", "zstd"])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 32)}, {"byteorder": ">"}, {"bigtiff": True}], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_layouts(tmp_path: Path, compression: str | None, options: dict[str, Any], dtype: str) -> None:
    for array, photometric in [(GREY.astype(dtype), "minisblack"), (RGB.astype(dtype), "rgb")]:
        path = save(tmp_path / "a.tif", array, photometric=photometric, compression=compression, **options)
        same(read_image(path), array)
        assert image_size(path) == (60, 90)


@pytest.mark.parametrize("dtype", ["uint32", "int32", "float16", "float64"])
def test_wide_and_narrow_numbers_become_float32(tmp_path: Path, dtype: str) -> None:
    same(read_image(save(tmp_path / "a.tif", GREY.astype(dtype))), GREY.astype(np.float32))


def test_signed_bytes_become_int16(tmp_path: Path) -> None:
    signed = GREY.astype(np.int8)
    same(read_image(save(tmp_path / "a.tif", signed)), signed.astype(np.int16))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [4, 6])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_channels_not_declared_alpha_are_kept(
    tmp_path: Path, planar: str, channels: int, tile: tuple[int, int] | None
) -> None:
    wanted = SIX[..., :channels]
    array = wanted if planar == "contig" else np.moveaxis(wanted, -1, 0)
    path = save(tmp_path / "a.tif", array, photometric="minisblack", planarconfig=planar, tile=tile)
    same(read_image(path), wanted)
    assert image_size(path) == (60, 90)


def test_planar_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate")
    same(read_image(path), RGB)


@pytest.mark.parametrize("options", [{"ome": True}, {"imagej": True}, {"photometric": "minisblack"}], ids=str)
def test_pages_called_channels_are_channels(tmp_path: Path, options: dict[str, Any]) -> None:
    path = save(tmp_path / "a.tif", np.moveaxis(SIX, -1, 0), metadata={"axes": "CYX"}, **options)
    same(read_image(path), SIX)
    assert image_size(path) == (60, 90)


def test_axes_of_length_one_do_not_count(tmp_path: Path) -> None:
    array = np.moveaxis(SIX, -1, 0)[None, :, None]
    path = save(tmp_path / "a.tif", array, ome=True, metadata={"axes": "TCZYX"}, photometric="minisblack")
    same(read_image(path), SIX)
    same(read_image(save(path, GREY[None], photometric="minisblack")), GREY)


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (np.stack([GREY] * 5), {"photometric": "minisblack"}),
        (np.stack([GREY] * 5), {"imagej": True, "metadata": {"axes": "ZYX"}}),
        (np.stack([GREY] * 5), {"ome": True, "metadata": {"axes": "TYX"}}),
        (np.stack([RGB] * 5), {"photometric": "rgb"}),
    ],
    ids=["pages", "imagej", "ome", "rgb"],
)
def test_several_pages_are_refused(tmp_path: Path, array: NDArray[Any], options: dict[str, Any]) -> None:
    path = save(tmp_path / "a.tif", array, **options)
    for read in (read_image, read_mask, image_size):
        with pytest.raises(InputError, match=r"a\.tif: TIFF of 5 pages, expected one image; save the page you want"):
            read(path)


def test_pages_of_different_size_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for step in (1, 2, 3):
            writer.write(RGB[::step], photometric="rgb")
    with pytest.raises(InputError, match="TIFF of 3 pages"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("inside", [True, False], ids=["subifds", "pages"])
def test_a_pyramid_is_its_finest_level(tmp_path: Path, inside: bool) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "tile": (16, 16), "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(RGB, subifds=1 if inside else None, **options)
        writer.write(RGB[::2, ::2], subfiletype=1, **options)
    same(read_image(tmp_path / "a.tif"), RGB)
    assert image_size(tmp_path / "a.tif") == (60, 90)


def test_a_thumbnail_is_passed_over(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(RGB, photometric="rgb", metadata=None)
        writer.write(GREY[:9, :5], photometric="minisblack", subfiletype=1, metadata=None)
    same(read_image(tmp_path / "a.tif"), RGB)


@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_jpeg_inside(tmp_path: Path, tile: tuple[int, int] | None) -> None:
    path = save(tmp_path / "a.tif", SMOOTH, photometric="rgb", compression="jpeg", tile=tile)
    assert np.abs(read_image(path).astype(int) - SMOOTH).max() < 20
    with pytest.raises(InputError, match="a mask in JPEG"):
        read_mask(path)


def test_cmyk(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    image.save(tmp_path / "a.tif")
    same(read_image(tmp_path / "a.tif"), np.array(image.convert("RGB")))


def test_colours_that_are_not_understood(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("YCbCr").save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: TIFF in YCBCR colours; save it as RGB"):
        read_image(tmp_path / "a.tif")
    five = np.dstack([RGB, RGB[..., :2]])
    with pytest.raises(InputError, match=r"b\.tif: TIFF of 5 inks \(uint8\); save it as RGB"):
        read_image(save(tmp_path / "b.tif", five, photometric="separated", planarconfig="contig"))


def test_alpha(tmp_path: Path) -> None:
    alpha = np.full((60, 90, 1), 255, np.uint8)
    path = save(tmp_path / "a.tif", np.dstack([RGB, alpha]), photometric="rgb", extrasamples=["unassalpha"])
    same(read_image(path), RGB)
    alpha[0] = 51
    save(path, np.dstack([RGB, alpha]), photometric="rgb", extrasamples=["unassalpha"])
    with pytest.warns(UserWarning, match=r"a\.tif: transparent pixels are put on white"):
        np.testing.assert_array_equal(read_image(path)[0], np.rint(RGB[0] * 0.2 + 255 * 0.8))
    dark = (RGB // 5).astype(np.uint8)
    save(path, np.dstack([dark, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    with pytest.warns(UserWarning, match="put on white"):
        np.testing.assert_array_equal(read_image(path)[0], dark[0] + 204)


def test_white_is_zero(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", GREY, photometric="miniswhite")
    same(read_image(path), 255 - GREY)
    same(read_mask(path), GREY)
    same(read_image(save(path, GREY.astype(np.uint16), photometric="miniswhite")), 65535 - GREY.astype(np.uint16))


def test_one_bit_masks_are_samples_not_brightness(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", GREY > 100)  # tifffile declares such files to be white where 0
    same(read_mask(path), (GREY > 100).astype(np.uint8))


@pytest.mark.parametrize("wide", [True, False])
def test_palette(tmp_path: Path, wide: bool) -> None:
    colours = RNG.integers(0, 256, (3, 256)).astype(np.uint16)
    path = save(tmp_path / "a.tif", GREY, photometric="palette", colormap=colours * 257 if wide else colours)
    same(read_image(path), colours.T.astype(np.uint8)[GREY])
    same(read_mask(path), GREY)


def test_values_that_stand_for_no_data_are_refused(tmp_path: Path) -> None:
    image = GREY / np.float32(7)
    image[3, :4] = np.finfo(np.float32).min
    path = save(tmp_path / "a.tif", image)
    with pytest.raises(InputError, match=r"a\.tif: 4 of 5,400 values are NaN or infinite, or beyond 1e\+18"):
        read_image(path)


def test_float_pixels(tmp_path: Path) -> None:
    image = GREY / np.float32(7)
    image[3, :4] = np.nan
    image[5, 6] = -np.inf
    path = save(tmp_path / "a.tif", image)
    with pytest.raises(
        InputError,
        match=r"a\.tif: 5 of 5,400 values are NaN or infinite, or beyond 1e\+18; replace them and save again",
    ):
        read_image(path)
    with pytest.raises(InputError, match=r"a\.tif: has complex numbers for pixels"):
        read_image(save(path, GREY.astype(np.complex64)))


def test_float_masks(tmp_path: Path) -> None:
    same(read_mask(save(tmp_path / "a.tif", GREY.astype(np.float32))), GREY.astype(np.int32))
    for values in (GREY + 0.5, np.where(GREY > 5, np.nan, 1), GREY * 1e12):
        with pytest.raises(InputError, match=r"b\.tif: a mask must hold class ids, but has values that are no whole"):
            read_mask(save(tmp_path / "b.tif", values.astype(np.float32)))


def test_signed_masks_keep_their_type(tmp_path: Path) -> None:
    ids = GREY.astype(np.int16) - 1
    same(read_mask(save(tmp_path / "a.tif", ids, byteorder=">")), ids)


@pytest.mark.parametrize(
    "options", [{}, {"compression": "deflate"}, {"compression": "jpeg", "tile": (32, 32)}], ids=str
)
@pytest.mark.parametrize("missing", [1, 0.5, 0.97])
def test_cut_short(tmp_path: Path, options: dict[str, Any], missing: float, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "a.tif", RGB, photometric="rgb", **options)
    data = path.read_bytes()
    path.write_bytes(data[: -missing if isinstance(missing, int) else int(len(data) * (1 - missing))])
    with pytest.raises(InputError, match=r"a\.tif: TIFF .*cut short.*; copy or export the file again"):
        read_image(path)


def test_pages_cut_off_are_missed(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.tif", np.moveaxis(SIX, -1, 0), ome=True, metadata={"axes": "CYX"}, photometric="minisblack"
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # the first page is whole, the list of the others is gone
    with pytest.raises(InputError, match=r"a\.tif: TIFF cut short \([\d,]+ of at least [\d,]+ bytes\)"):
        read_image(path)


def test_a_header_of_no_pixels_or_of_too_many(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", GREY)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["ImageLength"].overwrite(0)
    with pytest.raises(InputError, match=r"a\.tif: TIFF without pixels; export it again"):
        read_image(path)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["ImageLength"].overwrite(2**31 - 1)
        tif.pages[0].tags["ImageWidth"].overwrite(2**31 - 1)
    with pytest.raises(InputError, match=r"a\.tif: its header claims 2,147,483,647 x 2,147,483,647 px"):
        read_image(path)


@given(
    st.data(),
    st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    arrays.array_shapes(min_dims=2, max_dims=3, max_side=9),
)
def test_images_come_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: str, shape: tuple[int, ...]
) -> None:
    elements = st.floats(-(2.0**59), 2.0**59, width=32) if dtype == "float32" else None
    image = data.draw(arrays.arrays(dtype, shape, elements=elements))
    path = tmp_path_factory.mktemp("image") / "a.tif"
    write_image(path, image)
    same(read_image(path), image[..., 0] if image.shape[2:] == (1,) else image)


def test_large_masks_are_tiled_and_small(tmp_path: Path) -> None:
    ids = np.zeros((3000, 2500), np.uint16)
    ids[100:2000:3, 7:900] = 300
    path = tmp_path / "a.tif"
    write_mask(path, ids)
    same(read_mask(path), ids)
    assert path.stat().st_size < ids.nbytes / 50
    with tifffile.TiffFile(path) as tif:
        assert tif.pages[0].is_tiled


def test_what_may_not_fit_has_64_bit_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "CLASSIC", 10_000)
    for side, big in ((99, False), (101, True)):
        tiff.write(tmp_path / "a.tif", np.zeros((side, side), np.uint8))
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            assert file.is_bigtiff is big
        assert tiff.read(tmp_path / "a.tif").samples.shape[:2] == (side, side)


def with_missing(path: Path, array: NDArray[Any], text: str) -> Path:
    return save(path, array, extratags=[(42113, "s", 0, text, True)])


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        ("float32", "-9999", -9999),
        (">f4", "-9999", -9999),
        ("float32", "-3.4028234663852886e+38", np.finfo(np.float32).min),
        ("float64", "-1.7976931348623157e+308", np.finfo(np.float64).min),
        ("float32", "nan", np.nan),
        ("int16", "-32768", -32768),
        ("int32", "-2147483648", -(2**31)),
    ],
)
def test_what_stands_for_no_data_becomes_the_nearest_value(tmp_path: Path, dtype: str, text: str, value: float) -> None:
    heights = np.arange(5400, dtype=dtype).reshape(60, 90) + np.ones((), dtype) * 7
    gone = (ROWS < 9) & (COLUMNS > 20)
    path = with_missing(tmp_path / "dem.tif", np.where(gone, np.array(value, dtype), heights), text)
    with pytest.warns(UserWarning, match=r"dem.tif: 621 of 5,400 values are .*, which stands for no data; 7 takes"):
        found = read_image(path)
    wanted = np.where(gone, heights[~gone].min(), heights)
    same(found, wanted.astype(np.int16 if dtype == "int16" else np.float32))


def test_no_data_above_all_values_becomes_the_largest(tmp_path: Path) -> None:
    path = with_missing(tmp_path / "a.tif", np.array([[5, 9], [65535, 7]], np.uint16), "65535")
    with pytest.warns(UserWarning, match="9 takes their place"):
        same(read_image(path), np.array([[5, 9], [9, 7]], np.uint16))


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([[-5, 0], [0, 3]], np.int16), "0"),  # within the range of what was measured
        (np.array([[0, 9], [0, 7]], np.uint8), "0"),  # stretches no range of 8 bits
        (np.array([[1, 9], [2, 7]], np.uint16), "-9999"),  # no such sample can be
        (np.array([[1, 9], [2, 7]], np.uint16), "nan"),
        (np.array([[1, 9], [2, 7]], np.float32), "-9999"),  # nor is there one
        (np.array([[1, 9], [2, 7]], np.float32), "none"),
    ],
)
def test_no_data_that_does_no_harm_stays(tmp_path: Path, array: NDArray[Any], text: str) -> None:
    same(read_image(with_missing(tmp_path / "a.tif", array, text)), array)


def test_an_image_of_no_data_is_refused(tmp_path: Path) -> None:
    path = with_missing(tmp_path / "a.tif", np.full((4, 4), -9999, np.float32), "-9999")
    with pytest.raises(InputError, match=r"a.tif: all values are -9999, which stands for no data; leave the file out"):
        read_image(path)


def test_ids_of_no_data_are_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [255, 1]], np.uint8)
    same(read_mask(with_missing(tmp_path / "a.tif", ids, "255")), ids)
