"""Samples are pure functions of seed, epoch and index; labels, positions and batches agree with the image."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from patchtree.budget import with_budget
from patchtree.cache import Cached, cache_data
from patchtree.data import DataModule, Stream, Whole, warn_unmet
from patchtree.datasets import DataSet, find_data, split_data
from patchtree.io.images import write_image, write_mask
from patchtree.models.ghosts import ghost_batch
from patchtree.patcher import Patcher
from patchtree.patches import count_labels, cut
from patchtree.samples import Batch, Sample, collate_samples
from patchtree.windows import Windows

pytestmark = pytest.mark.filterwarnings("ignore:.*no image to validate on has 'dot'")
SHAPES = ((90, 140), (64, 70), (40, 200), (128, 128))
PATCHER = Patcher(patch_size=8, detail="variance")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Noise with a bright square of class 1, a pixel of class 2 in two of the images, and an ignored corner."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number, shape in enumerate(SHAPES):
        image = rng.integers(0, 60, (*shape, 3), dtype=np.uint8)
        mask = np.zeros(shape, np.uint8)
        mask[10:30, 20:50] = 1
        image[mask == 1] += 150
        if number % 2:
            mask[-5, -6] = 2
        mask[:4, :4] = 255
        write_image(root / "images" / f"{number}.png", image)
        write_mask(root / "masks" / f"{number}.png", mask)
    (root / "dataset.json").write_text('{"labels": {"background": 0, "square": 1, "dot": 2, "ignore": 255}}')
    return find_data(root)


@pytest.fixture(scope="module")
def images(dataset: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cached, ...]:
    return cache_data(dataset, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def windows(images: tuple[Cached, ...]) -> Windows:
    return Windows(images, 3, PATCHER, ignore=255, window=64, density=1 / 256, length=10, seed=3)


def same(a: Sample, b: Sample) -> bool:
    return (
        a.name == b.name
        and a.patches.tree == b.patches.tree
        and (a.patches.origin, a.patches.extent) == (b.patches.origin, b.patches.extent)
        and np.array_equal(a.patches.pixels, b.patches.pixels)
        and np.array_equal(a.counts, b.counts)
        and a.odds == b.odds
    )


def test_a_sample_depends_on_seed_epoch_and_index_alone(windows: Windows) -> None:
    drawn = [windows[index] for index in range(20)]
    copy = pickle.loads(pickle.dumps(windows))
    assert all(same(copy[index], drawn[index]) for index in reversed(range(20)))
    assert not any(same(drawn[index], drawn[index + 10]) for index in range(10))
    assert not any(same(replace(windows, seed=4)[index], drawn[index]) for index in range(10))


def test_windows_that_count_by_their_odds_show_classes_as_often_as_windows_anywhere(tmp_path: Path) -> None:
    """A class in one of three images, of a hundredth of its pixels, is drawn far more often than that."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        mask = np.zeros((400, 400), np.uint8)
        for y, x in rng.integers(0, 390, (20 if number == 0 else 0, 2)):
            mask[y : y + 9, x : x + 9] = 1
        write_image(tmp_path / "images" / f"{number}.png", rng.integers(0, 9, mask.shape).astype(np.uint8))
        write_mask(tmp_path / "masks" / f"{number}.png", mask)
    images = cache_data(find_data(tmp_path), tmp_path / "cache")
    windows = Windows(images, 2, PATCHER, window=64, density=1 / 1024, augment=False, seed=1)
    drawn = [windows[index] for index in range(700)]
    rare = np.array([sample.counts[..., 1].sum() / sample.counts.sum() for sample in drawn])
    odds = np.array([sample.odds for sample in drawn])
    anywhere = replace(windows, foreground=0.0)
    assert all(anywhere[index].odds == 1 for index in range(5))
    uniform = [anywhere[index] for index in range(700)]
    expected = np.mean([sample.counts[..., 1].sum() / sample.counts.sum() for sample in uniform])
    assert rare.mean() > 3 * expected
    assert (rare / odds).sum() / (1 / odds).sum() == pytest.approx(expected, rel=0.2)
    assert odds.min() == 0.5


