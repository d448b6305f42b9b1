from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from patchtree import InputError
from patchtree.datasets import find_data
from patchtree.io.annotations import Annotations, Polygon, write_annotations
from patchtree.io.images import write_image, write_mask
from patchtree.slide_sets import PAIP_LABELS, find_slides, open_labels
from slide_files import slide_set

SHAPE = (700, 901)
LABELS = {"background": 0, "tumour": 1, "stroma": 2}


def write_levels(path: Path, levels: list[NDArray[Any]]) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for at, level in enumerate(levels):
            writer.write(level, tile=(64, 64), compression="zlib", subfiletype=int(at > 0), metadata=None)
    return path


def blocks(shape: tuple[int, int] = SHAPE, classes: int = 3) -> NDArray[np.uint8]:
    ids = np.random.default_rng(0).integers(0, classes, (shape[0] // 50 + 1, shape[1] // 50 + 1), np.uint8)
    return ids.repeat(50, 0).repeat(50, 1)[: shape[0], : shape[1]]


def ring(y0: float, x0: float, y1: float, x1: float) -> NDArray[np.float64]:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("up", [False, True])
def test_a_mask_gives_the_ids_of_a_box(tmp_path: Path, factor: int, up: bool) -> None:
    ids = blocks()[::factor, ::factor]
    if not up and factor > 1:
        ids = ids[: SHAPE[0] // factor, : SHAPE[1] // factor]
    labels = open_labels(write_levels(tmp_path / "a.tif", [ids, ids[::2, ::2]]), SHAPE, LABELS)
    dense = ids.repeat(factor, 0).repeat(factor, 1)
    dense = np.pad(dense, [(0, factor)] * 2, "edge")[: SHAPE[0], : SHAPE[1]]
    for box in ((0, 0, *SHAPE), (13, 100, 78, 333), (690, 899, 700, 901)):
        np.testing.assert_array_equal(labels.ids(box), dense[box[0] : box[2], box[1] : box[3]])
    assert bool(labels.notes) == (factor > 1)
    labels.close()


def test_places_are_those_of_the_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = blocks()
    path = write_levels(tmp_path / "a.tif", [ids, ids[::2, ::2], ids[::4, ::4]])
    monkeypatch.setattr("patchtree.io.masks._PIXELS", 1)
    for most, level in ((1 << 24, 1), (SHAPE[0] * SHAPE[1] - 1, 2), (40_000, 4), (2_000, 20)):
        monkeypatch.setattr("patchtree.slide_sets._PIXELS", most)
        labels = open_labels(path, SHAPE, LABELS)
        seen, scale = labels.coarse()
        assert seen.size <= most * 1.1
        assert scale == (level, level)
        rows, columns = (np.arange(length) * level for length in seen.shape)
        np.testing.assert_array_equal(seen, ids[rows][:, columns])
        labels.close()


def test_coarse_levels_may_be_means_but_level_0_holds_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = 2 * blocks(classes=2)
    means = np.full((350, 450), 9, np.uint8)
    means[:, 200:] = 2
    monkeypatch.setattr("patchtree.slide_sets._PIXELS", means.size)
    labels = open_labels(write_levels(tmp_path / "a.tif", [ids, means]), SHAPE, LABELS)
    assert set(np.unique(labels.coarse()[0])) == {0, 2}
    labels.close()
    wrong = ids.copy()
    wrong[:9] = 9
    labels = open_labels(write_levels(tmp_path / "b.tif", [wrong, means]), SHAPE, LABELS)
    with pytest.raises(InputError, match=r"b.tif: holds id 9, which no label has"):
        labels.coarse()
    with pytest.raises(InputError, match=r"b.tif: holds id 9, which no label has"):
        labels.ids((5, 0, 20, 20))
    assert labels.ids((9, 0, 20, 20)).shape == (11, 20)
    labels.close()


def test_ids_to_ignore_and_white_masks(tmp_path: Path) -> None:
    ids = blocks(classes=2)
    labels = open_labels(write_levels(tmp_path / "a.tif", [255 * ids]), SHAPE, {"background": 0, "tumour": 1})
    np.testing.assert_array_equal(labels.ids((0, 0, *SHAPE)), ids)
    assert "255 is read as class 1" in labels.notes[0]
    labels.close()
    labels = open_labels(write_levels(tmp_path / "b.tif", [255 * ids]), SHAPE, {"background": 0, "tumour": 1}, 255)
    np.testing.assert_array_equal(labels.ids((0, 0, *SHAPE)), 255 * ids)
    labels.close()
    ids[0, 0] = 7
    labels = open_labels(
        write_levels(tmp_path / "c.tif", [255 * blocks(classes=2) + ids * (ids == 7)]), SHAPE, PAIP_LABELS
    )
    with pytest.raises(InputError, match=r"c.tif: holds id \d+ beside 0 and 255"):
        labels.ids((0, 0, 9, 9))
    labels.close()


def test_annotations_give_the_ids_of_a_box(tmp_path: Path) -> None:
    polygons = (
        Polygon("tumour", (ring(100, 50, 500, 700), ring(200, 100, 300, 200))),
        Polygon("stroma", (ring(400, 600, 650, 1200),)),
        Polygon("ignore", (ring(0, 0, 20, 20),)),
    )
    write_annotations(tmp_path / "a.geojson", Annotations(polygons))
    labels = open_labels(tmp_path / "a.geojson", SHAPE, LABELS, 255)
    dense = np.zeros(SHAPE, np.uint8)
    dense[100:500, 50:700], dense[200:300, 100:200], dense[400:650, 600:], dense[:20, :20] = 1, 0, 2, 255
    for box in ((0, 0, *SHAPE), (150, 90, 310, 210), (450, 650, 700, 901)):
        np.testing.assert_array_equal(labels.ids(box), dense[box[0] : box[2], box[1] : box[3]])
    assert labels.notes == ()


def test_the_smallest_polygon_is_seen_from_afar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchtree.slide_sets._PIXELS", 40_000)
    polygons = (Polygon("stroma", (ring(0, 0, 300, 300),)), Polygon("tumour", (ring(333.1, 601.2, 333.9, 601.7),)))
    write_annotations(tmp_path / "a.geojson", Annotations(polygons))
    labels = open_labels(tmp_path / "a.geojson", SHAPE, LABELS)
    seen, scale = labels.coarse()
    assert seen.size < 40_000
    [place] = np.argwhere(seen == 1)
    assert (np.abs(place * scale - (333, 601)) < scale).all()
    assert np.count_nonzero(seen == 2) * np.prod(scale) == pytest.approx(90_000, rel=0.05)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slide_set(tmp_path_factory.mktemp("made") / "data", size=(600, 700))


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def test_slides_are_found_by_what_they_are(data: Path) -> None:
    (data / "images" / "a.tif").rename(data / "images" / "a.svs")
    dataset = find_data(data)
    assert dataset.slides
    assert dataset.labels == {"background": 0, "stained": 1}
    assert [(pair.name, pair.image.name, pair.mask.name) for pair in dataset.pairs] == [
        ("a", "a.svs", "a.tif"),
        ("b", "b.tif", "b.tif"),
    ]
    assert dataset.pairs[0].look() == ((600, 700, 3), "uint8")


def test_annotations_beside_masks(data: Path) -> None:
    (data / "masks" / "a.tif").unlink()
    (data / "annotations").mkdir()
    write_annotations(data / "annotations" / "a.json", Annotations((Polygon("stained", (ring(0, 0, 9, 9),)),)))
    assert [pair.mask.name for pair in find_data(data).pairs] == ["a.json", "b.tif"]


def test_annotations_name_the_classes(data: Path) -> None:
    shutil.rmtree(data / "masks")
    (data / "dataset.json").unlink()
    (data / "annotations").mkdir()
    for name, label in (("a", "tumour"), ("b", "stroma")):
        write_annotations(data / "annotations" / f"{name}.json", Annotations((Polygon(label, (ring(0, 0, 9, 9),)),)))
    assert find_data(data).labels == {"background": 0, "stroma": 1, "tumour": 2}


def test_the_layout_of_paip(made: Path, tmp_path: Path) -> None:
    for at, name in enumerate("ab"):
        folder = tmp_path / f"part{at}"
        folder.mkdir()
        shutil.copy(made / "images" / f"{name}.tif", folder / f"01_{name}.svs")
        shutil.copy(made / "masks" / f"{name}.tif", folder / f"01_{name}_viable.tif")
    dataset = find_data(tmp_path)
    assert dataset.labels == PAIP_LABELS
    assert [pair.name for pair in dataset.pairs] == ["01_a", "01_b"]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"else": 0, "viable": 1}}))
    assert find_data(tmp_path).labels == {"else": 0, "viable": 1}


