from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile

from patchtree import InputError, read_mask
from patchtree.datasets import DataSet, find_data
from patchtree.io.annotations import Annotations, Polygon, write_annotations
from patchtree.io.slides import open_slide
from patchtree.slide_sources import SlideSource, check_slides, look_at, median_mpp, survey_slides
from slide_files import slide_set, small_slide


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slide_set(tmp_path_factory.mktemp("made") / "data", tissue=0.2)


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def test_what_is_known_of_a_slide(made: Path) -> None:
    dataset = find_data(made)
    source = look_at(dataset)[0]
    with open_slide(dataset.pairs[0].image) as slide:
        image = slide.read(0, 0, 0, *slide.shape)
    ids = tifffile.imread(dataset.pairs[0].mask, level=0)
    assert (source.name, source.shape, source.channels, source.dtype) == ("a", (1100, 1300), 3, "uint8")
    assert source.mpp == pytest.approx((0.25, 0.25))
    np.testing.assert_allclose(source.pixels, np.bincount(ids.reshape(-1)), rtol=0.03)
    for label, places in enumerate(source.places):
        assert len(places)
        assert (ids[tuple(places.T)] == label).mean() > 0.97
    dark = image.min(axis=2) < 225
    cells = np.zeros(source.shape, bool)
    for row, column in np.argwhere(source.tissue):
        cells[row * source.side : (row + 1) * source.side, column * source.side : (column + 1) * source.side] = True
    assert (cells[dark]).mean() > 0.99
    assert source.area == cells.sum()
    assert source.tissue_in((300, 400, 900, 1000)) == cells[300:900, 400:1000].sum()
    assert np.abs(np.array(source.mean) - image[cells].mean(axis=0) / 255).max() < 0.05