def test_labels_lie_on_the_pixels_they_belong_to(windows: Windows) -> None:
    """The square is bright, whatever was done to the window."""
    checked = 0
    for index in range(40):
        sample = windows[index]
        tree, counts = sample.patches.tree, sample.counts
        assert counts.shape == (len(tree), 8, 8, 3)
        assert (counts.sum(-1) <= tree.weights()).all()
        grey = sample.patches.pixels.mean(-1)
        square, ground = ((counts[..., label] > 0) & (counts[..., label] == counts.sum(-1)) for label in (1, 0))
        if square.any():
            assert grey[square].mean() > grey[ground].mean() + 60
            checked += 1
    assert checked > 10


def test_windows_are_not_larger_than_the_image_and_the_budget_follows_the_area(windows: Windows) -> None:
    for index in range(30):
        sample = replace(windows, augment=False)[index]
        height, width = sample.patches.tree.shape
        whole = SHAPES[int(sample.name)]
        assert (height, width) == (min(64, whole[0]), min(64, whole[1]))
        assert len(sample.patches) <= max(16, round(height * width / 256))
        assert sample.patches.extent == whole
        origin = np.array(sample.patches.origin)
        assert (origin >= 0).all()
        assert (origin + sample.patches.tree.shape <= whole).all()


def test_plain_windows_are_parts_of_the_image(windows: Windows, images: tuple[Cached, ...]) -> None:
    for index in range(10):
        sample = replace(windows, augment=False)[index]
        y, x = sample.patches.origin
        height, width = sample.patches.tree.shape
        source = images[int(sample.name)]
        box = (slice(y, y + height), slice(x, x + width))
        assert np.array_equal(sample.patches.pixels, cut(source.image()[box], sample.patches.tree))
        assert np.array_equal(sample.counts, count_labels(source.mask()[box], sample.patches.tree, 3, ignore=255))


def test_rare_classes_are_in_the_window(windows: Windows) -> None:
    always = replace(windows, foreground=1.0, augment=False)
    drawn = [always[index].counts.sum(axis=(0, 1, 2)) for index in range(60)]
    assert all(counts[1] or counts[2] for counts in drawn)
    assert sum(counts[2] == 1 for counts in drawn) >= 15  # half of them are for one pixel in two of four images
    never = replace(windows, foreground=0.0, augment=False, window=16)
    assert sum(never[index].counts[..., 1:].any() for index in range(60)) < 30


def test_whole_images(images: tuple[Cached, ...]) -> None:
    whole = Whole(images, 3, PATCHER, ignore=255, density=1 / 128)
    assert len(whole) == 4
    sample = whole[0]
    assert (sample.patches.origin, sample.patches.tree.shape) == (None, SHAPES[0])
    assert sample.counts.sum() == 90 * 140 - 16
    assert sample.counts[..., 1].sum() == 600
    assert len(sample.patches) <= round(90 * 140 / 128)
    assert sample.fraction == 1
    blank = whole[4]
    assert np.array_equal(blank.patches.pixels, sample.patches.pixels)
    assert not blank.counts.any()


def test_whole_images_at_several_fractions(images: tuple[Cached, ...]) -> None:
    whole = Whole(images, 3, PATCHER, ignore=255, density=1 / 128, least=4, fractions=(0.25, 1.0))
    assert len(whole) == 8
    assert [whole[index].fraction for index in range(9)] == [0.25] * 4 + [1.0] * 4 + [0.25]
    assert [whole[index].name for index in range(4, 8)] == [whole[index].name for index in range(4)]
    few, many = whole[0], whole[4]
    assert len(few.patches) <= round(90 * 140 / 512) < len(many.patches)
    assert few.counts.sum() == many.counts.sum() == 90 * 140 - 16
    assert not whole[8].counts.any()


def test_batches(windows: Windows) -> None:
    samples = [windows[index] for index in range(3)]
    batch = collate_samples(samples, mean=(0.1, 0.2, 0.3), std=(1, 2, 3), grids=(2, 1))
    tokens = batch.tokens
    assert len(batch) == 3
    assert batch.counts.shape == (*tokens.valid.shape, 8, 8, 3)
    assert not batch.counts[~tokens.valid].any()
    assert batch.ghosts is not None
    expected = ghost_batch(tokens.trees, tokens.valid.shape[1], (2, 1))
    assert all(torch.equal(batch.ghosts[grid], expected[grid]) for grid in (2, 1))
    assert collate_samples(samples).ghosts is None
    moved = batch.to("meta")
    assert {moved.counts.device.type, moved.tokens.pixels.device.type, moved.ghosts[2].device.type} == {"meta"}
    assert moved.names == batch.names