def mixed(data: Path) -> None:
    write_image(data / "images" / "c.png", np.zeros((8, 8), np.uint8))


def no_labels(data: Path) -> None:
    (data / "masks" / "a.tif").unlink()


def no_slide(data: Path) -> None:
    (data / "images" / "a.tif").unlink()


def empty(data: Path) -> None:
    (data / "images" / "c.tif").touch()


def cut_short(data: Path) -> None:
    whole = (data / "images" / "a.tif").read_bytes()
    (data / "images" / "c.tif").write_bytes(whole[: len(whole) // 2])


def no_slide_for_annotations(data: Path) -> None:
    (data / "annotations").mkdir()
    (data / "annotations" / "c.xml").touch()


def both(data: Path) -> None:
    (data / "annotations").mkdir()
    (data / "annotations" / "a.xml").touch()


def a_picture_for_a_mask(data: Path) -> None:
    write_mask(data / "masks" / "a.png", np.zeros((8, 8), np.uint8))


def no_names(data: Path) -> None:
    (data / "dataset.json").unlink()


def no_polygons(data: Path) -> None:
    no_names(data)
    shutil.rmtree(data / "masks")
    (data / "annotations").mkdir()
    for name in "ab":
        write_annotations(data / "annotations" / f"{name}.json", Annotations(()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (mixed, r"images/c.png: is an image, but a.tif beside it is a slide; keep"),
        (empty, r"images/c.tif: is empty \(0 bytes\)"),
        (cut_short, r"images/c.tif: TIFF .*cut short"),
        (no_labels, r"images/a.tif: has no mask in masks/ and no file in annotations/"),
        (no_slide, r"masks/a.tif: has no slide in images/"),
        (no_slide_for_annotations, r"annotations/c.xml: has no slide in images/"),
        (both, r"annotations/a.xml: \S*masks/a.tif has the labels of the same slide"),
        (a_picture_for_a_mask, r"masks/a.png: is none of .tif, .tiff"),
        (no_names, r"masks/a.tif: what its ids mean is not known; name the classes in dataset.json"),
        (no_polygons, r"annotations: no annotation has an area"),
    ],
)
def test_bad_data(spoil: Any, message: str, data: Path) -> None:
    spoil(data)
    with pytest.raises(InputError, match=message):
        find_data(data)


def test_suffixes_of_slides_do_not_matter(data: Path) -> None:
    (data / "images" / "a.tif").rename(data / "images" / "a.bigtiff")
    (data / "images" / "b.tif").rename(data / "images" / "b")
    (data / "images" / "notes.txt").touch()
    assert [one.name for one in find_slides(data)] == ["a", "b"]


def test_a_tiled_tiff_beside_pyramids_is_a_slide(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchtree.io.slides._SINGLE", 1)
    for folder, options in (("images", {"photometric": "rgb"}), ("masks", {})):
        pixels = tifffile.imread(data / folder / "b.tif")
        known: dict[str, Any] = {"resolution": (4e4, 4e4), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(data / folder / "b.tif", pixels, tile=(64, 64), metadata=None, **known, **options)
    assert [one.name for one in find_slides(data)] == ["a", "b"]
    # Alone, such are images.
    for folder in ("images", "masks"):
        (data / folder / "a.tif").unlink()
    assert find_slides(data) == ()


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "a.tif", [blocks((700, 900))])
    with pytest.raises(InputError, match=r"a.tif: a mask of 900 x 700 px, but the slide has 901 x 700 px; export"):
        open_labels(path, SHAPE, LABELS)
    with pytest.raises(InputError, match=r"a.tif: a mask of 900 x 700 px"):
        open_labels(path, (1400, 2700), LABELS)
    floats = tmp_path / "b.tif"
    tifffile.imwrite(floats, np.zeros(SHAPE, np.float32), tile=(64, 64))
    with pytest.raises(InputError, match=r"b.tif: a mask must hold class ids"):
        open_labels(floats, SHAPE, LABELS).ids((0, 0, 9, 9))
    drawn = tmp_path / "a.geojson"
    write_annotations(drawn, Annotations((Polygon("nerve", (ring(0, 0, 9, 9),)),)))
    with pytest.raises(InputError, match=r"a.geojson: class 'nerve' is not among the labels"):
        open_labels(drawn, SHAPE, LABELS)
    write_annotations(drawn, Annotations((Polygon("tumour", (ring(800, 0, 900, 9),)),)))
    with pytest.raises(InputError, match=r"a.geojson: no polygon lies on the slide"):
        open_labels(drawn, SHAPE, LABELS)
