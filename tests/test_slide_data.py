from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray

from patchtree import Patcher, count_labels, cut
from patchtree import slide_data as module
from patchtree.budget import choose_density
from patchtree.datasets import DataSet, choose, find_data
from patchtree.foveate import Window
from patchtree.io.slides import Slide, open_slide
from patchtree.samples import Sample
from patchtree.slide_data import (
    Handles,
    SlideModule,
    SlideParts,
    SlideWindows,
    choose_side,
    density_of,
    fixed_windows,
    read_window,
)
from patchtree.slide_inference import _View
from patchtree.slide_sources import SlideSource, look_at
from patchtree.slides.halved import Halved
from patchtree.slides.metered import Metered
from patchtree.turns import turn
from slide_files import slide_set

PATCHER = Patcher(8, 1, detail="residual")
DENSITY = 1 / 500
WINDOW = 384


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return find_data(slide_set(tmp_path_factory.mktemp("made") / "data", "abc", tissue=0.2))


@pytest.fixture(scope="module")
def sources(dataset: DataSet) -> tuple[SlideSource, ...]:
    return look_at(dataset)


@pytest.fixture
def windows(sources: tuple[SlideSource, ...]) -> Iterator[SlideWindows]:
    made = SlideWindows(sources, PATCHER, WINDOW, DENSITY)
    yield made
    made.handles.close()


def dense(source: SlideSource) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    with open_slide(source.pair.image) as slide:
        return slide.read(0, 0, 0, *slide.shape), tifffile.imread(source.pair.mask, level=0)


def same(one: Sample, other: Sample) -> bool:
    return (
        one.patches.tree == other.patches.tree
        and np.array_equal(one.patches.pixels, other.patches.pixels)
        and np.array_equal(one.counts, other.counts)
    )


@pytest.mark.parametrize("how", [(False, 0), (True, 0), (False, 1), (True, 3)])
def test_a_window_holds_the_pixels_and_labels_of_the_image(
    how: tuple[bool, int], sources: tuple[SlideSource, ...]
) -> None:
    source = sources[0]
    y, x = (source.places[1][0] - 100).clip(0, np.array(source.shape) - WINDOW).tolist()
    box = y, x, y + WINDOW, x + WINDOW
    with Handles() as handles:
        sample = read_window(source, box, PATCHER, DENSITY, handles, *how)
    image, ids = dense(source)
    outside = np.full_like(ids, 255)
    outside[y : y + WINDOW, x : x + WINDOW] = ids[y : y + WINDOW, x : x + WINDOW]
    tree = sample.patches.tree
    np.testing.assert_array_equal(sample.counts, count_labels(turn(outside, *how), tree, 2, ignore=255))
    assert sample.counts.sum() == WINDOW**2
    assert sample.counts[..., 1].any()
    wanted = cut(turn(image, *how), tree)
    np.testing.assert_array_equal(sample.patches.pixels[tree.level == 0], wanted[tree.level == 0])
    assert np.abs(sample.patches.pixels.astype(int) - wanted).mean() < 3
    assert (sample.patches.origin, sample.patches.extent) == (None, None)
    assert tree.shape == turn(ids, *how).shape
    inside = sample.counts.sum(axis=(1, 2, 3)) > 0
    assert tree.level[inside].mean() < tree.level[~inside].mean()
    # Whatever is small lies in the window; the rest of the slide is there, but coarse.
    assert tree.sizes()[~inside].max() >= 128
    assert (~inside).sum() > 20


def test_windows_are_made_as_prediction_makes_them(sources: tuple[SlideSource, ...]) -> None:
    source = sources[1]
    y, x = (source.places[1][0] - 100).clip(0, np.array(source.shape) - WINDOW).tolist()
    box = y, x, y + WINDOW, x + WINDOW
    with Handles() as handles:
        sample = read_window(source, box, PATCHER, DENSITY, handles)
    budget, around = round(DENSITY * source.tissue_in(box)), round(DENSITY * WINDOW**2 / 7)
    assert budget > 256
    with open_slide(source.pair.image) as slide, ThreadPoolExecutor(1) as pool:
        view = _View(Halved(slide), pool, PATCHER, None)
        predicted = view.patches(Window(box, budget, max(around, 64), 1, slide.shape))
    assert predicted.tree == sample.patches.tree
    np.testing.assert_array_equal(predicted.pixels, sample.patches.pixels)


