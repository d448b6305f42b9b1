from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from patchtree.errors import InputError
from patchtree.io import raster, stills
from patchtree.io.images import (
    IMAGE_SUFFIXES,
    image_size,
    list_images,
    mask_suffix,
    read_image,
    read_mask,
    write_image,
    write_mask,
)

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (31, 43)).astype(np.uint8)
RGB = RNG.integers(0, 256, (31, 43, 3)).astype(np.uint8)
GREY16 = RNG.integers(0, 65536, (31, 43)).astype(np.uint16)
RGB16 = RNG.integers(0, 65536, (31, 43, 3)).astype(np.uint16)
ROWS, COLUMNS = np.indices((31, 43), np.uint8)
SMOOTH = np.stack([4 * COLUMNS, 4 * ROWS, np.full_like(ROWS, 90)], -1)
COLOURS = [(7, 9, 11), (200, 0, 0), (0, 200, 0), (0, 0, 200)]


def save(path: Path, array: NDArray[Any] | Image.Image, **options: Any) -> Path:
    """Write by Pillow, as independent as can be of what is tested."""
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


def palette_image(ids: NDArray[np.uint8], colours: list[tuple[int, int, int]] = COLOURS) -> Image.Image:
    image = Image.fromarray(ids).convert("P")
    image.putpalette([value for colour in colours for value in colour])
    image.frombytes(ids.tobytes())
    return image


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def same(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_array_equal(found, wanted)
    assert found.flags.c_contiguous
    assert found.flags.writeable


# What each format gives back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif"])
def test_grey(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", GREY, **({"lossless": True} if suffix == ".webp" else {}))
    wanted = np.dstack([GREY] * 3) if suffix == ".webp" else GREY  # WebP has no grey
    same(read_image(path), wanted)
    same(read_mask(path), GREY)
    assert image_size(path) == (31, 43)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif"])
def test_rgb(tmp_path: Path, suffix: str) -> None:
    same(read_image(save(tmp_path / f"a{suffix}", RGB, **({"lossless": True} if suffix == ".webp" else {}))), RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}], ids=str)
def test_jpeg_equals_pillow(tmp_path: Path, options: dict[str, Any]) -> None:
    path = save(tmp_path / "a.jpg", RGB, **options)
    same(read_image(path), np.array(Image.open(path)))
    assert image_size(path) == (31, 43)


def test_grey_jpeg(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", GREY)
    same(read_image(path), np.array(Image.open(path)))


@pytest.mark.parametrize("array", [GREY16, RGB16], ids=["grey", "rgb"])
def test_png_keeps_16_bits(tmp_path: Path, array: NDArray[Any]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(array))
    same(read_image(path), array)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits(tmp_path: Path, bits: int) -> None:
    ids = (GREY % 2**bits).astype(np.uint8)
    step = 255 // (2**bits - 1)
    rows = np.pad(np.unpackbits(ids[..., None], axis=2)[..., -bits:].reshape(31, -1), ((0, 0), (0, -43 * bits % 8)))
    packed = np.pad(np.packbits(rows, axis=1), ((0, 0), (1, 0)))  # a filter byte, 0, before each row
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 43, 31, bits, 0, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(packed.tobytes())) + png_chunk(b"IEND", b"")
    )
    same(read_image(path), ids * np.uint8(step))
    same(read_mask(path), ids)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif"])
def test_palette_gives_colours_to_images_and_ids_to_masks(tmp_path: Path, suffix: str) -> None:
    ids = (GREY % 4).astype(np.uint8)
    path = save(tmp_path / f"a{suffix}", palette_image(ids))
    same(read_image(path), np.array(COLOURS, np.uint8)[ids])
    same(read_mask(path), ids)


