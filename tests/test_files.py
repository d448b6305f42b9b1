from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from patchtree.errors import InputError
from patchtree.files import replacing


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
