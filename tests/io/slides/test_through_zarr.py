"""OME-Zarr of both versions, in folders and through URLs."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.slides import Slide, SlideReadError, is_slide, open_slide

zarr = pytest.importorskip("zarr")
fsspec = pytest.importorskip("fsspec")

VERSIONS = {"0.4": 2, "0.5": 3}


def picture(shape: tuple[int, ...], dtype: str = "u1") -> NDArray[Any]:
    return np.random.default_rng(shape).integers(1, 250, shape).astype(dtype)


def write(
    path: Path,
    version: str = "0.5",
    axes: str = "cyx",
    sizes: dict[str, int] | None = None,
    dtype: str = "u1",
    scales: list[tuple[float, float]] | None = None,
    unit: str | None = "micrometer",
    levels: int = 3,
    **more: Any,
) -> list[NDArray[Any]]:
    """Write a pyramid of 201 x 150 pixels and give its levels with their own axes."""
    sizes = {"c": 3, "z": 1, "t": 1, **(sizes or {})}
    group = zarr.open_group(path, mode="w", zarr_format=VERSIONS[version])
    arrays, datasets = [], []
    for level in range(levels):
        shape = tuple({"y": 201 >> level, "x": 150 >> level, **sizes}[axis] for axis in axes)
        chunks = tuple({"y": 64, "x": 32, **sizes}[axis] for axis in axes)
        arrays.append(picture(shape, dtype))
        group.create_array(str(level), data=arrays[-1], chunks=chunks)
        y, x = scales[level] if scales else (0.5 * 2**level, 0.25 * 2**level)
        scale = [{"y": y, "x": x}.get(axis, 1.0) for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"c": "channel", "t": "time"}
    described = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in described:
        if unit and axis["type"] == "space":
            axis["unit"] = unit
    image = {"axes": described, "datasets": datasets, **more}
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [{"version": version, **image}]
    return arrays


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("axes", ["yx", "cyx", "tczyx", "yxc", "zyx", "xy"])
@pytest.mark.parametrize("dtype", ["u1", ">u2", "f4"])
def test_levels_are_read_whole(tmp_path: Path, version: str, axes: str, dtype: str) -> None:
    arrays = write(tmp_path / "a.zarr", version, axes, dtype=dtype)
    with open_slide(tmp_path / "a.zarr") as slide, pickle.loads(pickle.dumps(slide)) as other:
        assert slide.kind == f"OME-Zarr {version}, zarr"
        assert slide.mpp == other.mpp == (0.5, 0.25)
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
        assert {level.tile for level in slide.levels} == {(64, 32)}
        for level, array in enumerate(arrays):
            kept = "".join(axis for axis in axes if axis in "cyx")
            expected = array.reshape([n for axis, n in zip(axes, array.shape, strict=True) if axis in kept])
            expected = np.einsum(f"{kept}->yx{'c' * ('c' in kept)}", expected)
            expected = expected if expected.ndim == 3 else expected[..., None]
            for one in (slide, other):
                read = one.read(level, 0, 0, *one.levels[level].shape)
                assert read.dtype == slide.dtype == np.dtype(dtype).newbyteorder("=")
                np.testing.assert_array_equal(read, expected)
    assert is_slide(tmp_path / "a.zarr")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zarr") / "a.zarr"
    write(path)
    return path


@pytest.fixture(scope="module")
def opened(stored: Path) -> tuple[Slide, NDArray[Any]]:
    slide = open_slide(stored)
    return slide, slide.read(1, 0, 0, *slide.levels[1].shape)


@settings(max_examples=40)
@given(st.data())
def test_box_equals_part_of_whole(opened: tuple[Slide, NDArray[Any]], data: st.DataObject) -> None:
    slide, whole = opened
    height, width = slide.levels[1].shape
    y0, x0 = data.draw(st.integers(-20, height + 9)), data.draw(st.integers(-20, width + 9))
    y1, x1 = y0 + data.draw(st.integers(0, 90)), x0 + data.draw(st.integers(0, 90))
    padded = np.full((height + 130, width + 130, 3), 255, np.uint8)
    padded[20 : 20 + height, 20 : 20 + width] = whole
    np.testing.assert_array_equal(slide.read(1, y0, x0, y1, x1), padded[y0 + 20 : y1 + 20, x0 + 20 : x1 + 20])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_urls(tmp_path: Path, version: str, scheme: str) -> None:
    arrays = write(tmp_path / "a.zarr", version)
    url = (tmp_path / "a.zarr").as_uri()
    if scheme == "memory":
        url = f"memory://zarr-{version}/a.zarr"
        fsspec.filesystem("memory").put(str(tmp_path / "a.zarr"), f"/zarr-{version}/a.zarr", recursive=True)
    assert is_slide(url)
    with open_slide(url) as slide:
        np.testing.assert_array_equal(slide.read(1, 0, 0, *slide.levels[1].shape), arrays[1].transpose(1, 2, 0))


def test_threads_read_the_same(stored: Path) -> None:
    boxes = [(0, y, 0, y + 60, 150) for y in range(0, 140, 7)]
    with open_slide(stored) as slide, ThreadPoolExecutor(4) as threads:
        expected = [slide.read(*box) for box in boxes]
        assert all(map(np.array_equal, threads.map(lambda box: slide.read(*box), boxes), expected))


@pytest.mark.parametrize(("unit", "expected"), [("nanometer", (5e-4, 2.5e-4)), (None, None), ("pixel", None)])
def test_units(tmp_path: Path, unit: str | None, expected: tuple[float, float] | None) -> None:
    write(tmp_path / "a.zarr", unit=unit)
    with open_slide(tmp_path / "a.zarr") as slide:
        assert slide.mpp == (expected and pytest.approx(expected))
    with open_slide(tmp_path / "a.zarr", mpp=1) as slide:
        assert slide.mpp == (1, 1)


def test_scale_of_all_levels_counts(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", coordinateTransformations=[{"type": "scale", "scale": [1, 3, 3]}])
    with open_slide(tmp_path / "a.zarr") as slide:
        assert slide.mpp == (1.5, 0.75)
        assert slide.levels[1].downsample == (2, 2)


def test_declared_ratio_is_used_where_it_fits(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", scales=[(1, 1), (2.001, 2.0005), (4.002, 4)])
    with open_slide(tmp_path / "a.zarr") as slide:
        assert [level.downsample for level in slide.levels] == [(1, 1), (2.001, 2.0005), (4.002, 4)]


def test_wrong_ratio_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", scales=[(1, 1), (1, 1), (4, 4)])
    with (
        pytest.warns(UserWarning, match=r"level 1 is declared 1 times as coarse as the first but is 2 times as small"),
        open_slide(tmp_path / "a.zarr") as slide,
    ):
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]


def test_image_of_bioformats2raw(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    arrays = write(tmp_path / "a.zarr" / "0")
    with open_slide(tmp_path / "a.zarr") as slide:
        np.testing.assert_array_equal(slide.read(2, 0, 0, 50, 37), arrays[2].transpose(1, 2, 0))
    write(tmp_path / "a.zarr" / "1")
    with pytest.raises(InputError, match=r"OME-Zarr of several images; name one, such as .*a\.zarr/0"):
        open_slide(tmp_path / "a.zarr")


def test_missing_level_is_left_out_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr")
    shutil.rmtree(tmp_path / "a.zarr" / "1")
    with pytest.warns(UserWarning, match="level 1 is named but is not there"):
        slide = open_slide(tmp_path / "a.zarr")
    assert [level.downsample for level in slide.levels] == [(1, 1), (4, 4)]
    assert slide.read(1, 0, 0, 50, 37).shape == (50, 37, 3)
    shutil.rmtree(tmp_path / "a.zarr" / "0")
    with pytest.raises(InputError, match=r"without its finest level \(0\)"):
        open_slide(tmp_path / "a.zarr")


def test_unreadable_chunk_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "0" / "c" / "0" / "1" / "2").write_bytes(b"no chunk")
    with open_slide(tmp_path / "a.zarr") as slide:
        with pytest.raises(SlideReadError, match=r"a\.zarr: level 0, rows 60 to 70, columns 60 to 70 cannot be read"):
            slide.read(0, 60, 60, 70, 70)
        slide.read(0, 0, 0, 64, 150)


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({}, "Zarr without an image of OME-Zarr; name the folder of one image"),
        ({"ome": {"plate": {}}}, "a plate of many images"),
        ({"multiscales": [{"axes": []}]}, "metadata cannot be read"),
        ({"multiscales": []}, "metadata cannot be read"),
    ],
)
def test_other_groups_are_refused(tmp_path: Path, attributes: dict[str, Any], told: str) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3).attrs.update(attributes)
    with pytest.raises(InputError, match=told) as caught:
        open_slide(tmp_path / "a.zarr")
    assert "\n" not in str(caught.value)


def test_damaged_metadata_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="metadata cannot be read"):
        open_slide(tmp_path / "a.zarr")


def test_stacks_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", axes="zyx", sizes={"z": 5})
    with pytest.raises(InputError, match="of 5 images along z"):
        open_slide(tmp_path / "a.zarr")


def test_closed_slides_say_so(stored: Path) -> None:
    slide = open_slide(stored)
    slide.close()
    slide.close()
    with pytest.raises(ValueError, match="is closed"):
        slide.read(0, 0, 0, 9, 9)