def test_a_palette_of_few_colours_in_png_of_few_bits(tmp_path: Path) -> None:
    ids = (GREY % 4).astype(np.uint8)
    path = save(tmp_path / "a.png", palette_image(ids), bits=2)
    same(read_image(path), np.array(COLOURS, np.uint8)[ids])
    same(read_mask(path), ids)


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    ids = (GREY % 4).astype(np.uint8)
    path = save(tmp_path / "a.png", palette_image(ids), transparency=0)
    with pytest.warns(UserWarning, match="put on white"):
        same(read_image(path), np.array([(255, 255, 255), *COLOURS[1:]], np.uint8)[ids])
    same(read_mask(path), ids)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_one_bit(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", GREY > 100)
    same(read_image(path), np.where(GREY > 100, np.uint8(255), np.uint8(0)))
    same(read_mask(path), (GREY > 100).astype(np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("colours", [GREY[..., None], RGB], ids=["LA", "RGBA"])
def test_alpha_is_dropped_where_opaque_and_put_on_white_elsewhere(
    tmp_path: Path, suffix: str, colours: NDArray[Any]
) -> None:
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    if suffix == ".webp":
        colours = np.broadcast_to(colours, RGB.shape)
    mode = "LA" if colours.shape[2] == 1 else "RGBA"
    flat = colours[..., 0] if mode == "LA" else colours
    opaque = np.dstack([colours, np.full((31, 43), 255, np.uint8)])
    same(read_image(save(tmp_path / f"opaque{suffix}", opaque, **options)), flat)
    clear = opaque.copy()
    clear[:5, :, -1] = 0
    clear[5:9, :, -1] = 102
    with pytest.warns(UserWarning, match=f"clear{suffix}: transparent pixels are put on white") as caught:
        found = read_image(save(tmp_path / f"clear{suffix}", clear, **options))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (found[:5] == 255).all()
    np.testing.assert_array_equal(found[5:9], np.rint(0.4 * flat[5:9] + 0.6 * 255))
    same(found[9:], flat[9:])


def test_16_bit_alpha(tmp_path: Path) -> None:
    array = np.dstack([RGB16, np.full((31, 43), 65535, np.uint16)])
    array[0, 0, 3] = 0
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(array))
    with pytest.warns(UserWarning, match="put on white"):
        found = read_image(path)
    assert found[0, 0].tolist() == [65535] * 3
    np.testing.assert_array_equal(found[1:], RGB16[1:])


def test_a_colour_declared_transparent(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[7, 8]], np.uint8), transparency=7)
    with pytest.warns(UserWarning, match="put on white"):
        same(read_image(path), np.array([[255, 8]], np.uint8))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(SMOOTH).convert("CMYK"), quality=100, subsampling=0)
    assert np.abs(read_image(path).astype(int) - SMOOTH).max() <= 3


def test_ycck_jpeg(tmp_path: Path) -> None:
    inks = np.array(Image.fromarray(SMOOTH).convert("CMYK"))
    path = tmp_path / "a.jpg"  # Adobe stores inks inverted
    path.write_bytes(imagecodecs.jpeg8_encode(255 - inks, level=100, colorspace="CMYK", outcolorspace="YCCK"))
    with Image.open(path) as image:
        assert image.info["adobe_transform"] == 2
    assert np.abs(read_image(path).astype(int) - SMOOTH).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".webp": {"lossless": True}, ".tif": {"tiffinfo": {274: orientation}}}.get(suffix, {})
    options = options if suffix == ".tif" else options | {"exif": exif}
    path = save(tmp_path / f"a{suffix}", RGB, **options)
    with Image.open(path) as image:
        wanted = np.array(ImageOps.exif_transpose(image))
    same(read_image(path), wanted)
    assert image_size(path) == wanted.shape[:2]
    if suffix == ".png":
        same(read_mask(save(path, np.dstack([GREY] * 3), **options)), read_image(save(path, GREY, **options)))


def test_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", RGB, exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert read_image(path).shape == RGB.shape


@pytest.mark.parametrize("shape", [(1, 1), (40_000, 1), (1, 40_000), (1, 1, 3)], ids=str)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_odd_shapes(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    array = RNG.integers(0, 256, shape).astype(np.uint8)
    path = save(tmp_path / f"a{suffix}", array)
    same(read_image(path), array)
    assert image_size(path) == shape[:2]


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path / "really a png.jpg", RGB, format="PNG")
    same(read_image(path), RGB)


