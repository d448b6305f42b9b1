"""Many inputs as one job: found in folders, by patterns and in manifests, shared out, and remembered when done."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from patchtree.errors import InputError
from patchtree.files import replacing, split_suffix
from patchtree.io.images import IMAGE_SUFFIXES, VOLUME_SUFFIXES, is_volume
from patchtree.io.paip import without_masks
from patchtree.io.slides import is_slide, is_tiff
from patchtree.io.slides.source import is_url
from patchtree.tables import read_table, refuse_more

T = TypeVar("T")

# What is worked on in a folder, damaged or not; slides in TIFF and OME-Zarr are known without a suffix.
SLIDE_SUFFIXES = (
    ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".czi", ".zarr", ".qptiff", ".btf", ".tf2", ".tf8",
)  # fmt: skip
# What is not: several files are one slide, or nothing here reads them.
_LEFT_OUT = (".dcm", ".vms", ".vmu", ".vsi", ".isyntax", ".i2syntax", ".lif", ".nd2", ".oir")

_FOLDER = ".patchtree"
_SHOWN = 3  # names of a list


@dataclass(frozen=True)
class Input:
    """One of the things to work on.

    Attributes:
        path: a file, an OME-Zarr folder or a URL.
        name: what its outputs are called, without suffix.
        mpp: micrometres a pixel that a manifest gives.
    """

    path: str
    name: str
    mpp: float | None = None


def find_inputs(
    paths: Iterable[str | os.PathLike[str]], manifest: str | os.PathLike[str] | None = None
) -> tuple[list[Input], list[InputError]]:
    """List what to work on, each once: files, what is in folders, what patterns match, the rows of a manifest.

    A pattern is a path with ``*``, ``?`` or ``[...]`` that is no file itself; ``**`` stands for folders in folders. The
    images and slides of a folder, and what a pattern matches, are sorted by name; hidden files are left out. A slide in
    TIFF or OME-Zarr is taken whatever its suffix; a warning tells of other slides. Whether a single file exists is not
    looked at.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("b.svs", "a.png", "notes.txt"):
    ...     (folder / name).touch()
    >>> inputs, errors = find_inputs([folder, folder / "*.svs", "s3://bucket/c.tif", folder / "*.ndpi"])
    >>> [one.name for one in inputs], len(errors)
    (['a', 'b', 'c'], 1)

    Args:
        paths: files, folders, OME-Zarr folders, URLs and patterns.
        manifest: see `read_manifest`.

    Returns:
        The inputs, and what is wrong with each path that names none.
    """
    found: dict[str, Input] = {}
    errors: list[InputError] = []
    rows: list[Input] = []
    for path in paths:
        try:
            for one in _expand(os.fspath(path)):
                found.setdefault(one, Input(one, split_suffix(one)[0]))
        except InputError as error:
            errors.append(error)
    if manifest is not None:
        try:
            rows, wrong = read_manifest(manifest)
            errors += wrong
        except InputError as error:
            errors.append(error)
    listed = {one.path for one in rows}
    return [*(one for one in found.values() if one.path not in listed), *dict.fromkeys(rows)], errors


def read_manifest(path: str | os.PathLike[str]) -> tuple[list[Input], list[InputError]]:
    """Read a table of inputs, as CSV with a line of column names.

    The column ``path`` names files, folders of OME-Zarr or URLs, relative to the manifest's own folder. ``mpp`` may
    give micrometres a pixel, ``name`` what the outputs are called; other columns are not looked at. These names may be
    in capitals. Commas, semicolons or tabs separate.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "slides.csv"
    >>> _ = path.write_text("path,mpp,name\\n/data/a.svs,0.25,\\n/data/b.svs,,second\\n")
    >>> read_manifest(path)
    ([Input(path='/data/a.svs', name='a', mpp=0.25), Input(path='/data/b.svs', name='second', mpp=None)], [])

    Returns:
        The inputs, and what is wrong with each row that is none.

    Raises:
        InputError: the file cannot be read, or has no column ``path`` or no rows.
    """
    path = Path(path)
    rows, _ = read_table(path)
    columns = rows.fieldnames = [column.lower() for column in rows.fieldnames or ()]
    if "path" not in columns:
        raise InputError(f"{path}: has no column 'path' but {', '.join(columns) or 'nothing'}; name one so")
    inputs, errors = [], []
    for row in rows:
        if any(row.values()):
            try:
                inputs.append(_read_row(path, rows.line_num, row))
            except InputError as error:
                errors.append(error)
    if not inputs and not errors:
        raise InputError(f"{path}: a manifest without rows; add one for each input")
    return inputs, errors


def take_part(items: Sequence[T], num_parts: int, part_id: int) -> list[T]:
    """Share items out among the parts of a job, every so many-th to one; together the parts hold each item once.

    >>> [take_part("abcde", 2, part) for part in (0, 1)]
    [['a', 'c', 'e'], ['b', 'd']]

    Raises:
        InputError: there is no such part.
    """
    if num_parts < 1 or not 0 <= part_id < num_parts:
        raise InputError(f"part {part_id} of {num_parts} is not possible; parts are numbered from 0 to num_parts - 1")
    return list(items[part_id::num_parts])


def fingerprint(settings: Mapping[str, Any], files: Iterable[str | os.PathLike[str]]) -> str:
    """Tell apart work on the same files with the same settings from any other.

    A file is known by its name, size and time of change, wherever it lies; a URL by itself.

    Args:
        settings: what the outputs depend on, in values that JSON knows.
        files: what is worked on.
    """
    seen: list[Any] = []
    for file in [os.fspath(file) for file in files]:
        try:
            status = None if is_url(file) else os.stat(file)
        except OSError:
            status = None
        seen.append(file if status is None else [Path(file).name, status.st_size, status.st_mtime_ns])
    text = json.dumps([settings, seen], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class States:
    """What became of each input, in a small file each beside the outputs, so that a job that was killed can go on.

    Parts of a job on several machines may share a folder: none writes another's files.

    >>> import tempfile
    >>> states = States.open(tempfile.mkdtemp())
    >>> states.finish("a", "a.svs", "5e1f", {"patches": 12})
    >>> states.fail("b", "b.svs", "5e1f", "b.svs: is empty (0 bytes); copy or export it again")
    >>> states.done("a", "5e1f"), states.done("a", "another"), states.done("b", "5e1f")
    ({'patches': 12}, None, None)
    >>> [(state["input"], state["state"]) for state in states]
    [('a.svs', 'done'), ('b.svs', 'failed')]

    Attributes:
        folder: where the files are.
    """

    folder: Path

    @classmethod
    def open(cls, out: str | os.PathLike[str]) -> States:
        """Keep states in a folder of outputs.

        Raises:
            InputError: it may not be written to.
        """
        folder = Path(out) / _FOLDER
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise InputError(f"{out}: cannot be written to, {reason}; choose another folder") from error
        if not os.access(folder, os.W_OK):
            raise InputError(f"{out}: cannot be written to, it is read-only; choose another folder")
        return cls(folder)

    @classmethod
    def find(cls, out: str | os.PathLike[str]) -> States | None:
        """Give the states that a folder of outputs holds, if any."""
        folder = Path(out) / _FOLDER
        return cls(folder) if folder.is_dir() else None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Give all states, by name: ``name``, ``state``, ``input``, and ``result`` or ``reason``."""
        for file in sorted(self.folder.glob("*.json")):
            if not file.name.startswith(".") and (state := _load(file)):
                yield {"name": file.name.removesuffix(".json"), **state}

    def done(self, name: str, key: str) -> dict[str, Any] | None:
        """Give the result of what was finished with the same fingerprint; None if it was not."""
        state = _load(self.file(name))
        return state.get("result") if state and state["key"] == key else None

    def failed(self, name: str) -> bool:
        """Whether an input, or what was to be made of its outputs, failed."""
        return (_load(self.file(name)) or {}).get("state") == "failed"

    def begin(self, name: str) -> list[str]:
        """Forget what was known of an input, as its outputs are about to change; gives the names of their files."""
        result = (_load(self.file(name)) or {}).get("result") or {}
        self.file(name).unlink(missing_ok=True)
        return [Path(file).name for file in result.get("files", ())]

    def finish(self, name: str, path: str, key: str, result: dict[str, Any]) -> None:
        """Remember that all outputs of an input are written."""
        self._write(name, {"state": "done", "input": path, "key": key, "result": result})

    def fail(self, name: str, path: str, key: str, reason: str, result: dict[str, Any] | None = None) -> None:
        """Remember why an input could not be worked on; `result` is that of what was finished nevertheless."""
        finished = {} if result is None else {"result": result}
        self._write(name, {"state": "failed", "input": path, "key": key, "reason": reason, **finished})

    def _write(self, name: str, state: dict[str, Any]) -> None:
        with replacing(self.file(name)) as temporary:
            temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")

    def file(self, name: str) -> Path:
        """Give where the state of an input is kept."""
        return self.folder / f"{name}.json"