def test_slides_are_looked_at_once_until_they_change(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = find_data(data)
    first = look_at(dataset)
    assert all(one is two for one, two in zip(look_at(dataset), first, strict=True))
    mask = dataset.pairs[0].mask
    tifffile.imwrite(mask, np.zeros((1100, 1300), np.uint8), tile=(256, 256))
    assert look_at(dataset)[0].pixels.tolist() == [1100 * 1300, 0]


def test_a_survey_counts_pixels(made: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problems, pixels = survey_slides(find_data(made))
    assert problems == []
    assert list(pixels) == ["background", "stained"]
    assert sum(pixels.values()) == pytest.approx(2 * 1100 * 1300, rel=0.02)


def sources(data: Path) -> tuple[DataSet, tuple[SlideSource, ...]]:
    dataset = find_data(data)
    return dataset, look_at(dataset)


def test_pixel_sizes_that_differ_are_told(data: Path, tmp_path: Path) -> None:
    other, _ = small_slide(tmp_path, (1100, 1300), mpp=0.5)
    shutil.copy(other, data / "images" / "b.tif")
    dataset, looked = sources(data)
    with pytest.warns(UserWarning, match=r"data: pixels are 0.25 µm in a, 0.5 µm in b; things differ in size"):
        check_slides(dataset)
    assert median_mpp(looked) == pytest.approx(0.375)


def test_a_slide_without_pixel_size_is_told(data: Path, tmp_path: Path) -> None:
    other, _ = small_slide(tmp_path, (1100, 1300), mpp=None)
    shutil.copy(other, data / "images" / "b.tif")
    dataset, looked = sources(data)
    with pytest.warns(UserWarning, match=r"data: b has no pixel size, as other slides have"):
        check_slides(dataset)
    assert median_mpp(looked) == pytest.approx(0.25)
    assert median_mpp(looked[1:]) is None


def test_smaller_and_white_masks_are_told(data: Path) -> None:
    mask = data / "masks" / "b.tif"
    ids = read_mask(_plain(mask))[::2, ::2]
    tifffile.imwrite(mask, 255 * ids, tile=(256, 256))
    dataset = find_data(data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_slides(dataset)
    assert [str(warning.message).rpartition("/")[2] for warning in told] == [
        "b.tif: the mask is 2 times smaller than the slide; each of its pixels stands for as many",
        "b.tif: the mask holds 0 and 255; 255 is read as class 1",
    ]
    assert look_at(dataset)[1].pixels[1] == pytest.approx(np.count_nonzero(ids) * 4)


def _plain(mask: Path) -> Path:
    out = mask.with_name("plain.tif")
    tifffile.imwrite(out, tifffile.imread(mask, level=0))
    return Path(shutil.move(out, mask.parents[1] / "plain.tif"))


def test_what_cannot_be_trained_on(data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no mask has a pixel of 'other'"):
        check_slides(DataSet(data, find_data(data).pairs, {"background": 0, "stained": 1, "other": 2}))
    empty = np.zeros((1100, 1300), np.uint8)
    for name in "ab":
        tifffile.imwrite(data / "masks" / f"{name}.tif", empty, tile=(256, 256))
    with pytest.raises(InputError, match=r"data: all that is seen of the labels is 'background'; there is nothing"):
        check_slides(find_data(data))
    tifffile.imwrite(data / "images" / "a.tif", np.full((1100, 1300), 9, np.uint16), tile=(256, 256))
    tifffile.imwrite(data / "masks" / "a.tif", np.eye(1100, 1300, dtype=np.uint8), tile=(256, 256))
    (data / "images" / "a.tif").rename(data / "images" / "a.svs")
    with pytest.raises(InputError, match=r"a.svs: has no tissue that is seen"):
        check_slides(find_data(data))
    spots = np.random.default_rng(0).integers(0, 60000, (11, 13), np.uint16).repeat(100, 0).repeat(100, 1)
    tifffile.imwrite(data / "images" / "a.svs", spots, tile=(256, 256))
    with (
        pytest.warns(UserWarning, match="a has no pixel size"),
        pytest.raises(InputError, match=r"b.tif: has 3 channels of uint8, a.svs 1 channel of uint16"),
    ):
        check_slides(find_data(data))


def drawn_set(data: Path, names: str, *polygons: Polygon, **more: object) -> Path:
    """Give slides annotations in place of masks, and dataset.json more keys."""
    (data / "annotations").mkdir(exist_ok=True)
    for name in names:
        (data / "masks" / f"{name}.tif").unlink()
        write_annotations(data / "annotations" / f"{name}.json", Annotations(polygons))
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "stained": 1}, **more}))
    return data


def square(label: str, low: int, high: int) -> Polygon:
    return Polygon(label, (np.array([(low, low), (high, low), (high, high), (low, high)], float),))


def test_names_in_annotations_may_be_others(data: Path) -> None:
    polygons = square("_0", 0, 400), square("_2", 100, 200), square("_1", 600, 700)
    names = {"_0": "stained", "_1": "stained", "_2": "background"}
    dataset = find_data(drawn_set(data, "a", *polygons, annotations=names))
    assert check_slides(dataset) is None
    assert look_at(dataset)[0].pixels[1] == pytest.approx(400**2, rel=0.05)


def test_the_order_of_drawing_may_be_told(data: Path) -> None:
    polygons = square("background", 100, 200), square("stained", 0, 400)
    dataset = find_data(drawn_set(data, "a", *polygons, draw_order=["stained", "background"]))
    assert look_at(dataset)[0].pixels[1] == pytest.approx(400**2 - 100**2, rel=0.05)
    (data / "dataset.json").write_text('{"labels": {"background": 0, "stained": 1}}')
    assert look_at(find_data(data))[0].pixels[1] == pytest.approx(400**2, rel=0.05)


