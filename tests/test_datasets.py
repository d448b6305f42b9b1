"""Data sets are found and split, and what is wrong with them is told in one line that names the file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from patchtree.datasets import DataSet, Pair, check_data, choose, find_data, split_data
from patchtree.errors import InputError
from patchtree.io.images import write_image, write_mask

IDS = np.array([[0, 0, 1], [2, 0, 1]], np.uint8)
NAMED = {"labels": {"background": 0, "vessel": 1, "tumour": 2}}


def put(
    root: Path, name: str, ids: np.ndarray = IDS, size: tuple[int, int] | None = None, suffix: str = ".png"
) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    write_image(root / "images" / f"{name}{suffix}", np.zeros(size or ids.shape, np.uint8))
    write_mask(root / "masks" / f"{name}.png", ids)


def describe(root: Path, values: object) -> None:
    (root / "dataset.json").write_text(values if isinstance(values, str) else json.dumps(values))


def test_folder_layout(tmp_path: Path) -> None:
    put(tmp_path, "b")
    put(tmp_path, "a", suffix=".tif")
    (tmp_path / "images" / ".DS_Store").write_text("")
    (tmp_path / "images" / "notes.txt").write_text("")
    dataset = find_data(tmp_path)
    assert [pair.name for pair in dataset.pairs] == ["a", "b"]
    assert dataset.labels == {"background": 0, "class 1": 1, "class 2": 2}
    assert dataset.ignore is None
    check_data(dataset)
    assert np.array_equal(dataset.pairs[0].read_mask(), IDS)
    assert dataset.pairs[0].image.suffix == ".tif"


def nnunet(root: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for case in ("x_01", "x_02"):
        for channel in range(2):
            write_image(root / "imagesTr" / f"{case}_{channel:04}.png", np.full(IDS.shape, channel, np.uint16))
        write_mask(root / "labelsTr" / f"{case}.png", np.where(IDS == 2, 3, IDS))


def test_nnunet_layout(tmp_path: Path) -> None:
    nnunet(tmp_path)
    describe(tmp_path, {"labels": {"ignore": 3, "tumour": 1, "background": 0}, "channel_names": {}})
    dataset = find_data(tmp_path)
    assert [pair.name for pair in dataset.pairs] == ["x_01", "x_02"]
    assert (list(dataset.labels.items()), dataset.ignore) == ([("background", 0), ("tumour", 1)], 3)
    check_data(dataset)
    image = dataset.pairs[0].read_image()
    assert image.shape == (2, 3, 2)
    assert image[0, 0].tolist() == [0, 1]
    for folder in ("images", "labels"):  # a test set alone
        (tmp_path / f"{folder}Tr").rename(tmp_path / f"{folder}Ts")
    assert [pair.name for pair in find_data(tmp_path).pairs] == ["x_01", "x_02"]


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("imagesTr/x_01_0000.png", "x_01_0001.png: channel _0000 of x_01 is missing"),
        ("imagesTr/x_02_0001.png", "x_02_0000.png: x_02 has 1 channels, others 2"),
        ("labelsTr/x_02.png", "x_02_0000.png: has no mask in labelsTr"),
    ],
)
def test_nnunet_files_missing(tmp_path: Path, gone: str, said: str) -> None:
    nnunet(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(InputError, match=said):
        find_data(tmp_path)


def test_channels_of_different_types(tmp_path: Path) -> None:
    nnunet(tmp_path)
    write_image(tmp_path / "imagesTr" / "x_01_0001.png", np.zeros(IDS.shape, np.uint8))
    describe(tmp_path, {"labels": {"background": 0, "tumour": 1, "ignore": 3}})
    with pytest.raises(InputError, match=r"x_01_0001.png: 3 x 2 px of uint8, but x_01_0000.png is"):
        find_data(tmp_path).pairs[0].read_image()


def test_layout_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_data(tmp_path / "nowhere")
    with pytest.raises(InputError, match="neither images/ nor imagesTr/"):
        find_data(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no masks/"):
        find_data(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match="images: has no images"):
        find_data(tmp_path)


def test_pairs_missing(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, "b")
    put(tmp_path, "c")
    (tmp_path / "masks" / "c.png").unlink()
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(InputError, match=r"images/b.png: has no mask in masks/ \(and 1 more\)"):
        find_data(tmp_path)
    for name in "bc":
        (tmp_path / "images" / f"{name}.png").unlink()
    write_mask(tmp_path / "masks" / "d.png", IDS)
    with pytest.raises(InputError, match=r"masks/d.png: has no image in images/; "):
        find_data(tmp_path)


def test_same_stem(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, "a", suffix=".tif")
    with pytest.raises(InputError, match=r"a.tif: has the same stem as a.png"):
        find_data(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("{", "cannot be read as JSON"),
        ([], "holds a JSON list"),
        ({}, "has no labels"),
        ({"labels": {"0": "background", "1": 1}}, "'0' has the id 'background'"),
        ({"labels": {"0": "background", "2": "tumour"}}, r"the ids \[0, 2\]; number"),
        ({"labels": {"background": 0, "all": [1, 2]}}, "'all' has the id"),
        ({"labels": {"background": 0, "tumour": 255}}, r"the ids \[0, 255\]; number"),
        ({"labels": {"background": 0}}, "number two or more"),
        ({"labels": {"background": 0, "tumour": 1, "ignore": 1}}, "an id of its own"),
        ({"labels": {"background": 0, "tumour": True}}, "'tumour' has the id True"),
    ],
)
def test_labels_damaged(tmp_path: Path, values: object, said: str) -> None:
    put(tmp_path, "a")
    describe(tmp_path, values)
    with pytest.raises(InputError, match=rf"dataset.json: .*{said}"):
        find_data(tmp_path)


@pytest.mark.parametrize("named", [False, True])
def test_black_and_white_masks_are_read_as_two_classes_and_it_is_said(tmp_path: Path, named: bool) -> None:
    put(tmp_path, "a", np.where(IDS > 0, 255, 0).astype(np.uint8))
    put(tmp_path, "b", np.zeros((4, 4), np.uint8))
    if named:
        describe(tmp_path, {"labels": {"background": 0, "tumour": 1}})
    with pytest.warns(UserWarning, match="255 is read as class 1, '(tumour|class 1)'"):
        dataset = find_data(tmp_path)
    assert np.array_equal(dataset.pairs[0].read_mask(), IDS > 0)
    check_data(dataset)


def test_255_is_left_alone_where_it_has_a_meaning(tmp_path: Path) -> None:
    put(tmp_path, "a", np.array([[0, 255]], np.uint8))
    put(tmp_path, "b", np.array([[0, 1]], np.uint8))
    describe(tmp_path, {"labels": {"background": 0, "tumour": 1, "ignore": 255}})
    dataset = find_data(tmp_path)
    assert dataset.pairs[0].read_mask().tolist() == [[0, 255]]
    check_data(dataset)


def test_many_classes_need_names(tmp_path: Path) -> None:
    put(tmp_path, "a", np.arange(40, dtype=np.uint8)[None])
    with pytest.raises(InputError, match=r"ids up to 39, more than 32 classes without names; name all in dataset.json"):
        find_data(tmp_path)


@pytest.mark.parametrize("ids", [[0, 1, 255], [0, 2], [0, 128, 255], [*range(30), 40]])
def test_ids_that_are_no_classes(tmp_path: Path, ids: list[int]) -> None:
    put(tmp_path, "a", np.array([ids], np.uint8))
    with pytest.raises(
        InputError, match=r"which are no classes 0, 1, 2, ...; renumber them .* name all in dataset.json"
    ):
        find_data(tmp_path)


def test_check_names_the_first_file_and_counts_the_others(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, "b", size=(2, 4))
    put(tmp_path, "c", np.array([[0, 7]], np.uint8))
    put(tmp_path, "d")
    (tmp_path / "images" / "d.png").write_bytes(b"")
    describe(tmp_path, NAMED)
    dataset = find_data(tmp_path)
    with pytest.raises(InputError, match=r"b.png: 3 x 2 px, but b.png has 4 x 2 px; .* \(and 2 more such problems\)"):
        check_data(dataset)
    with pytest.raises(InputError, match=r"masks/c.png: holds id 7, which no label has"):
        check_data(choose(dataset, ["a", "c"]))
    with pytest.raises(InputError, match=r"images/d.png: is empty"):
        check_data(choose(dataset, ["d"]))


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    put(tmp_path, "a", np.zeros((3, 3), np.uint8))
    describe(tmp_path, NAMED)
    with pytest.raises(InputError, match="every pixel of every mask is 'background'"):
        check_data(find_data(tmp_path))
    put(tmp_path, "a", np.full((3, 3), 9, np.uint8))
    describe(tmp_path, {"labels": {**NAMED["labels"], "ignore": 9}})
    with pytest.raises(InputError, match="every pixel of every mask is ignored"):
        check_data(find_data(tmp_path))


def test_absent_class_is_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "a", np.array([[0, 2]], np.uint8))
    describe(tmp_path, NAMED)
    with pytest.warns(UserWarning, match="no mask has a pixel of 'vessel'"):
        check_data(find_data(tmp_path))


def test_a_mask_that_changed_is_read_again(tmp_path: Path) -> None:
    put(tmp_path, "a")
    assert len(find_data(tmp_path).labels) == 3
    put(tmp_path, "a", np.zeros((9, 9), np.uint8) + np.eye(9, dtype=np.uint8))
    assert len(find_data(tmp_path).labels) == 2


def some(root: Path, names: str) -> DataSet:
    return DataSet(root, tuple(Pair(name, root / name, root / name) for name in names), {"background": 0, "tumour": 1})


def test_split_is_a_partition_that_depends_on_names_and_seed_alone(tmp_path: Path) -> None:
    dataset = some(tmp_path, "abcdefghij")
    train, val = split_data(dataset, share=0.3)
    assert sorted((*train.pairs, *val.pairs), key=lambda pair: pair.name) == list(dataset.pairs)
    assert len(val) == 3
    assert split_data(some(tmp_path, "jihgfedcba"), share=0.3)[1].pairs == val.pairs[::-1]
    assert len({split_data(dataset, seed=seed)[1].pairs for seed in range(20)}) > 1
    assert [len(part) for part in split_data(some(tmp_path, "ab"))] == [1, 1]


@pytest.mark.parametrize("rare", list("abcdefghij"))
def test_no_class_is_lost_to_validation(rare: str, tmp_path: Path) -> None:
    """A class that one mask has is trained on; one that two have is in both parts."""
    others = [name for name in "abcdefghij" if name != rare]
    for name in (rare, *others):
        put(tmp_path, name, np.array([[0, 0, 1], [2 if name == rare else 0, 0, 1]], np.uint8))
    train, val = split_data(find_data(tmp_path))
    assert rare in {pair.name for pair in train.pairs}
    assert len(val) == 2
    put(tmp_path, others[4])
    parts = [{pair.name for pair in part.pairs} for part in split_data(find_data(tmp_path))]
    assert [len(part & {rare, others[4]}) for part in parts] == [1, 1]


def test_split_by_file(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text('{"train": ["a"], "val": ["a"]}')
    train, val = split_data(some(tmp_path, "ab"))
    assert [pair.name for pair in (*train.pairs, *val.pairs)] == ["a", "a"]
    path.write_text('{"train": ["a", "z"], "val": ["b"]}')
    with pytest.raises(InputError, match=r"splits.json: names 'z', of which there is no image"):
        split_data(some(tmp_path, "ab"))
    path.write_text('{"train": ["a"]}')
    with pytest.raises(InputError, match=r"splits.json: has no names under 'val'"):
        split_data(some(tmp_path, "ab"))


def test_split_impossible(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one image cannot be split"):
        split_data(some(tmp_path, "a"))
    for share in (0.0, 0.9, 1.0):
        with pytest.raises(InputError, match="leaves nothing to train on"):
            split_data(some(tmp_path, "abc"), share=share)


def test_choose_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no image 'x'"):
        choose(some(tmp_path, "ab"), ["a", "x"])


@pytest.mark.parametrize("name", ["ocdc", "axon_sem"])
def test_real_sets_are_sound(shared_data: Path, name: str) -> None:
    dataset = find_data(shared_data / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_data(dataset)
    assert len(dataset) == 10