def _expand(path: str) -> list[str]:
    """List what a path stands for."""
    if is_url(path):
        return [path]
    if not os.path.lexists(path) and glob.has_magic(path):
        matches = [one for match in sorted(glob.glob(path, recursive=True)) for one in _open_folder(match)]
        if not matches:
            raise InputError(f"{path}: no image or slide matches; check the pattern")
        return matches
    inside = _open_folder(path)
    if not inside and (Path(path) / "images").is_dir():
        raise InputError(f"{path}: a folder without images or slides but for those in images/; name {path}/images")
    if not inside:
        suffixes = ", ".join(IMAGE_SUFFIXES + SLIDE_SUFFIXES + VOLUME_SUFFIXES)
        raise InputError(f"{path}: a folder without images, volumes or slides ({suffixes}); name one that has some")
    return inside


def _open_folder(path: str) -> list[str]:
    """List the images and slides in a folder, but no masks beside PAIP's slides; anything else stands for itself."""
    if not os.path.isdir(path) or is_slide(path):
        return [str(Path(path))]
    entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    names = [entry.name for entry in entries if _is_input(entry)]
    left_out = sorted({entry.name for entry in entries if _is_left_out(entry)} - set(names))
    if left_out:
        more = f" and {len(left_out) - _SHOWN:,} more" if len(left_out) > _SHOWN else ""
        warnings.warn(
            f"{path}: left out are {', '.join(left_out[:_SHOWN])}{more}; name those to take, one file of each slide, "
            "or export slides as OME-TIFF and scans as NIfTI",
            stacklevel=2,
        )
    return sorted(str(Path(path, name)) for name in without_masks(names))


