"""Slides through OpenSlide: one of Philips's, whose description in XML only OpenSlide reads."""

from __future__ import annotations

import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.slides import SlideReadError, is_slide, open_slide
from patchtree.io.slides.through_tifffile import ForeignTiff, TiffSlide

openslide = pytest.importorskip("openslide")


def thing(kind: str, *attributes: str) -> str:
    return f'<DataObject ObjectType="{kind}">{"".join(attributes)}</DataObject>'


def attribute(name: str, value: object) -> str:
    return f'<Attribute Name="{name}" Group="0" Element="0" PMSVR="IString">{value}</Attribute>'


def philips(path: Path, shapes: list[tuple[int, int]]) -> Path:
    """Write a slide of waves in Philips's layout, 0.25 x 0.5 µm a pixel."""
    levels = [
        thing(
            "PixelDataRepresentation",
            attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", number),
            attribute("DICOM_PIXEL_SPACING", f'"{0.00025 * 2**number}" "{0.0005 * 2**number}"'),
            attribute("PIIM_PIXEL_DATA_REPRESENTATION_COLUMNS", width),
            attribute("PIIM_PIXEL_DATA_REPRESENTATION_ROWS", height),
        )
        for number, (height, width) in enumerate(shapes)
    ]
    image = thing(
        "DPScannedImage",
        attribute("PIM_DP_IMAGE_TYPE", "WSI"),
        attribute("DICOM_PIXEL_SPACING", '"0.00025" "0.0005"'),
        attribute("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", f"<Array>{''.join(levels)}</Array>"),
    )
    xml = thing("DPUfsImport", attribute("PIM_DP_SCANNED_IMAGES", f"<Array>{image}</Array>"))
    options: dict[str, Any] = {"photometric": "rgb", "compression": "jpeg", "metadata": None, "tile": (64, 64)}
    with tifffile.TiffWriter(path) as writer:
        for number, shape in enumerate(shapes):
            text = '<?xml version="1.0" encoding="UTF-8"?>' + xml if number == 0 else None
            writer.write(
                waves(shape), subfiletype=int(number > 0), software="Philips DP v1.0", description=text, **options
            )
    return path


def waves(shape: tuple[int, int]) -> NDArray[np.uint8]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.stack([100 + 60 * np.sin(y / (30 + 9 * channel) + x / 40) for channel in range(3)], -1).astype(np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return philips(tmp_path / "slide.tiff", [(512, 768), (256, 384)])


def test_what_only_openslide_reads_goes_to_it(path: Path) -> None:
    assert is_slide(path)
    with pytest.raises(ForeignTiff, match=r"of a kind \(philips\) that only OpenSlide reads; pip install"):
        TiffSlide(str(path))
    with open_slide(path) as slide:
        assert slide.kind == "philips, OpenSlide"
        assert slide.mpp == pytest.approx((0.25, 0.5))
        assert [level.shape for level in slide.levels] == [(512, 768), (256, 384)]
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2)]
        assert {level.tile for level in slide.levels} == {(64, 64)}
        for level in (0, 1):
            shape = slide.levels[level].shape
            np.testing.assert_allclose(slide.read(level, 0, 0, *shape).astype(int), waves(shape), atol=16)


def test_missing_package_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchtree.io.slides.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'only OpenSlide reads; pip install "patchtree\[slides\]"'):
        open_slide(path)


def test_boxes_are_parts_of_the_whole(path: Path) -> None:
    with open_slide(path) as slide:
        for level in (0, 1):
            height, width = slide.levels[level].shape
            padded = np.full((height + 40, width + 40, 3), 255, np.uint8)
            padded[20:-20, 20:-20] = slide.read(level, 0, 0, height, width)
            for y0, x0, y1, x1 in ((-9, -9, 1, 1), (13, 77, 200, 301), (height - 5, 3, height + 5, 9), (5, 5, 5, 9)):
                np.testing.assert_array_equal(
                    slide.read(level, y0, x0, y1, x1), padded[y0 + 20 : y1 + 20, x0 + 20 : x1 + 20]
                )


def test_threads_pickles_and_forks_read_the_same(path: Path) -> None:
    boxes = [(0, y, x, y + 60, x + 60) for y in range(0, 450, 50) for x in range(0, 700, 50)]
    with open_slide(path) as slide, pickle.loads(pickle.dumps(slide)) as other, ThreadPoolExecutor(4) as threads:
        expected = [slide.read(*box) for box in boxes]
        assert all(map(np.array_equal, threads.map(lambda box: slide.read(*box), boxes), expected))
        assert other.info() == slide.info()
        assert np.array_equal(other.read(*boxes[3]), expected[3])
        if hasattr(os, "fork"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # forks of a process with threads
                child = os.fork()
            if child == 0:
                os._exit(0 if np.array_equal(slide.read(*boxes[3]), expected[3]) else 1)
            assert os.waitpid(child, 0)[1] == 0


def test_an_error_is_not_for_ever(path: Path) -> None:
    with open_slide(path) as slide:
        good = slide.read(0, 0, 0, 64, 64)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages.first.dataoffsets[12 + 2], tif.pages.first.databytecounts[12 + 2]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    with open_slide(path) as slide:
        for _ in range(2):
            with pytest.raises(SlideReadError, match=r"level 0, rows 64 to 128, columns 100 to 200 ") as caught:
                slide.read(0, 64, 100, 128, 200)
            assert "\n" not in str(caught.value)
            assert caught.value.box == (64, 100, 128, 200)
            np.testing.assert_array_equal(slide.read(0, 0, 0, 64, 64), good)
        threads_own = slide._handle.get()
        with pytest.raises(openslide.OpenSlideError):  # as another thread's read may leave it
            threads_own.read_region((128, 64), 0, (64, 64))
        np.testing.assert_array_equal(slide.read(0, 0, 0, 64, 64), good)


def test_uneven_ratio_is_told_as_it_is(tmp_path: Path) -> None:
    path = philips(tmp_path / "slide.tiff", [(512, 768), (250, 380)])
    with open_slide(path) as slide:
        y, x = slide.levels[1].downsample
        height, width = slide.levels[1].shape
        assert (y, x) == (512 / height, 768 / width) or (y, x) == (2, 2)


def test_truncated_file_is_told(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError) as caught:
        open_slide(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_transparent_pixels_are_background(tmp_path: Path) -> None:
    from patchtree.io.slides.through_openslide import OpenSlideSlide

    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, np.zeros((100, 100, 3), np.uint8), **options)
    with OpenSlideSlide(str(path)) as slide:
        slide.background = np.uint8([1, 2, 3])
        # OpenSlide itself is asked for more than there is.
        read = slide._read(0, (90, 90, 110, 110))
    assert (read[:10, :10] == 0).all()
    assert (read[10:] == [1, 2, 3]).all()


def test_closed_slides_say_so(path: Path) -> None:
    slide = open_slide(path)
    handle = slide._handle.get()
    slide.close()
    with pytest.raises(Exception, match="closed"):
        handle.read_region((0, 0), 0, (9, 9))
    slide.close()
    with pytest.raises(ValueError, match="is closed"):
        slide.read(0, 0, 0, 9, 9)