def test_what_qupath_ignores_or_leaves_unclassified(data: Path) -> None:
    polygons = square("Unclassified", 0, 1000), square("stained", 0, 400), square("Ignore*", 300, 500)
    dataset = find_data(drawn_set(data, "ab", *polygons, square("Region*", 0, 900)))
    with pytest.warns(UserWarning, match=r"/a.json and 1 more: annotations without a class are left out, 4 in all$"):
        _, pixels = survey_slides(dataset)
    assert pixels["stained"] == pytest.approx(2 * (400**2 - 100**2), rel=0.05)
    assert pixels["background"] == pytest.approx(2 * (1100 * 1300 - 400**2 - 200**2 + 100**2), rel=0.05)
    source = look_at(dataset)[0]
    assert source.drawing is not None
    assert (source.drawing.ids((350, 350, 360, 360)) == source.ignore).all()


def test_classes_are_not_what_tells_none(data: Path) -> None:
    drawn_set(data, "ab", square("Tumor", 0, 400), square("Ignore*", 300, 500), square("Unclassified", 0, 500))
    (data / "dataset.json").unlink()
    assert find_data(data).labels == {"background": 0, "Tumor": 1}
    for name in "ab":
        write_annotations(data / "annotations" / f"{name}.json", Annotations((square("Unclassified", 0, 500),)))
    with pytest.raises(InputError, match=r"annotations: no annotation tells a class; draw polygons with classes"):
        find_data(data)


GROUPS = """<ASAP_Annotations><Annotations><Annotation Type="Polygon" PartOfGroup="child"><Coordinates>
<Coordinate Order="0" X="0" Y="0"/><Coordinate Order="1" X="400" Y="0"/><Coordinate Order="2" X="400" Y="400"/>
<Coordinate Order="3" X="0" Y="400"/></Coordinates></Annotation></Annotations><AnnotationGroups>
<Group Name="child" PartOfGroup="middle"/><Group Name="middle" PartOfGroup="stained"/>
<Group Name="stained" PartOfGroup="None"/></AnnotationGroups></ASAP_Annotations>"""


def test_groups_in_groups(data: Path) -> None:
    """They count as the nearest group around them that is a class."""
    for name in "ab":
        (data / "masks" / f"{name}.tif").unlink()
        (data / "annotations").mkdir(exist_ok=True)
        (data / "annotations" / f"{name}.xml").write_text(GROUPS)
    assert look_at(find_data(data))[0].pixels[1] == pytest.approx(400**2, rel=0.05)
    (data / "dataset.json").write_text('{"labels": {"background": 0, "stained": 1, "middle": 2}}')
    assert look_at(find_data(data))[0].pixels[2] == pytest.approx(400**2, rel=0.05)
    (data / "dataset.json").unlink()
    assert find_data(data).labels == {"background": 0, "stained": 1}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"annotations": {"_0": "tumor"}},
            r"have 'tumor', which is none of the labels \(background, stained, ignore\)",
        ),
        ({"annotations": ["_0"]}, "annotations and draw_order are none; write them as in"),
        ({"draw_order": {"stained": 1}}, "annotations and draw_order are none; write them as in"),
        ({"draw_order": ["stained", "stained"]}, "draw_order has a label twice"),
        ({"draw_order": [["stained"]]}, "which is none of the labels"),
    ],
)
def test_a_legend_that_is_wrong(data: Path, more: dict[str, object], message: str) -> None:
    drawn_set(data, "a", square("stained", 0, 9), **more)
    with pytest.raises(InputError, match=rf"dataset.json: .*{message}"):
        find_data(data)


def test_drawings_are_kept(data: Path) -> None:
    (data / "masks" / "a.tif").unlink()
    (data / "annotations").mkdir()
    ring = np.array([(100, 200), (500, 200), (500, 400), (100, 400)], float)
    write_annotations(data / "annotations" / "a.json", Annotations((Polygon("stained", (ring,)),)))
    source = look_at(find_data(data))[0]
    assert source.drawing is not None
    assert source.pixels[1] == pytest.approx(400 * 200, rel=0.05)