def test_a_slide_that_fits_is_shown_whole(sources: tuple[SlideSource, ...]) -> None:
    source = sources[0]
    with Handles() as handles:
        sample = read_window(source, (0, 0, *source.shape), PATCHER, DENSITY, handles)
    assert sample.counts.sum() == np.prod(source.shape)
    assert len(sample.patches) <= round(DENSITY * source.area)


def test_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = look_at(find_data(slide_set(tmp_path / "data", "a", size=(4096, 4096), tissue=0.15)))[0]
    opened: list[Metered] = []

    def open_metered(path: Any) -> Slide:
        opened.append(Metered(open_slide(path)))
        return opened[-1]

    monkeypatch.setattr(module, "open_slide", open_metered)
    patcher = Patcher(16, 1, detail="residual")
    whole = 4096**2
    with SlideWindows((source,), patcher, 512, 1 / 1000, augment=False).handles as handles:
        windows = SlideWindows((source,), patcher, 512, 1 / 1000, augment=False, handles=handles)
        windows[0]
        first = opened[0].pixels
        for at in range(1, 6):
            windows[at]
        [slide] = opened
    # With the first, what is known of the whole slide is read, too.
    assert first < 0.3 * whole
    assert (slide.pixels - first) / 5 < 0.06 * whole


def test_samples_depend_on_seed_and_number_alone(windows: SlideWindows) -> None:
    samples = [windows[at] for at in range(6)]
    again = pickle.loads(pickle.dumps(windows))
    assert len(again.handles) == 0
    assert all(same(again[at], samples[at]) for at in (5, 2, 0))
    assert not any(same(one, other) for one, other in combinations(samples, 2))
    assert not same(windows[windows.length], samples[0])
    assert not same(replace(windows, seed=1)[0], samples[0])
    again.handles.close()


