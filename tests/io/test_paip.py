from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from patchtree import InputError, Tree
from patchtree.io.annotations import read_annotations
from patchtree.io.coverage import count_slide_labels, rasterise
from patchtree.io.paip import find_cases, holds_cases
from patchtree.io.slides import open_slide

SHAPE = (700, 900)
LAYER = """<Annotation Id="{id}" Name="{name}" LineColor="{colour}"><Regions>{regions}</Regions></Annotation>"""
REGION = """<Region Id="1" Type="0" NegativeROA="{hole}"><Vertices>{vertices}</Vertices></Region>"""


def region(left: int, top: int, right: int, bottom: int, hole: int = 0) -> str:
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return REGION.format(hole=hole, vertices="".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners))


def write_case(folder: Path, name: str, suffix: str = ".svs") -> None:
    """A case as the challenge gives it out: slide, polygons and masks."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, viable = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    whole[50:650, 100:800] = 1
    viable[100:400, 150:500] = 1
    viable[200:250, 300:350] = 0
    picture = np.where(whole[..., None], np.uint8(200), np.uint8(255)).repeat(3, -1)
    tifffile.imwrite(folder / f"{name}{suffix}", picture, tile=(256, 256), photometric="rgb", compression="jpeg")
    for kind, mask in (("viable", viable), ("whole", whole)):
        tifffile.imwrite(folder / f"{name}_{kind}.tif", mask, tile=(256, 256), compression="lzw")
    layers = [
        LAYER.format(id=1, name="whole", colour=65535, regions=region(100, 50, 800, 650)),
        LAYER.format(
            id=2, name="viable", colour=255, regions=region(150, 100, 500, 400) + region(300, 200, 350, 250, hole=1)
        ),
    ]
    (folder / f"{name}.xml").write_text(f'<Annotations MicronsPerPixel="0.5">{"".join(layers)}</Annotations>')


def test_cases_are_found_in_folders(tmp_path: Path) -> None:
    write_case(tmp_path / "Training_phase_1_001", "01_01_0083")
    write_case(tmp_path / "Training_phase_1_002", "01_01_0085", ".SVS")
    (tmp_path / "Training_phase_1_002" / "._01_01_0085.svs").touch()
    (tmp_path / "Training_phase_1_002" / "01_01_0085.xml").unlink()
    one, two = find_cases(tmp_path)
    assert (one.name, one.slide.name, one.viable.name) == ("01_01_0083", "01_01_0083.svs", "01_01_0083_viable.tif")
    assert one.whole is not None
    assert one.annotations is not None
    assert (two.name, two.slide.suffix, two.annotations) == ("01_01_0085", ".SVS", None)


def test_masks_and_polygons_of_a_case_agree(tmp_path: Path) -> None:
    write_case(tmp_path, "01_01_0083")
    (case,) = find_cases(tmp_path)
    assert case.whole is not None
    assert case.annotations is not None
    tree = Tree.uniform(SHAPE, 16, level=2)
    with open_slide(case.slide) as slide, open_slide(case.viable) as viable, open_slide(case.whole) as whole:
        assert slide.shape == viable.shape == whole.shape == tree.shape
        counts = count_slide_labels(viable, tree, 2)
        around = count_slide_labels(whole, tree, 2)
    annotations = read_annotations(case.annotations)
    drawn = rasterise(annotations, {"background": 0, "whole": 0, "viable": 1}, tree)
    np.testing.assert_array_equal(drawn, counts)
    assert counts[..., 1].sum() == 300 * 350 - 50 * 50
    both = rasterise(annotations, {"background": 0, "whole": 1, "viable": 1}, tree)
    np.testing.assert_array_equal(both, around)


def test_names_are_those_of_one_case(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("01.SVS", "01_viable.TIF"):
            (tmp_path / folder / name).touch()
    assert holds_cases(tmp_path)
    with pytest.raises(InputError, match=r"01.SVS: has the same name as .*01.SVS; rename one of the two"):
        find_cases(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_cases(tmp_path / "none")
    with pytest.raises(InputError, match=r"no CASE.svs with CASE_viable.tif in it"):
        find_cases(tmp_path)
    write_case(tmp_path, "a")
    (tmp_path / "a_viable.tif").rename(tmp_path / "b_viable.tif")
    with pytest.raises(InputError, match=r"a.svs: has no mask a_viable.tif beside it"):
        find_cases(tmp_path)
    (tmp_path / "a.svs").unlink()
    with pytest.raises(InputError, match=r"b_viable.tif: has no slide b.svs beside it"):
        find_cases(tmp_path)