def test_no_word_of_libpng_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = imagecodecs.png_encode(RGB)
    path = tmp_path / "a.png"
    path.write_bytes(data[:33] + png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"no profile")) + data[33:])
    same(read_image(path), RGB)
    assert capfd.readouterr() == ("", "")


def test_more_pixels_than_pillow_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for suffix in (".png", ".jpg", ".bmp", ".gif"):
        path = save(tmp_path / f"a{suffix}", palette_image(GREY % 4) if suffix == ".gif" else RGB)
        assert read_image(path).shape == RGB.shape
        assert image_size(path) == (31, 43)


def test_webp_larger_than_pillow_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def header(file: object) -> None:
        raise Image.DecompressionBombError  # as Pillow does from version 13 on

    path = save(tmp_path / "a.webp", RGB)
    monkeypatch.setitem(stills._HEADERS, "WebP", header)
    with pytest.raises(InputError, match=r"a\.webp: WebP of too many pixels for Pillow; save it as PNG or TIFF"):
        read_image(path)


@pytest.mark.slow
def test_30_000_by_30_000(tmp_path: Path) -> None:
    ids = np.zeros((30_000, 30_000), np.uint8)
    ids[5::100] = 3
    write_mask(tmp_path / "a.png", ids)
    same(read_mask(tmp_path / "a.png"), ids)


# Masks ----------------------------------------------------------------------------------------------------------------


def test_equal_channels_make_a_mask_and_colours_do_not(tmp_path: Path) -> None:
    ids = GREY % 5
    same(read_mask(save(tmp_path / "a.png", np.dstack([ids] * 3))), ids)
    same(read_mask(save(tmp_path / "b.png", np.dstack([ids] * 3 + [np.full_like(ids, 255)]))), ids)
    with pytest.raises(InputError, match=r"c\.png: a mask must hold class ids in one channel, .*\(31, 43, 3\)"):
        read_mask(save(tmp_path / "c.png", RGB))


def test_a_mask_with_transparent_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.dstack([GREY, GREY]))
    with pytest.raises(InputError, match=r"a\.png: a mask with transparent pixels; save the class ids as one channel"):
        read_mask(path)


def test_a_mask_in_jpeg(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jpg: a mask in JPEG, whose compression changes class ids; export"):
        read_mask(save(tmp_path / "a.jpg", GREY))


@given(
    arrays.arrays(np.uint16, arrays.array_shapes(min_dims=2, max_dims=2, max_side=20)), st.sampled_from(["png", "tif"])
)
def test_masks_come_back(tmp_path_factory: pytest.TempPathFactory, ids: NDArray[np.uint16], suffix: str) -> None:
    path = tmp_path_factory.mktemp("mask") / f"a.{suffix}"
    write_mask(path, ids)
    same(read_mask(path), ids.astype(np.uint8) if ids.max() <= 255 else ids)


def test_mask_types(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_mask(path, np.array([[0, 255]], np.int64))
    same(read_mask(path), np.array([[0, 255]], np.uint8))
    write_mask(path, np.array([[0, 256]], ">i4"))
    same(read_mask(path), np.array([[0, 256]], np.uint16))
    write_mask(path, [[True, False]])
    same(read_mask(path), np.array([[1, 0]], np.uint8))


def test_masks_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for ids, words in [
        (np.array([[-1]]), r"class ids from -1 to -1 do not fit a mask"),
        (np.array([[65536]]), r"class ids from 65536 to 65536 do not fit"),
        (np.zeros((2, 2), np.float32), r"\(H, W\) of integers, not \(2, 2\) of float32"),
        (np.zeros((2, 2, 3), np.uint8), r"\(H, W\) of integers, not \(2, 2, 3\)"),
        (np.zeros((0, 2), np.uint8), r"not \(0, 2\)"),
    ]:
        with pytest.raises(InputError, match=rf"a\.png: .*{words}"):
            write_mask(path, ids)
    with pytest.raises(InputError, match=r"a\.bmp: cannot write \.bmp; name it \.png or \.tif"):
        write_mask(tmp_path / "a.bmp", GREY)
    assert list(tmp_path.iterdir()) == []


def test_masks_too_large_for_png(tmp_path: Path) -> None:
    assert [mask_suffix(shape) for shape in [(2**15, 2**15), (2**15, 2**15 + 1), (1, 2**16 + 1)]] == [
        ".png",
        ".tif",
        ".tif",
    ]
    with pytest.raises(InputError, match=r"a\.png: 65,537 x 1 px are too many for PNG; name it \.tif"):
        write_mask(tmp_path / "a.png", np.zeros((1, 65537), np.uint8))


# Writing images -------------------------------------------------------------------------------------------------------


@given(
    st.data(),
    st.sampled_from([np.uint8, np.uint16]),
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=20),
    st.sampled_from([(), (3,)]),
)
def test_png_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    dtype: type[np.generic],
    shape: tuple[int, ...],
    channels: tuple[int, ...],
) -> None:
    image = data.draw(arrays.arrays(dtype, shape + channels))
    path = tmp_path_factory.mktemp("image") / "a.png"
    write_image(path, image)
    same(read_image(path), image)


