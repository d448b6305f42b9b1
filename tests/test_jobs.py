"""Inputs are found, shared out, and remembered."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from patchtree.errors import InputError
from patchtree.jobs import Input, States, find_inputs, fingerprint, read_manifest, take_part
from slide_files import small_slide


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(*paths: object, **options: object) -> list[str]:
    inputs, errors = find_inputs(map(str, paths), **options)
    assert not errors
    return [one.name for one in inputs]


# Finding


def test_folders_hold_images_and_slides(tmp_path: Path) -> None:
    touch(tmp_path, "b.SVS", "a.tif", "c.ome.zarr/zarr.json", "d.mrxs", "d/Data0000.dat", "e.ndpi", "x/deep.svs")
    touch(tmp_path, "notes.txt", "._b.svs", "d.xml", "f.png/inside", "g.zarr")
    assert names(tmp_path) == ["a", "b", "c.ome", "d", "e"]


def test_folders_hold_slides_whatever_their_suffix(tmp_path: Path) -> None:
    slide, _ = small_slide(tmp_path, (600, 700))
    folder = tmp_path / "in"
    for name in ("a.qptiff", "b.btf", "c.tif", "d", "e.bigtiff", "._f"):
        touch(folder, name)
        (folder / name).write_bytes(slide.read_bytes())
    touch(folder, "g/.zattrs", "h.qptiff", "i.txt", "x/Data0000.dat")
    (folder / "j.txt").write_text("II* is what TIFFs begin with")
    assert names(folder) == ["a", "b", "c", "d", "e", "g", "h"]


def test_folders_tell_what_they_leave_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.dcm", "c.dcm", "d.vsi", "notes.txt", "e.xml")
    tifffile.imwrite(tmp_path / "f.lsm", np.zeros((8, 8), np.uint8))
    with pytest.warns(UserWarning, match="left out are") as caught:
        assert names(tmp_path) == ["a"]
    assert [str(one.message) for one in caught] == [
        f"{tmp_path}: left out are b.dcm, c.dcm, d.vsi and 1 more; name those to take, one file of each slide, "
        "or export slides as OME-TIFF and scans as NIfTI"
    ]


def test_an_ome_zarr_is_no_folder_of_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a.zarr/.zattrs", "a.zarr/.zgroup")
    (tmp_path / "a.zarr" / ".zattrs").write_text("{}")
    assert find_inputs([tmp_path / "a.zarr"])[0] == [Input(str(tmp_path / "a.zarr"), "a")]


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "p2/b.svs", "p1/c.svs", "p1/a.svs", "p1/a.xml", "p[1].svs")
    assert names(tmp_path / "*" / "*.svs") == ["a", "c", "b"]
    assert names(tmp_path / "**" / "*.svs") == ["a", "c", "b", "p[1]"]
    assert names(tmp_path / "p?") == ["a", "c", "b"]
    assert names(tmp_path / "p[1].svs") == ["p[1]"]
    monkeypatch.chdir(tmp_path)
    assert [one.path for one in find_inputs(["p1/*.svs"])[0]] == [
        os.path.join("p1", name) for name in ("a.svs", "c.svs")
    ]


def test_each_input_is_there_once_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "a.svs")
    assert names(tmp_path / "b.svs", tmp_path, tmp_path / "*.svs", f"{tmp_path}/./b.svs") == ["b", "a"]


def test_single_files_need_not_be_there(tmp_path: Path) -> None:
    assert names(tmp_path / "missing.svs", "s3://bucket/key/a.ome.tif") == ["missing", "a"]
    assert find_inputs(["s3://bucket/*.tif"])[0] == [Input("s3://bucket/*.tif", "*")]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("empty", r"empty: a folder without images, volumes or slides \(.*\.svs.*\); name one that has some"),
        ("*.svs", r"\*\.svs: no image or slide matches; check the pattern"),
    ],
)
def test_what_names_nothing_is_told(path: str, told: str, tmp_path: Path) -> None:
    touch(tmp_path, "empty/notes.txt", "good/a.svs")
    inputs, [error] = find_inputs([tmp_path / path, tmp_path / "good"])
    assert [one.name for one in inputs] == ["a"]
    with pytest.raises(InputError, match=told):
        raise error


# Manifests


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_manifest_as_spreadsheets_write_it(separator: str, end: str, encoding: str, tmp_path: Path) -> None:
    rows = [
        ["Name", " Path", "grade", "MPP"],
        ["", "slides/ü 1.svs", "3+4", "0.25"],
        ["second", "/data/b.svs", "", ""],
        ["", "", "", ""],
        ["", "s3://bucket/c.tif", "", " 0.5 "],
    ]
    path = tmp_path / "list.csv"
    path.write_bytes(end.join(separator.join(row) for row in rows).encode(encoding))
    inputs, errors = read_manifest(path)
    assert inputs == [
        Input(str(tmp_path / "slides" / "ü 1.svs"), "ü 1", 0.25),
        Input("/data/b.svs", "second"),
        Input("s3://bucket/c.tif", "c", 0.5),
    ]
    assert errors == []


def test_a_manifest_tells_more_of_what_paths_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    (tmp_path / "list.csv").write_text("path,mpp,name\nb.svs,0.5,other\n")
    inputs, _ = find_inputs([tmp_path], tmp_path / "list.csv")
    assert inputs == [Input(str(tmp_path / "a.svs"), "a"), Input(str(tmp_path / "b.svs"), "other", 0.5)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "has no column 'path' but nothing"),
        (b"file,mpp\na.svs,1\n", "has no column 'path' but file, mpp; name one so"),
        (b"path,mpp\n", "a manifest without rows"),
        (b"path\n\xff\xfe\n", "is no text in UTF-8"),
    ],
)
def test_bad_manifests(text: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(text)
    with pytest.raises(InputError, match=told) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert [str(error) for error in find_inputs([], path)[1]] == [str(caught.value)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"path,mpp\n,0.5\n", r"list\.csv: line 2 has no path"),
        (b"path,mpp\na.svs,0.5\nb.svs,fine\n", r"line 3: an mpp of 'fine' is no pixel size"),
        (b"path,mpp\na.svs,-1\n", "line 2: an mpp of '-1'"),
        (b"path,mpp\na.svs,nan\n", "line 2: an mpp of 'nan'"),
        (b"path;mpp\na.svs;0,25\n", "line 2: an mpp of '0,25' is no pixel size; give micrometres a pixel, as in 0.25"),
        (b"path,name\na.svs,../a\n", "'../a' is no name for outputs"),
        (b"path,name\na.svs,.a\n", "'.a' is no name for outputs"),
    ],
)
def test_a_bad_row_of_a_manifest_is_told_and_the_others_are_done(text: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(text + b"good.svs\n")
    inputs, [error] = read_manifest(path)
    assert inputs[-1].name == "good"
    assert str(error).startswith(f"{path}: ")
    with pytest.raises(InputError, match=told):
        raise error
    found, told_there = find_inputs([], path)
    assert (found, [str(one) for one in told_there]) == (inputs, [str(error)])


def test_a_file_may_be_in_a_manifest_twice(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("path,name,mpp\na.png,one,0.25\na.png,two,0.5\na.png,two,0.5\n")
    inputs, errors = find_inputs([str(tmp_path / "a.png")], tmp_path / "all.csv")
    assert ([(one.name, one.mpp) for one in inputs], errors) == ([("one", 0.25), ("two", 0.5)], [])


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"list\.csv: cannot be read, no such file"):
        read_manifest(tmp_path / "list.csv")


# Parts


@given(st.integers(0, 50), st.integers(1, 12))
def test_parts_are_disjoint_complete_and_even(count: int, num_parts: int) -> None:
    parts = [take_part(range(count), num_parts, part) for part in range(num_parts)]
    assert sorted(item for part in parts for item in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("num_parts", "part_id"), [(0, 0), (3, 3), (3, -1), (1, 1)])
def test_parts_that_are_not(num_parts: int, part_id: int) -> None:
    with pytest.raises(InputError, match=f"part {part_id} of {num_parts} is not possible; parts are numbered from 0"):
        take_part("abc", num_parts, part_id)


# States


def test_fingerprints_change_with_settings_and_files_but_not_with_folders(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"12")
    first = fingerprint({"budget": 4}, [path])
    assert first == fingerprint({"budget": 4}, [str(path)])
    assert first != fingerprint({"budget": 5}, [path])
    (tmp_path / "moved").mkdir()
    moved = path.rename(tmp_path / "moved" / "a.svs")
    assert fingerprint({"budget": 4}, [moved]) == first
    moved.write_bytes(b"123")
    assert fingerprint({"budget": 4}, [moved]) != first
    assert fingerprint({}, [tmp_path / "missing"]) != fingerprint({}, [tmp_path / "other"])
    assert fingerprint({}, ["s3://bucket/a"]) != fingerprint({}, ["s3://bucket/b"])


def test_states(tmp_path: Path) -> None:
    assert States.find(tmp_path) is None
    states = States.open(tmp_path)
    assert States.open(tmp_path) == States.find(tmp_path) == states
    states.finish("a.b", "x/a.b.svs", "key", {"patches": 3})
    states.fail("c", "c.svs", "key", "c.svs: is empty")
    assert list(states) == [
        {"name": "a.b", "state": "done", "input": "x/a.b.svs", "key": "key", "result": {"patches": 3}},
        {"name": "c", "state": "failed", "input": "c.svs", "key": "key", "reason": "c.svs: is empty"},
    ]
    assert states.done("a.b", "key") == {"patches": 3}
    for name, key in (("a.b", "other"), ("c", "key"), ("never", "key")):
        assert states.done(name, key) is None
    states.begin("a.b")
    states.begin("never")
    assert states.done("a.b", "key") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"state": "done"}', "\x00"])
def test_a_damaged_state_is_none(text: str, tmp_path: Path) -> None:
    states = States.open(tmp_path)
    states.finish("a", "a.svs", "key", {})
    assert json.loads(states.file("a").read_text())
    states.file("a").write_text(text)
    assert states.done("a", "key") is None
    assert list(states) == []


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".patchtree").touch()
    with pytest.raises(InputError, match=f"{tmp_path}: cannot be written to, file exists; choose another folder"):
        States.open(tmp_path)
    (tmp_path / ".patchtree").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=f"{tmp_path}: cannot be written to, it is read-only; choose another folder"):
        States.open(tmp_path)
