"""The generated slide is a pyramid that readers agree on, mostly glass, and true to its mask."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from patchtree.io.slides import Slide, open_slide
from slide_files import small_slide


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small_slide(tmp_path_factory.mktemp("slide"), (2047, 2300))


def whole(slide: Slide, level: int) -> np.ndarray:
    return slide.read(level, 0, 0, *slide.levels[level].shape)


def test_levels_are_halves_of_each_other(paths: tuple[Path, Path]) -> None:
    with open_slide(paths[0]) as slide, open_slide(paths[1]) as truth:
        shapes = [level.shape for level in slide.levels]
        assert shapes == [level.shape for level in truth.levels] == [(2047, 2300), (1023, 1150), (511, 575), (255, 287)]
        assert slide.mpp == truth.mpp == (0.25, 0.25)
        for level in range(len(shapes) - 1):
            height, width = shapes[level + 1]
            fine, coarse = whole(slide, level)[: 2 * height, : 2 * width], whole(slide, level + 1)
            means = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
            assert abs(means.astype(int) - coarse).mean() < 1.5  # JPEG, twice
            assert np.percentile(abs(cv2.blur(means, (8, 8)).astype(int) - cv2.blur(coarse, (8, 8))), 99.9) <= 6


def test_mostly_glass_and_stain_where_the_truth_is(paths: tuple[Path, Path]) -> None:
    with open_slide(paths[0]) as slide, open_slide(paths[1]) as truth:
        pixels, ids = whole(slide, 1).astype(int), whole(truth, 1)[..., 0]
    assert set(np.unique(ids)) == {0, 1}
    glass = abs(pixels - [243, 241, 244]).max(-1) <= 9
    assert 0.8 < glass.mean() < 0.9
    brown = (pixels[..., 0] - pixels[..., 2] > 25) & ~glass
    assert brown[ids == 1].mean() > 0.5
    assert brown[ids == 0].mean() < 0.03
    assert 0.3 < ids.mean() / (1 - glass.mean()) < 0.5


def test_coarse_truth_is_that_of_its_centres(paths: tuple[Path, Path]) -> None:
    with open_slide(paths[1]) as truth:
        fine, coarse = whole(truth, 0)[:2046, :2300, 0], whole(truth, 1)[..., 0]
    shares = fine.reshape(1023, 2, 1150, 2).mean((1, 3))
    decided = shares != 0.5
    assert ((shares > 0.5) == coarse)[decided].mean() > 0.9999


def test_no_seams_between_tiles(paths: tuple[Path, Path]) -> None:
    with open_slide(paths[0]) as slide:
        pixels = whole(slide, 0).astype(int)
    steps = abs(np.diff(pixels, axis=1)).mean((0, 2))
    borders = np.arange(255, len(steps), 256)
    beside = np.concatenate([borders - 16, borders + 16])  # JPEG's blocks have borders, too
    assert steps[borders].mean() < 1.2 * steps[beside].mean()


def test_other_readers_see_the_levels(paths: tuple[Path, Path]) -> None:
    with tifffile.TiffFile(paths[0]) as tif:
        assert [page.is_reduced for page in tif.pages] == [False, True, True, True]
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(paths[0]) as slide:
        assert slide.level_dimensions == ((2300, 2047), (1150, 1023), (575, 511), (287, 255))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)


def test_a_seed_gives_the_same_files_and_another_does_not(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (3, 3, 4), strict=True):
        folder.mkdir()
        small_slide(folder, 1100, seed=seed, mpp=None)
    for name in ("slide.tif", "truth.tif"):
        first, same, other = ((folder / name).read_bytes() for folder in folders)
        assert first == same != other
    assert open_slide(folders[0] / "slide.tif").mpp is None