def test_images_that_cannot_be_written(tmp_path: Path) -> None:
    for name, image, words in [
        ("a.png", GREY.astype(np.float32), r"PNG does not hold \(31, 43\) of float32; name it \.tif"),
        ("a.png", np.dstack([RGB, RGB]), r"PNG does not hold \(31, 43, 6\) of uint8; name it \.tif"),
        ("a.png", GREY[0], r"an image is \(H, W\) or \(H, W, C\) with pixels, not \(43,\)"),
        ("a.png", GREY[:0], r"with pixels, not \(0, 43\)"),
        ("a.jpg", RGB, r"cannot write \.jpg; name it \.png or \.tif"),
        ("a", RGB, r"cannot write a file without a suffix"),
        ("no/a.png", RGB, r"there is no folder .*no; create it first"),
    ]:
        with pytest.raises(InputError, match=f"{name}: .*{words}"):
            write_image(tmp_path / name, image)
    assert list(tmp_path.iterdir()) == []


def test_bool_image(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", GREY > 100)
    same(read_image(tmp_path / "a.png"), np.where(GREY > 100, np.uint8(255), np.uint8(0)))


# Bad files ------------------------------------------------------------------------------------------------------------

READERS = pytest.mark.parametrize("read", [read_image, read_mask, image_size])


@READERS
def test_missing_folder_empty_and_no_image(tmp_path: Path, read: Any) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("once upon a time")
    (tmp_path / "short.png").write_bytes(b"\x89P")
    (tmp_path / "ct.nii.gz").write_bytes(b"\x1f\x8b\x08")
    for name, words in [
        ("missing.png", r"missing\.png: no such file; check the path"),
        ("", r"is a folder; name an image in it"),
        ("empty.png", r"empty\.png: is empty \(0 bytes\); copy or export it again"),
        ("text.png", r"text\.png: not an image in PNG, JPEG, .*; convert it"),
        ("short.png", r"short\.png: not an image in PNG, JPEG, .*; convert it"),
        ("ct.nii.gz", r"ct\.nii\.gz: is a volume, and an image is wanted"),
        ("text.png/a.png", r"a\.png: cannot be read, not a directory; check the file"),
    ]:
        with pytest.raises(InputError, match=words):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "16.png", "p.png", "a.jpg", "cmyk.jpg", "a.bmp", "a.webp", "a.gif", "a.tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_short(tmp_path: Path, name: str, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    image = {
        "16.png": Image.fromarray(GREY16),
        "p.png": palette_image(GREY % 4),
        "a.gif": palette_image(GREY % 4),
        "cmyk.jpg": Image.fromarray(RGB).convert("CMYK"),
    }.get(name, Image.fromarray(RGB))
    path = save(tmp_path / name, image)
    data = path.read_bytes()
    path.write_bytes(data[: max(12, int(len(data) * share))])
    with pytest.raises(InputError, match=rf"{name}: .*cut short.*; copy or export the file again") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_jpeg_with_a_thumbnail_cut_short(tmp_path: Path) -> None:
    small = io.BytesIO()
    Image.fromarray(RGB[:8, :8]).save(small, "JPEG")
    path = save(tmp_path / "a.jpg", RGB, exif=b"Exif\0\0" + small.getvalue())
    data = path.read_bytes()
    read_image(path)
    path.write_bytes(data[:2] + b"\xff\xff" + data[2:] + b"what some cameras put behind")  # filler is allowed
    read_image(path)
    path.write_bytes(data[:-2])
    with pytest.raises(InputError, match=r"a\.jpg: JPEG cut short \(no end marker\)"):
        read_image(path)


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RGB)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png: PNG that is damaged, .* \(IDAT: .*\); copy or export the file"):
        read_image(path)