def test_budget_is_at_least_the_roots() -> None:
    assert with_budget(Patcher(max_level=0), (100, 100), density=1e-9).budget == 49
    assert with_budget(Patcher(), (10**5, 10**5), density=1, most=100).budget == 100


def test_processes_share_the_samples_that_one_would_draw() -> None:
    dealt = [list(islice(Stream(20, 3, rank), 2)) for rank in range(3)]
    # A step of three processes with batches of two holds what one process with a batch of six would.
    assert sorted(index for part in dealt for index in part) == list(range(20, 26))


def module_of(dataset: DataSet, cache: Path, **options: object) -> DataModule:
    train, val = split_data(dataset, share=0.25)
    options = {"window": 64, "density": 1 / 256, "samples": 6, "batch_size": 2, "workers": 0, "grids": (2,)} | options
    return DataModule(train, val, PATCHER, cache, **options)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12 and 3.13
def test_workers_draw_what_the_process_itself_would(dataset: DataSet, tmp_path: Path) -> None:
    batches = []
    for workers in (0, 1):
        module = module_of(dataset, tmp_path, workers=workers)
        module.prepare_data()
        module.setup()
        batches.append(list(islice(module.train_dataloader(), 6)))
    for mine, theirs in zip(*batches, strict=True):
        assert torch.equal(mine.tokens.pixels, theirs.tokens.pixels)
        assert torch.equal(mine.counts, theirs.counts)
    # An epoch of six samples is three batches: the second epoch draws others.
    assert not torch.equal(batches[0][0].counts.sum(1), batches[0][3].counts.sum(1))


def test_more_levels_are_made_where_there_is_more_time(
    dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchtree.data._ALWAYS", 1)
    made = []
    for time, room in ((1e-9, 1 << 40), (3600, 1 << 40), (3600, 1000), (None, 1 << 40)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, room=room: SimpleNamespace(free=room))
        module = module_of(dataset, tmp_path, time=time)
        module.setup()
        assert isinstance(module.windows, Windows)
        made.append(module.windows.levels)
    assert made == [False, True, False, False]


class Counting(lightning.LightningModule):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[str, ...]] = []
        self.validated = torch.zeros(3)

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append((*batch.names, *map(str, batch.counts.sum(dim=(1, 2, 3)).tolist())))
        assert batch.ghosts is not None
        return self.weight.sum()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.validated += batch.counts.sum(dim=(0, 1, 2, 3))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_trains_on_it(dataset: DataSet, tmp_path: Path) -> None:
    module, model = module_of(dataset, tmp_path), Counting()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning 2.6 on torch 2.14
        lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            limit_train_batches=3,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        ).fit(model, module)
    assert len(model.seen) == 6
    assert module.channels == 3
    assert module.mean is not None
    assert all(0 < mean < 1 for mean in module.mean)
    held_out = split_data(dataset, share=0.25)[1].pairs[0].read_mask()
    assert model.validated.tolist() == [2 * np.count_nonzero(held_out == label) for label in range(3)]


def test_a_budget_that_is_not_met_is_told_once(dataset: DataSet, tmp_path: Path) -> None:
    train, val = split_data(dataset)
    patcher = Patcher(patch_size=4, detail=lambda image: np.pad([[1.0]], [(0, n - 1) for n in image.shape[:2]]))
    module = DataModule(train, val, patcher, tmp_path, window=64, samples=4, batch_size=2, workers=0)
    module.prepare_data()
    module.setup()
    assert isinstance(module.whole, Whole)
    with pytest.warns(UserWarning, match=r"in 3 of 3 images looked at: .* too little detail") as told:
        warn_unmet(replace(module.whole, images=module.images))
    assert len(told) == 1
    assert len(list(islice(module.train_dataloader(), 2))) == 2
    assert len(list(module.val_dataloader())) == 1