def _is_input(entry: os.DirEntry[str]) -> bool:
    """Whether something in a folder is an image or a slide: by its suffix, damaged or not, else by what it is."""
    suffix = Path(entry.name).suffix.lower()
    if suffix in IMAGE_SUFFIXES + SLIDE_SUFFIXES or is_volume(entry.name):
        return entry.is_dir() == (suffix == ".zarr")
    return (entry.is_dir() or is_tiff(entry.path)) and is_slide(entry.path)


def _is_left_out(entry: os.DirEntry[str]) -> bool:
    """Whether what is no input looks like one."""
    suffix = Path(entry.name).suffix.lower()
    return suffix in _LEFT_OUT or (suffix not in IMAGE_SUFFIXES + SLIDE_SUFFIXES and is_tiff(entry.path))


def _read_row(manifest: Path, line: int, row: Mapping[str | None, Any]) -> Input:
    """Make an input of a row."""
    cells = {column: (row.get(column) or "").strip() for column in ("path", "mpp", "name")}
    where = f"{manifest}: line {line}"
    refuse_more(where, row)
    if not cells["path"]:
        raise InputError(f"{where} has no path; name a file, or delete the line")
    path = cells["path"] if is_url(cells["path"]) else str(manifest.parent / cells["path"])
    name = cells["name"] or split_suffix(path)[0]
    if name != Path(name).name or name.startswith("."):
        raise InputError(f"{where}: {name!r} is no name for outputs; use one without folders and no dot in front")
    try:
        mpp = float(cells["mpp"]) if cells["mpp"] else None
    except ValueError:
        mpp = math.nan
    if mpp is not None and not 0 < mpp < math.inf:
        raise InputError(f"{where}: an mpp of {cells['mpp']!r} is no pixel size; give micrometres a pixel, as in 0.25")
    return Input(path, name, mpp)


def _load(file: Path) -> dict[str, Any] | None:
    """Read a state; what is damaged counts as not there."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return state if {"state", "key", "input"} <= state.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