@READERS
def test_no_pixels(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 0, 0, 0, 0))
        + png_chunk(b"IEND", b"")
    )
    with pytest.raises(
        InputError, match=r"a\.png: PNG whose header is damaged, cut short or claims no pixels; copy or"
    ):
        read(path)


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_animated(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(np.roll(RGB, shift, 0)) for shift in range(3)]
    path = save(tmp_path / f"a{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=rf"a{suffix}: animated .* of 3 pages, expected one image; save the page"):
        read_image(path)


def test_a_header_that_claims_more_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = imagecodecs.png_encode(GREY)
    path = tmp_path / "a.png"
    path.write_bytes(data[:8] + png_chunk(b"IHDR", struct.pack(">II", 900_000, 800_000) + data[24:29]) + data[33:])
    monkeypatch.setattr(raster, "free_memory", lambda: 2**34)
    with pytest.raises(
        InputError, match=r"a\.png: its header claims 900,000 x 800,000 px, 670\.6 GiB once decoded, but 16\.0 GiB"
    ):
        read_image(path)
    assert image_size(path) == (800_000, 900_000)


def test_no_memory_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(data: bytes) -> None:
        raise MemoryError

    path = save(tmp_path / "a.jpg", RGB)
    monkeypatch.setattr(imagecodecs, "jpeg8_decode", decode)
    with pytest.raises(InputError, match=r"a\.jpg: too large for the memory that is free; crop it"):
        read_image(path)


def test_free_memory_is_a_number_of_bytes() -> None:
    assert 2**20 < raster.free_memory() < 2**63


# Folders --------------------------------------------------------------------------------------------------------------


def test_list_images(tmp_path: Path) -> None:
    names = ["b.PNG", "a.jpg", "c.tiff", ".hidden.png", "notes.txt"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [tmp_path / "a.jpg", tmp_path / "b.PNG", tmp_path / "c.tiff"]
    assert list_images(tmp_path) == found
    assert list_images([str(tmp_path / "notes.txt"), tmp_path]) == [tmp_path / "notes.txt", *found]
    with pytest.raises(InputError, match=r"missing: no such file or folder; check the path"):
        list_images(tmp_path / "missing")
    with pytest.raises(InputError, match=r"folder\.png: a folder without images \(\.png, .*\); name one that has some"):
        list_images([tmp_path / "folder.png"])


def test_suffixes_are_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


def test_real_images_equal_pillow(shared_data: Path) -> None:
    for path in [*shared_data.glob("*/images/*.png"), *sorted(shared_data.glob("*/images/*.jpg"))[:3]]:
        with Image.open(path) as image:
            wanted = np.array(image.convert("L") if image.mode == "LA" else image)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                same(read_image(path), wanted)
            assert image_size(path) == (image.height, image.width)
    for path in shared_data.glob("*/masks/*.png"):
        assert read_mask(path).ndim == 2


@pytest.mark.parametrize("shape", [(300, 1), (40000, 1), (1, 40000), (3, 2)])
def test_narrow_noise_can_be_written(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_image(tmp_path / "a.png", image)
    assert np.array_equal(read_image(tmp_path / "a.png"), image)
