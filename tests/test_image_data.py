from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from patchtree.cache import Cached, cache_data
from patchtree.datasets import choose
from patchtree.errors import InputError
from patchtree.image_data import ImageData, Images
from patchtree.io.images import write_image
from patchtree.labelled import find_labelled
from patchtree.patcher import Patcher
from patchtree.samples import collate_samples


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, side in (("a", 64), ("b", 64), ("c", 256)):
        write_image(tmp_path / "images" / f"{name}.png", rng.integers(0, 255, (side, side + 32, 3), np.uint8))
    (tmp_path / "labels.csv").write_text("name,label\na,x\nb,y\nc,y\n")
    return tmp_path


def samples(root: Path, seed: int | None) -> Images:
    cached: tuple[Cached, ...] = cache_data(find_labelled(root), root / "cache")
    return Images(cached, (0, 1, 1), 2, Patcher(8, detail="variance"), 1 / 128, most=70, seed=seed)


def test_images_are_seen_whole_within_the_budget(root: Path) -> None:
    held_out = samples(root, None)
    found = [held_out[at] for at in range(3)]
    assert [sample.patches.tree.shape for sample in found] == [(64, 96), (64, 96), (256, 288)]
    # 6,144 px make 48, less than 64 are never given; the large one would get 576.
    assert [len(sample.patches) for sample in found] == pytest.approx([64, 64, 70], abs=3)
    assert [sample.counts.tolist() for sample in found] == [[[1, 0]], [[0, 1]], [[0, 1]]]
    assert held_out[3].name == "a"
    assert not held_out[3].counts.any()
    batch = collate_samples(found)
    assert batch.counts.shape == (3, 1, 2)
    assert not (root / "cache").joinpath("mask.npy").exists()
    assert not list((root / "cache").glob("*/mask.npy"))


def test_every_image_comes_once_an_epoch_and_never_the_same(root: Path) -> None:
    drawn = samples(root, 0)
    epochs = [[drawn[at] for at in range(first, first + 3)] for first in (0, 3, 6, 9)]
    assert all(sorted(sample.name for sample in epoch) == ["a", "b", "c"] for epoch in epochs)
    assert len({tuple(sample.name for sample in epoch) for epoch in epochs}) > 1
    assert all(sample.counts[0].argmax() == int(sample.name != "a") for epoch in epochs for sample in epoch)
    of_a = [sample.patches for epoch in epochs for sample in epoch if sample.name == "a"]
    assert {patches.tree.shape for patches in of_a} == {(64, 96), (96, 64)}
    assert not any(np.array_equal(of_a[0].pixels, other.pixels) for other in of_a[1:])
    np.testing.assert_array_equal(drawn[4].patches.pixels, samples(root, 0)[4].patches.pixels)


def test_a_class_that_is_only_validated_on(root: Path) -> None:
    dataset = find_labelled(root)
    parts = ImageData(choose(dataset, "bc"), choose(dataset, "a"), Patcher(8), root / "cache", density=1 / 128, most=70)
    with pytest.raises(InputError, match=r"no image to train on is 'x'; mend splits\.json"):
        parts.setup()
