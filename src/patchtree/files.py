"""Writing a file whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from patchtree.errors import InputError

# A full disk, a quota used up, a file system (or a limit) that takes no larger file.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TWO = (".nii.gz", ".ome.tif", ".ome.tiff")
_TEMPORARY = re.compile(rf"\.(?P<stem>.+)-[0-9a-f]{{8}}(?P<suffix>{'|'.join(map(re.escape, _TWO))}|\.[^.]*)?")


def split_suffix(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Split a file's name into what comes before its suffix and the suffix, which may be two, as of a compressed NIfTI.

    >>> split_suffix("scans/liver_7.nii.gz"), split_suffix("cell.OME.TIF"), split_suffix("photo.v2.png")
    (('liver_7', '.nii.gz'), ('cell', '.OME.TIF'), ('photo.v2', '.png'))
    """
    path = Path(path)
    for suffix in _TWO:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)], path.name[-len(suffix) :]
    return path.stem, path.suffix


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to, which becomes `path` if the block succeeds and goes if it fails.

    A reader sees the old file or the whole new one, also when the writer is killed. The temporary name is hidden and
    keeps the suffix, so that writers that choose the format by it work. Nothing is flushed to the disk by force.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replacing(folder / "answer.txt") as temporary:
    ...     _ = temporary.write_text("42")
    >>> [file.name for file in folder.iterdir()]
    ['answer.txt']

    Raises:
        InputError: the folder does not exist or may not be written to, `path` is a folder, or the disk is full.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: cannot be written, there is no folder {folder}; create it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written, the folder {folder} is read-only; choose another")
    if path.is_dir():
        raise InputError(f"{path}: cannot be written, it is a folder; choose another name")
    stem, suffix = split_suffix(path)
    temporary = path.with_name(f".{stem}-{uuid.uuid4().hex[:8]}{suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(
                f"{path}: cannot be written, {os.strerror(error.errno).lower()}; "
                "free some space or choose another folder, then run again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file, or a folder with all that is in it; nothing where there is none.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "answer.txt").touch()
    >>> remove(folder), remove(folder), folder.exists()
    (None, None, False)
    """
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Remove what writers of files left under temporary names when they were killed.

    Not while another process may be writing the same files.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in (".answer-0123abcd.txt", ".other-0123abcd.txt"):
    ...     (folder / name).touch()
    >>> sweep([folder / "answer.txt"])
    >>> [file.name for file in folder.iterdir()]
    ['.other-0123abcd.txt']
    """
    names: dict[Path, set[str]] = {}
    for path in map(Path, paths):
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        for file in folder.glob(".*"):
            match = _TEMPORARY.fullmatch(file.name)
            if match and match["stem"] + (match["suffix"] or "") in wanted:
                file.unlink(missing_ok=True)
