"""Boxes of TIFFs in every layout are what tifffile reads whole; what is damaged is told, tile by tile."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.slides import SlideReadError, need_mpp, open_slide
from patchtree.io.slides.through_tifffile import ForeignTiff, TiffSlide

SHAPE = (150, 203)


def picture(channels: int, dtype: str, level: int = 0, shape: tuple[int, int] = SHAPE) -> NDArray[Any]:
    """(C, H, W) of waves and noise, half as large a level."""
    rng = np.random.default_rng(level)
    shape = shape[0] >> level, shape[1] >> level
    y, x = np.mgrid[: shape[0], : shape[1]]
    planes = [
        100 + 60 * np.sin(y / 9 + channel) * np.cos(x / 7) + rng.normal(0, 9, shape) for channel in range(channels)
    ]
    return np.stack(planes).astype(dtype)


def write(path: Path, pages: list[NDArray[Any]], subifds: bool = False, **options: Any) -> Path:
    """Write the levels of a pyramid, as pages one after the other or as SubIFDs of the first."""
    options = {"photometric": "minisblack", "metadata": None, **options}
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False), ome=options.pop("ome", False)) as writer:
        for level, page in enumerate(pages):
            more = {"subifds": len(pages) - 1} if subifds and level == 0 else {}
            writer.write(page, subfiletype=int(level > 0), **more, **options)
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "rgb": {"axes": "yxc", "photometric": "rgb"},
    "jpeg": {"axes": "yxc", "photometric": "ycbcr", "compression": "jpeg"},
    "jpeg without subsampling": {"axes": "yxc", "photometric": "rgb", "compression": "jpeg"},
    "jpeg 2000": {"axes": "yxc", "photometric": "rgb", "compression": "jpeg2000"},
    "deflate and predictor": {"axes": "yxc", "photometric": "rgb", "compression": "zlib", "predictor": True},
    "lzw": {"axes": "yxc", "photometric": "rgb", "compression": "lzw"},
    "zstd 16 bits": {"axes": "yxc", "dtype": "u2", "photometric": "rgb", "compression": "zstd"},
    "big-endian": {"axes": "yxc", "dtype": ">u2", "photometric": "rgb"},
    "float": {"axes": "yxc", "dtype": "f4", "channels": 1, "compression": "zlib", "predictor": True},
    "planes": {"axes": "cyx", "photometric": "rgb", "planarconfig": "separate", "compression": "zlib"},
    "five channels": {"axes": "yxc", "channels": 5, "dtype": "u2", "planarconfig": "contig", "compression": "zlib"},
    "SubIFDs": {"axes": "yxc", "photometric": "rgb", "subifds": True},
    "64-bit offsets": {"axes": "yxc", "photometric": "rgb", "bigtiff": True},
    "strips": {"axes": "yxc", "photometric": "rgb", "tile": None, "rowsperstrip": 20, "compression": "zlib"},
    "one strip": {"axes": "yxc", "photometric": "rgb", "tile": None},
    "OME": {"axes": "cyx", "ome": True, "metadata": {"axes": "CYX"}, "subifds": True, "channels": 4, "dtype": "u2"},
    "OME colours": {"axes": "yxc", "ome": True, "metadata": {"axes": "YXS"}, "subifds": True, "photometric": "rgb"},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def slide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TiffSlide]:
    options = {"tile": (32, 48), "channels": 3, "dtype": "u1", **LAYOUTS[request.param]}
    axes, channels, dtype = (options.pop(name) for name in ("axes", "channels", "dtype"))
    pages = [picture(channels, dtype, level) for level in range(3)]
    pages = [page if axes == "cyx" else np.moveaxis(page, 0, -1) for page in pages]
    pages = [page[..., 0] if channels == 1 else page for page in pages]
    path = write(tmp_path_factory.mktemp("tiff") / "slide.tif", pages, **options)
    with TiffSlide(str(path)) as opened:
        yield opened


def whole_levels(path: str) -> list[NDArray[Any]]:
    """(H, W, C) of every level, through tifffile."""
    with tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        levels = series.levels if len(series.levels) > 1 else tif.series
        out = [level.asarray() for level in levels]
        axes = series.axes
    out = [np.moveaxis(level, 0, -1) if axes[0] in "CS" and level.ndim == 3 else level for level in out]
    return [level if level.ndim == 3 else level[..., None] for level in out]


def test_levels_are_what_tifffile_reads(slide: TiffSlide) -> None:
    expected = whole_levels(slide.path)
    assert [level.shape for level in slide.levels] == [(150, 203), (75, 101), (37, 50)]
    assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
    assert slide.dtype.isnative
    assert slide.channels == expected[0].shape[2]
    for level, pixels in enumerate(expected):
        read = slide.read(level, 0, 0, *slide.levels[level].shape)
        assert read.dtype == slide.dtype == pixels.dtype.newbyteorder("=")
        np.testing.assert_array_equal(read, pixels)


@given(st.data())
def test_box_equals_part_of_whole(slide: TiffSlide, data: st.DataObject) -> None:
    level = data.draw(st.integers(0, 2))
    height, width = slide.levels[level].shape
    y0, x0 = data.draw(st.integers(-40, height + 20)), data.draw(st.integers(-40, width + 20))
    y1, x1 = y0 + data.draw(st.integers(0, 90)), x0 + data.draw(st.integers(0, 90))
    padded = np.empty((height + 160, width + 160, slide.channels), slide.dtype)
    padded[:] = slide.background
    padded[40 : 40 + height, 40 : 40 + width] = slide.read(level, 0, 0, height, width)
    np.testing.assert_array_equal(slide.read(level, y0, x0, y1, x1), padded[y0 + 40 : y1 + 40, x0 + 40 : x1 + 40])


def test_what_is_read_is_the_callers(slide: TiffSlide) -> None:
    height, width = slide.levels[0].tile
    # Part of a tile, which is kept; then all of that tile; then another tile, which is not kept.
    for box in ((3, 3, 9, 9), (0, 0, height, width), (0, width, height, 2 * width)):
        slide.read(0, *box)[:] = 0
        assert slide.read(0, *box).any()


def test_threads_pickles_and_forks_read_the_same(slide: TiffSlide) -> None:
    boxes = [(0, y, x, y + 60, x + 60) for y in range(0, 90, 7) for x in range(0, 140, 17)]
    expected = [slide.read(*box) for box in boxes]
    with ThreadPoolExecutor(4) as threads:
        assert all(map(np.array_equal, threads.map(lambda box: slide.read(*box), boxes), expected))
    with pickle.loads(pickle.dumps(slide)) as other:
        assert all(np.array_equal(other.read(*box), one) for box, one in zip(boxes, expected, strict=True))
        assert other.info() == slide.info()


def test_tiles_that_boxes_cut_are_read_once(slide: TiffSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, fetched = slide._source.fetch, []
    monkeypatch.setattr(slide._source, "fetch", lambda ranges: fetched.extend(ranges) or fetch(ranges))
    slide._cache.drop()
    slide.read(0, 1, 1, 10, 10)
    once = len(fetched)
    assert once == len(slide._stored[0].planes)
    for _ in range(3):
        slide.read(0, 5, 5, 20, 20)
    assert len(fetched) == once
    monkeypatch.setattr("patchtree.io.slides.through_tifffile._CACHE_BYTES", 1)
    slide._cache.drop()
    for _ in range(3):
        slide.read(0, 1, 1, 10, 10)
    assert len(fetched) == 4 * once
    slide._cache.drop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_reads_after_a_fork(slide: TiffSlide) -> None:
    expected = slide.read(0, 5, 5, 90, 90)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks of a process with threads
        child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(slide.read(0, 5, 5, 90, 90), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("subifds", [False, True])
@pytest.mark.parametrize("skipped", [(1,), (1, 2), (2,)], ids=str)
def test_missing_levels_leave_true_downsamples(tmp_path: Path, subifds: bool, skipped: tuple[int, ...]) -> None:
    pages = [picture(3, "u1", level, (641, 803)).transpose(1, 2, 0) for level in range(5) if level not in skipped]
    path = write(tmp_path / "a.tif", pages, subifds, tile=(64, 64), photometric="rgb")
    with open_slide(path) as slide:
        assert [level.downsample[0] for level in slide.levels] == [
            2**level for level in range(5) if level not in skipped
        ]
        for level, page in enumerate(pages):
            np.testing.assert_array_equal(slide.read(level, 0, 0, *page.shape[:2]), page)


def test_uneven_ratio_is_told_as_it_is(tmp_path: Path) -> None:
    pages = [np.zeros((*shape, 3), np.uint8) for shape in ((1000, 1500), (400, 600), (160, 240))]
    with open_slide(write(tmp_path / "a.tif", pages, tile=(64, 64), photometric="rgb")) as slide:
        assert [level.downsample for level in slide.levels] == [(1, 1), (2.5, 2.5), (6.25, 6.25)]


def test_label_and_overview_are_no_levels(tmp_path: Path) -> None:
    pages = [np.zeros((*shape, 3), np.uint8) for shape in ((640, 640), (320, 320), (100, 300))]
    path = write(tmp_path / "a.tif", pages, tile=(64, 64), photometric="rgb")
    with tifffile.TiffWriter(path, append=True) as writer:
        # Of the same proportions, but an overview in strips, of another type, and of other channels.
        writer.write(np.zeros((80, 80, 3), np.uint8), photometric="rgb", metadata=None)
        writer.write(np.zeros((160, 160, 3), np.uint16), photometric="rgb", metadata=None, tile=(64, 64))
        writer.write(np.zeros((160, 160), np.uint8), photometric="minisblack", metadata=None, tile=(64, 64))
    with open_slide(path) as slide:
        assert [level.shape for level in slide.levels] == [(640, 640), (320, 320)]


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("thumbnail", [False, True])
def test_aperio_slides_without_a_thumbnail_lose_no_level(thumbnail: bool, reduced: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        for level, shape in enumerate([(641, 803), (160, 200), (40, 50)]):
            words = "Aperio Image Library v11\r\n803x641 |MPP = 0.5" if level == 0 else None
            kind = int(reduced and level > 0)
            pixels = np.full((*shape, 3), level, np.uint8)
            writer.write(pixels, tile=(64, 64), description=words, subfiletype=kind, **options)
            if level == 0 and thumbnail:
                writer.write(np.zeros((320, 400, 3), np.uint8), rowsperstrip=16, **options)
        writer.write(np.zeros((90, 80, 3), np.uint8), subfiletype=1, rowsperstrip=16, **options)
        writer.write(np.zeros((160, 200, 3), np.uint8), subfiletype=9, rowsperstrip=16, **options)
    with open_slide(path) as slide:
        assert slide.kind.startswith("svs TIFF")
        assert [level.shape for level in slide.levels] == [(641, 803), (160, 200), (40, 50)]
        assert [int(slide.read(level, 3, 4, 20, 30).max()) for level in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}, (0.5, 0.25)),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, (0.5, 0.5)),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (40000, 40000), "resolutionunit": "NONE"}, None),
        ({}, None),
        ({"description": "Aperio Image Library v11\r\n64x64 |AppMag = 20|MPP = 0.4990"}, (0.499, 0.499)),
        (
            {
                "ome": True,
                "metadata": {
                    "PhysicalSizeX": 250,
                    "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeY": 0.5,
                    "PhysicalSizeYUnit": "µm",
                },
            },
            (0.5, 0.25),
        ),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3}}, (0.3, 0.3)),
        ({"ome": True, "metadata": {"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel"}}, None),
    ],
    ids=str,
)
def test_pixel_size(tmp_path: Path, options: dict[str, Any], expected: tuple[float, float] | None) -> None:
    path = write(tmp_path / "a.tif", [np.zeros((64, 64), np.uint8)], tile=(32, 32), **options)
    with open_slide(path) as slide:
        assert slide.mpp == (expected and pytest.approx(expected))
    with open_slide(path, mpp=2) as slide, pickle.loads(pickle.dumps(slide)) as other:
        assert slide.mpp == other.mpp == (2, 2)


def test_without_pixel_size_a_need_of_it_warns(tmp_path: Path) -> None:
    with open_slide(write(tmp_path / "a.tif", [np.zeros((64, 64), np.uint8)], tile=(32, 32))) as slide:
        with pytest.warns(UserWarning, match=r"a\.tif: has no pixel size, so areas are in pixels; --mpp sets it"):
            assert need_mpp(slide, "areas are in pixels") is None
        slide.mpp = (0.5, 0.5)
        assert need_mpp(slide, "areas are in pixels") == (0.5, 0.5)


def test_transparent_is_background(tmp_path: Path) -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:32, :, 3], rgba[32:48, :, 3] = 255, 51
    path = write(tmp_path / "a.tif", [rgba], tile=(32, 32), photometric="rgb", extrasamples=["unassalpha"])
    with open_slide(path) as slide:
        assert slide.read(0, 0, 0, 64, 64)[[0, 40, 63], 0].tolist() == [[0] * 3, [204] * 3, [255] * 3]


def test_white_is_zero_is_turned(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", [np.full((64, 64), 7, np.uint8)], tile=(32, 32), photometric="miniswhite")
    with open_slide(path) as slide:
        assert (slide.read(0, 0, 0, 64, 64) == 248).all()


def test_one_bit_masks_hold_0_and_1(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", [np.eye(64, dtype=bool)], tile=(32, 32))
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, 64, 64)[..., 0], np.eye(64, dtype=np.uint8))


def test_palette_gives_ids(tmp_path: Path) -> None:
    ids = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 5
    colours = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
    path = write(tmp_path / "a.tif", [ids], tile=(32, 32), photometric="palette", colormap=colours)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, 64, 64)[..., 0], ids)


# Faults


def edit_tile(path: Path, index: int, change: Any) -> None:
    """Change the bytes of a tile of the first page."""
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages.first.dataoffsets[index], tif.pages.first.databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset)
        data = change(file.read(count))
        assert len(data) == count
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("compression", ["jpeg", "zlib", "zstd", "lzw", "jpeg2000"])
@pytest.mark.parametrize("damage", ["zeros", "cut"])
def test_unreadable_tile_is_named_and_the_rest_is_read(tmp_path: Path, compression: str, damage: str) -> None:
    pixels = picture(3, "u1").transpose(1, 2, 0)
    path = write(tmp_path / "a.tif", [pixels], tile=(32, 48), photometric="rgb", compression=compression)
    good = open_slide(path).read(0, 0, 0, 32, 203)
    keep = {"zeros": 0, "cut": 0.5}[damage]
    edit_tile(path, 5 + 2, lambda data: data[: int(len(data) * keep)].ljust(len(data), b"\0"))
    with open_slide(path) as slide:
        with pytest.raises(SlideReadError, match=r"a\.tif: level 0, rows 32 to 64, columns 96 to 144 ") as caught:
            slide.read(0, 0, 0, 150, 203)
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.path, error.level, error.box) == (str(path), 0, (32, 96, 64, 144))
        assert str(error) == str(caught.value)
        assert "\n" not in str(error)
        np.testing.assert_array_equal(slide.read(0, 0, 0, 32, 203), good)
        slide.read(0, 64, 0, 150, 203)


def test_tile_that_was_never_scanned_is_background(tmp_path: Path) -> None:
    def tiles() -> Iterator[bytes]:
        yield from (b"", np.full((32, 32, 3), 7, np.uint8).tobytes(), b"", b"")

    path = tmp_path / "a.tif"
    options = {"shape": (64, 64, 3), "dtype": "u1", "photometric": "rgb", "tile": (32, 32), "metadata": None}
    tifffile.imwrite(path, tiles(), compression="zlib", **options)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages.first.tags["Compression"].overwrite(1)
    with open_slide(path) as slide:
        read = slide.read(0, 0, 0, 64, 64)
        assert (read[:32, 32:] == 7).all()
        assert (read[:, :32] == 255).all()
        assert (read[32:] == 255).all()


@pytest.mark.parametrize(("dtype", "background"), [("u1", 255), ("u2", 65535), ("f4", 0)])
def test_glass_is_white_in_rgb(dtype: str, background: int, tmp_path: Path) -> None:
    """Three channels that are no colours, as of fluorescence, are black where nothing is."""
    pixels = np.zeros((64, 64, 3), dtype)
    with open_slide(write(tmp_path / "a.tif", [pixels], tile=(32, 32), photometric="rgb")) as slide:
        assert slide.background.tolist() == [background] * 3
    planes = np.zeros((3, 64, 64), "u2")
    path = write(tmp_path / "b.tif", [planes], tile=(32, 32), photometric="minisblack", planarconfig="separate")
    with open_slide(path) as slide:
        assert slide.background.tolist() == [0] * 3


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.97, 0.9999])
@pytest.mark.parametrize("subifds", [False, True])
def test_truncated_file_is_refused(tmp_path: Path, keep: float, subifds: bool) -> None:
    pages = [picture(3, "u1", level, (640, 640)).transpose(1, 2, 0) for level in range(3)]
    path = write(tmp_path / "a.tif", pages, subifds, tile=(64, 64), photometric="rgb", compression="jpeg")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=r"a\.tif: TIFF (cut short|that is damaged, cut short)") as caught:
        open_slide(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"photometric": "cielab"}, "CIELAB colours; save it as RGB"),
        ({"photometric": "separated"}, "SEPARATED colours"),
        ({"photometric": "ycbcr"}, "YCBCR colours"),
        ({"photometric": "rgb", "extratags": [(274, "H", 1, 6, True)]}, r"to be turned when shown \(orientation 6\)"),
    ],
    ids=str,
)
def test_what_would_be_read_wrong_is_refused(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    channels = 4 if options["photometric"] == "separated" else 3
    path = write(tmp_path / "a.tif", [np.zeros((64, 64, channels), np.uint8)], tile=(32, 32), **options)
    with pytest.raises(InputError, match=told):
        open_slide(path)


def test_several_images_and_stacks_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", [np.zeros((3, 64, 64), np.uint8)], tile=(32, 32))
    with pytest.raises(InputError, match=r"TIFF of 3 pages"):
        open_slide(path)
    path = tmp_path / "b.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for _ in range(2):
            writer.write(np.zeros((64, 64), np.uint8), tile=(32, 32), metadata={"axes": "YX"})
    with pytest.raises(InputError, match=r"TIFF of 2 images"):
        open_slide(path)


def test_aperio_in_ycbcr_is_for_openslide(tmp_path: Path) -> None:
    text = "Aperio Image Library v11\r\n64x64 |MPP = 0.5"
    pixels = picture(3, "u1", 0, (64, 64)).transpose(1, 2, 0)
    options = {"tile": (32, 32), "photometric": "rgb", "compression": 33003, "description": text}
    path = write(tmp_path / "a.svs", [pixels], **options)
    with pytest.raises(ForeignTiff, match=r"only OpenSlide reads; pip install"):
        TiffSlide(str(path))
    pytest.importorskip("openslide")
    with open_slide(path) as slide:
        assert slide.kind == "aperio, OpenSlide"
        assert slide.read(0, 0, 0, 64, 64).shape == (64, 64, 3)


def test_closed_slides_say_so(tmp_path: Path) -> None:
    slide = open_slide(write(tmp_path / "a.tif", [np.zeros((64, 64), np.uint8)], tile=(32, 32)))
    slide.close()
    slide.close()
    with pytest.raises(ValueError, match="is closed"):
        slide.read(0, 0, 0, 9, 9)


def test_aperio_slide_with_both_readers(shared_data: Path) -> None:
    path = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    if not path.is_file():
        pytest.skip(f"no {path}")
    openslide = pytest.importorskip("patchtree.io.slides.through_openslide")
    with open_slide(path) as slide, openslide.OpenSlideSlide(str(path)) as other:
        assert slide.kind == "svs TIFF, jpeg, tifffile"
        assert (slide.shape, slide.mpp, slide.channels) == ((2967, 2220), (0.499, 0.499), 3)
        assert {**slide.info(), "kind": ""} == {**other.info(), "kind": ""}
        for box in ((0, 0, 0, 500, 500), (0, 1111, 999, 1500, 1700), (0, 2900, 2100, 3000, 2300)):
            np.testing.assert_array_equal(slide.read(*box), other.read(*box))
