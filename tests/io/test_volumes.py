"""Volumes come back as they were written, in the same place; what is cut short or no volume is refused."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from patchtree.errors import InputError
from patchtree.files import sweep
from patchtree.io.images import VOLUME_SUFFIXES, read_image
from patchtree.io.volumes import Grid, read_grid, read_volume, read_volume_mask, suffix_for, write_volume

WRITTEN = (".nii.gz", ".nii", ".nrrd", ".mha")
# Turned about x, as scanners do.
DIRECTION = (1.0, 0.0, 0.0, 0.0, 0.8, -0.6, 0.0, 0.6, 0.8)


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 5)),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    st.sampled_from(WRITTEN),
)
def test_what_is_read_is_what_was_written(shape: tuple[int, int, int], channels: int, dtype: str, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 200, (*shape, channels)).astype(dtype)
    values = values[..., 0] if channels == 1 else values
    grid = Grid(shape, (5.0, 0.75, 0.5), (-10.0, 20.0, 30.5), DIRECTION)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"scan{suffix}")
        write_volume(path, values, grid)
        assert os.listdir(folder) == [path.name]
        found = read_volume(path)
        assert found.dtype == values.dtype
        assert np.array_equal(found, values)
        assert read_grid(path).covers(grid)
        assert grid.covers(read_grid(path))


@pytest.mark.parametrize(
    "other",
    [
        Grid((4, 5, 7), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), DIRECTION),
        Grid((4, 5, 6), (2.5, 1.0, 1.0), (0.0, 0.0, 0.0), DIRECTION),
        Grid((4, 5, 6), (2.0, 1.0, 1.0), (0.0, 1.0, 0.0), DIRECTION),
        Grid((4, 5, 6), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1.0, *DIRECTION[1:])),
    ],
)
def test_another_grid_is_told(other: Grid) -> None:
    assert not Grid((4, 5, 6), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), DIRECTION).covers(other)


@pytest.mark.parametrize(("stored", "read"), [("int8", "int16"), ("int32", "float32"), ("float64", "float32")])
def test_other_types(tmp_path: Path, stored: str, read: str) -> None:
    write_volume(tmp_path / "a.nrrd", np.arange(8, dtype=stored).reshape(2, 2, 2))
    values = read_volume(tmp_path / "a.nrrd")
    assert (values.dtype, values.ravel().tolist()) == (np.dtype(read), list(range(8)))


def test_the_fourth_axis_of_a_file_holds_channels(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=False), str(tmp_path / "four.nii.gz"))
    assert np.array_equal(read_volume(tmp_path / "four.nii.gz"), np.moveaxis(values, 0, 3))
    assert read_grid(tmp_path / "four.nii.gz").shape == (3, 4, 5)
    sitk.WriteImage(sitk.GetImageFromArray(values[:1], isVector=False), str(tmp_path / "one.nii.gz"))
    assert np.array_equal(read_volume(tmp_path / "one.nii.gz"), values[0])


def test_ids_may_be_stored_as_floats(tmp_path: Path) -> None:
    write_volume(tmp_path / "ids.nii", np.float32([[[0, 1], [2, 255]]]))
    assert read_volume_mask(tmp_path / "ids.nii").tolist() == [[[0, 1], [2, 255]]]
    write_volume(tmp_path / "half.nii", np.float32([[[0, 0.5]]]))
    with pytest.raises(InputError, match=r"half\.nii: .*no whole numbers; save ids"):
        read_volume_mask(tmp_path / "half.nii")
    write_volume(tmp_path / "rgb.mha", np.zeros((2, 2, 2, 3), np.uint8))
    with pytest.raises(InputError, match=r"rgb\.mha: a mask must hold class ids in one channel, not 3"):
        read_volume_mask(tmp_path / "rgb.mha")


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_cut_short(tmp_path: Path, suffix: str, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"scan{suffix}"
    write_volume(path, np.random.default_rng(0).integers(0, 999, (20, 30, 40)).astype(np.int16))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=rf"scan{suffix}: cannot be read \(.+\); copy or export it again") as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    write_volume(path, np.random.default_rng(0).integers(0, 999, (20, 30, 40)).astype(np.int16))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"scan\.nii\.gz: cannot be read"):
        read_volume(path)


def test_missing_empty_and_no_volume(tmp_path: Path) -> None:
    (tmp_path / "empty.nii").touch()
    (tmp_path / "text.nrrd").write_text("once upon a time")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.uint8)), str(tmp_path / "flat.nii"))
    for name, words in [
        ("missing.nii", r"no such file; check the path"),
        ("", r"is a folder"),
        ("empty.nii", r"is empty \(0 bytes\); copy or export it again"),
        ("text.nrrd", r"cannot be read \(.+\); copy or export it again"),
        ("flat.nii", r"has 2 axes \(5 x 4\), and a volume has 3"),
    ]:
        for read in (read_volume, read_volume_mask, read_grid):
            with pytest.raises(InputError, match=rf"{name}: {words}"):
                read(tmp_path / name)


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number(tmp_path: Path, value: float, dtype: str, suffix: str) -> None:
    values = np.zeros((2, 3, 4), dtype)
    values[1, 2, 3] = value
    write_volume(tmp_path / f"a{suffix}", values)
    with pytest.raises(InputError, match=rf"a{suffix}: 1 of 24 values are NaN or infinite"):
        read_volume(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("lost", [1, 100])
def test_the_last_bytes_are_missing(tmp_path: Path, lost: int) -> None:
    """Also of what was compressed after it had been cut."""
    write_volume(tmp_path / "whole.nii", np.ones((8, 9, 10), np.int16))
    short = (tmp_path / "whole.nii").read_bytes()[:-lost]
    (tmp_path / "short.nii").write_bytes(short)
    (tmp_path / "short.nii.gz").write_bytes(gzip.compress(short))
    for name in ("short.nii", "short.nii.gz"):
        with pytest.raises(InputError, match=rf"{name}: cannot be read \(it is cut short\)"):
            read_volume(tmp_path / name)


def test_both_orders_of_bytes(tmp_path: Path) -> None:
    """Headers written by hand, as other programs write them, with room before the voxels."""
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for order in "<>":
        head = bytearray(400)
        struct.pack_into(f"{order}i", head, 0, 348)
        struct.pack_into(f"{order}8h", head, 40, 3, 4, 3, 2, 1, 1, 1, 1)
        struct.pack_into(f"{order}hh", head, 70, 16, 32)
        struct.pack_into(f"{order}8f", head, 76, 1, 1, 1, 1, 1, 1, 1, 1)
        struct.pack_into(f"{order}f", head, 108, 400)
        head[344:348] = b"n+1\0"
        data = bytes(head) + values.astype(f"{order}f4").tobytes()
        (tmp_path / "a.nii").write_bytes(data)
        assert np.array_equal(read_volume(tmp_path / "a.nii"), values)
        (tmp_path / "a.nii").write_bytes(data[:-1])
        with pytest.raises(InputError, match="cut short"):
            read_volume(tmp_path / "a.nii")


def test_names_that_say_the_wrong_thing(tmp_path: Path) -> None:
    write_volume(tmp_path / "plain.nii", np.ones((2, 3, 4), np.uint8))
    (tmp_path / "packed.nii").write_bytes(gzip.compress((tmp_path / "plain.nii").read_bytes()))
    (tmp_path / "plain.nii").rename(tmp_path / "plain.nii.gz")
    with pytest.raises(InputError, match=r"plain\.nii\.gz: is not compressed; name it \.nii"):
        read_volume(tmp_path / "plain.nii.gz")
    with pytest.raises(InputError, match=r"packed\.nii: is compressed; name it \.nii\.gz"):
        read_volume(tmp_path / "packed.nii")


def test_large_ids(tmp_path: Path) -> None:
    write_volume(tmp_path / "ids.nrrd", np.full((1, 1, 1), 3e9, np.float32))
    assert read_volume_mask(tmp_path / "ids.nrrd").item() == 3_000_000_000


def test_a_data_file_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), str(tmp_path / "a.mhd"))
    assert read_volume(tmp_path / "a.mhd").shape == (2, 3, 4)
    (tmp_path / "a.raw").unlink()
    with pytest.raises(InputError, match=r"a\.mhd: cannot be read \(.* the file that holds its voxels is missing\)"):
        read_volume(tmp_path / "a.mhd")
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    grid = Grid((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), DIRECTION)
    for values, words in [
        (np.zeros((2, 3)), r"not \(2, 3\)"),
        (np.zeros((2, 3, 5)), r"on a grid of \(2, 3, 4\), not \(2, 3, 5\)"),
        (np.zeros((2, 3, 4), complex), "of complex128 cannot be written"),
    ]:
        with pytest.raises(InputError, match=rf"a\.nii\.gz: .*{words}"):
            write_volume(tmp_path / "a.nii.gz", values, grid)
    with pytest.raises(InputError, match=r"a\.xyz: cannot be written"):
        write_volume(tmp_path / "a.xyz", np.zeros((2, 3, 4)))
    with pytest.raises(InputError, match=r"there is no folder"):
        write_volume(tmp_path / "none" / "a.nii.gz", np.zeros((2, 3, 4)))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".scan-0123abcd.nii.gz").touch()
    (tmp_path / ".other-0123abcd.nii.gz").touch()
    sweep([tmp_path / "scan.nii.gz"])
    assert [path.name for path in tmp_path.iterdir()] == [".other-0123abcd.nii.gz"]


def test_suffixes_of_what_is_written() -> None:
    assert {suffix_for(f"scan{suffix}") for suffix in VOLUME_SUFFIXES} <= set(WRITTEN)


def test_without_the_library(tmp_path: Path) -> None:
    """One line says what to install; nothing else needs it."""
    code = (
        "import sys; sys.modules['SimpleITK'] = None\n"
        "from patchtree.errors import InputError\n"
        "from patchtree.io.volumes import read_volume\n"
        "try: read_volume('scan.nii.gz')\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "scan.nii.gz: is a volume, which SimpleITK reads; pip install 'patchtree[volumes]'\n"


def test_a_volume_is_no_image(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(InputError, match=r"a\.nii\.gz: is a volume, and an image is wanted"):
        read_image(tmp_path / "a.nii.gz")
