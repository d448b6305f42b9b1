from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from patchtree.errors import InputError
from patchtree.files import replacing, sweep


def test_the_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert (temporary.parent, temporary.suffix) == (path.parent, ".bin")
        assert temporary.name.startswith(".")
    assert [file.name for file in tmp_path.iterdir()] == ["weights.bin"]
    assert path.read_bytes() == b"new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_bytes(b"ne")
        raise ZeroDivisionError
    assert [file.name for file in tmp_path.iterdir()] == ["weights.bin"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(InputError, match=r"mask\.png: cannot be written, .*; free some space"),
        replacing(tmp_path / "mask.png") as temporary,
    ):
        temporary.write_bytes(b"half")
        raise OSError(number, "in the middle of writing")
    assert list(tmp_path.iterdir()) == []


def test_other_system_errors_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="another file"), replacing(tmp_path / "a.txt"):
        (tmp_path / "another file").read_bytes()


def test_a_folder_that_is_not_there_or_is_the_target(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"a\.txt: cannot be written, there is no folder .*out; create it"),
        replacing(tmp_path / "out" / "a.txt"),
    ):
        pass
    with pytest.raises(InputError, match="cannot be written, it is a folder"), replacing(tmp_path):
        pass


@pytest.mark.parametrize("name", ["mask.png", "mask.tif"])
def test_a_write_that_really_fails_half_way(tmp_path: Path, name: str) -> None:
    pytest.importorskip("resource", reason="limits on the size of a file are POSIX")
    code = f"""
import resource
import numpy as np
from patchtree.io.images import write_mask

noise = np.random.default_rng(0).integers(0, 255, (300, 300))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
write_mask({str(tmp_path / name)!r}, noise)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(f"patchtree.errors.InputError: {tmp_path / name}: cannot be written, file too large; free")
    assert list(tmp_path.iterdir()) == []


def test_sweeping_takes_only_what_was_left_of_these_files(tmp_path: Path) -> None:
    left = [".a-0123abcd.npz", ".a.b.ome-0123abcd.tif", ".c-d-0123abcd"]
    others = [".b-0123abcd.npz", ".a-0123abcd.png", ".a-0123.npz", "a.npz", ".a.npz", "a-0123abcd.npz", ".hidden"]
    for name in (*left, *others):
        (tmp_path / name).touch()
    sweep([tmp_path / "a.npz", tmp_path / "a.b.ome.tif", tmp_path / "c-d", tmp_path / "none" / "b.npz"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize("name", ["a.npz", "a.b.ome.tif", "c-d", "x_0001.png"])
def test_sweeping_knows_the_names_that_replacing_gives(name: str, tmp_path: Path) -> None:
    with replacing(tmp_path / name) as temporary:
        temporary.touch()
        sweep([tmp_path / "other", tmp_path / f"b{name}"])
        assert temporary.exists()
        sweep([tmp_path / name])
        assert not temporary.exists()
        temporary.touch()