def test_windows_lie_on_tissue_and_around_rare_classes(windows: SlideWindows, sources: tuple[SlideSource, ...]) -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 1.0):
        drawn = [replace(windows, foreground=share).draw(rng) for _ in range(40)]
        assert {source.name for source, _ in drawn} == {"a", "b", "c"}
        for source, (y0, x0, y1, x1) in drawn:
            assert (y1 - y0, x1 - x0) == (WINDOW, WINDOW)
            assert y0 >= 0 <= x0
            assert y1 <= source.shape[0]
            assert x1 <= source.shape[1]
            assert source.tissue_in((y0, x0, y1, x1))
        marked = []
        for source, box in drawn:
            # Unless the slide ends there, in the middle half.
            corner, places = np.array(box[:2]), source.places[1]
            marked.append(((places >= corner + WINDOW // 4) & (places <= corner + WINDOW * 3 // 4)).all(axis=1).any())
        assert (np.mean(marked) > 0.9) == bool(share)
    alone = replace(sources[0], pixels=np.array([1.0, 0.0]))
    assert replace(windows, slides=(alone,), foreground=1.0).draw(rng)[0] is alone


def test_colours_change(windows: SlideWindows) -> None:
    plain = replace(windows, augment=False)[3]
    turned = windows[3]
    assert plain.counts.sum() == turned.counts.sum()
    assert np.abs(plain.patches.pixels.mean() - turned.patches.pixels.mean()) > 0.1


def test_fixed_windows_cover_the_tissue_or_stand_for_it(sources: tuple[SlideSource, ...]) -> None:
    source = sources[0]
    _, ids = dense(source)
    everything = fixed_windows(source, 128, most=200)
    covered = np.zeros(source.shape, int)
    for _, (y0, x0, y1, x1), weight in everything:
        assert weight == 1
        covered[y0:y1, x0:x1] += 1
    assert covered.max() == 1
    assert covered[ids == 1].all()
    assert source.tissue_in((0, 0, *source.shape)) <= covered.sum()
    some = fixed_windows(source, 128, most=12)
    assert len(some) == 12
    assert sum(weight for *_, weight in some) == pytest.approx(len(everything))
    marked = [(ids[y0:y1, x0:x1] == 1).any() for _, (y0, x0, y1, x1), _ in some]
    assert 4 <= sum(marked) <= 8
    assert fixed_windows(source, 128, most=12) == some


def test_validation_counts_windows_by_their_weight(sources: tuple[SlideSource, ...]) -> None:
    parts = tuple((source, box, 3.0) for source, box, _ in fixed_windows(sources[0], WINDOW, 4))
    samples = SlideParts(parts, PATCHER, DENSITY)
    assert samples[0].counts.sum() == 3 * WINDOW**2
    beyond = samples[len(parts)]
    assert not beyond.counts.any()
    assert beyond.patches.tree == samples[0].patches.tree
    samples.handles.close()


def test_few_slides_are_held_open(windows: SlideWindows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OPEN", 2)
    monkeypatch.setattr(module, "_VIEWS", 3)
    first = windows[0]
    for at in range(8):
        windows[at]
        assert len(windows.handles) <= 2
    assert len(windows.handles._views) <= 3
    assert same(windows[0], first)


def test_flat_slides_are_not_read_whole_for_every_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = slide_set(tmp_path / "data", "a", size=(1100, 1300), tissue=0.3)
    slide = data / "images" / "a.tif"
    pixels = tifffile.imread(slide, level=0)
    tifffile.imwrite(slide.with_suffix(".svs"), pixels, tile=(256, 256), photometric="rgb")
    slide.unlink()
    source = look_at(find_data(data))[0]
    opened: list[Metered] = []
    monkeypatch.setattr(module, "open_slide", lambda path: opened.append(Metered(open_slide(path))) or opened[-1])
    windows = SlideWindows((source,), PATCHER, 200, DENSITY)
    before = [windows[at] for at in range(15)]
    seen = opened[0].pixels
    after = [windows[at] for at in range(15)]
    assert all(map(same, before, after))
    assert (opened[0].pixels - seen) / 15 < 0.7 * pixels.shape[0] * pixels.shape[1]
    windows.handles.close()


def test_the_density_is_that_of_images(sources: tuple[SlideSource, ...]) -> None:
    assert all(max(source.shape) <= 2048 for source in sources)  # so that they are shown whole
    assert density_of(sources, PATCHER) == choose_density([dense(source) for source in sources], PATCHER, 2)
    assert choose_side(1, 10) == 256


@pytest.mark.parametrize("workers", [0, 2])
def test_the_data_of_a_training(workers: int, dataset: DataSet, tmp_path: Path) -> None:
    parts = SlideModule(
        choose(dataset, "ab"),
        choose(dataset, "c"),
        PATCHER,
        tmp_path / "cache",
        window=WINDOW,
        density=DENSITY,
        batch_size=2,
        workers=workers,
        samples=4,
    )
    parts.prepare_data()
    parts.setup()
    windows = parts.windows
    parts.setup()
    assert parts.windows is windows
    assert (parts.channels, parts.dtype, len(parts.slides)) == (3, "uint8", 2)
    assert parts.mean is not None
    assert all(0.5 < mean < 1 for mean in parts.mean)
    batch = next(iter(parts.train_dataloader()))
    assert len(batch) == 2
    assert isinstance(windows, SlideWindows)
    alone = SlideWindows(parts.slides, PATCHER, WINDOW, DENSITY, length=4)
    first = alone[0]
    count = len(first.patches)
    np.testing.assert_array_equal(batch.counts[0, :count].numpy(), first.counts)
    assert torch.equal(batch.tokens.valid.sum(1)[:1], torch.tensor([count]))
    assert not (tmp_path / "cache").exists()
    whole = list(parts.val_dataloader())
    assert {name for part in whole for name in part.names} == {"c"}
    alone.handles.close()
    parts.teardown("fit")
    assert len(windows.handles) == 0
