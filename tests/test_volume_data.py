"""Blocks of volumes are pure functions of seed and index; pixels, labels and positions agree with the whole volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree.augment import Window, vary_colours
from patchtree.cache import cache_data
from patchtree.datasets import DataSet, find_data, split_data
from patchtree.io.volumes import write_volume
from patchtree.patcher import Patcher
from patchtree.patches import count_labels, cut
from patchtree.volume_data import Block, Blocks, VolumeModule, place_block, take_block, vary_block

SHAPES = ((12, 40, 56), (20, 48, 33), (9, 64, 40))
PATCHER = Patcher(patch_size=4, detail="variance", ndim=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Noise with a bright box of class 1, and a voxel of class 2 in one of the volumes."""
    root = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number, shape in enumerate(SHAPES):
        volume, ids = rng.normal(0, 20, shape), np.zeros(shape, np.uint8)
        ids[3:7, 10:30, 12:28] = 1
        volume[ids == 1] += 200
        if number == 1:
            ids[-1, -2, -3] = 2
        write_volume(root / "images" / f"{number}.nii.gz", volume.astype(np.int16))
        write_volume(root / "masks" / f"{number}.nii.gz", ids)
    return find_data(root)


def turned(volume: NDArray[np.int64], block: Block) -> NDArray[np.int64]:
    """The whole volume, flipped and turned as the block."""
    volume = volume[:, :, ::-1] if block.window.flip else volume
    volume = np.rot90(volume, block.window.turns, axes=(1, 2))
    return volume[::-1] if block.reverse else volume


@given(st.data(), st.booleans(), st.integers(0, 3), st.booleans())
def test_a_block_is_the_same_part_of_the_whole_volume_turned(
    data: st.DataObject, flip: bool, turns: int, reverse: bool
) -> None:
    extent = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    shape = [data.draw(st.integers(1, length)) for length in extent]
    corner = [data.draw(st.integers(0, room - length)) for room, length in zip(extent, shape, strict=True)]
    block = Block(corner[0], shape[0], Window((corner[1], corner[2]), (shape[1], shape[2]), 0, 1, flip, turns), reverse)
    volume = np.arange(np.prod(extent)).reshape(extent)
    whole, (origin, size) = turned(volume, block), place_block(block, extent)
    found = take_block(volume, block)
    assert whole.shape == size
    assert np.array_equal(found, whole[tuple(slice(a, a + n) for a, n in zip(origin, found.shape, strict=True))])


def test_rotated_slices_hold_existing_ids() -> None:
    ids = np.zeros((4, 30, 30), np.uint8)
    ids[:, 10:20, 10:20] = 7
    block = Block(1, 3, Window((5, 5), (20, 20), angle=12, scale=1.2))
    found = take_block(ids, block, ids=True)
    assert found.shape == (3, 20, 20)
    assert set(np.unique(found)) == {0, 7}
    assert (found == found[:1]).all()


def test_every_way_of_turning_occurs() -> None:
    blocks = [vary_block(Block(0, 4, Window((0, 0), (8, 8))), np.random.default_rng(seed)) for seed in range(200)]
    ways = {(block.reverse, block.window.flip, block.window.turns) for block in blocks}
    assert len(ways) == 16


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_slices_are_varied_alike_and_each_by_itself(dtype: str, channels: tuple[int, ...]) -> None:
    """A volume of equal slices stays one but for noise: nothing is blurred from a slice into the next."""
    slice_ = np.random.default_rng(0).integers(0, 200, (20, 30, *channels)).astype(dtype)
    volume = np.stack([slice_, slice_, slice_])
    seen = set()
    for seed in range(40):
        varied = vary_colours(volume, np.random.default_rng(seed), ndim=3)
        assert (varied.shape, varied.dtype) == (volume.shape, volume.dtype)
        alike = all(np.array_equal(one, varied[0]) for one in varied)
        alone = vary_colours(slice_, np.random.default_rng(seed))
        assert np.array_equal(varied[0], alone) or not alike
        seen.add(alike)
    assert seen == {True, False}


def test_blocks_depend_on_seed_and_index_alone(dataset: DataSet, tmp_path: Path) -> None:
    images = cache_data(dataset, tmp_path)
    blocks, others = (Blocks(images, 3, PATCHER, window=16, density=1 / 64, spread=4, seed=seed) for seed in (0, 1))
    first, again, other = blocks[3], Blocks(images, 3, PATCHER, window=16, density=1 / 64, spread=4)[3], others[3]
    assert first.patches.tree == again.patches.tree
    assert np.array_equal(first.patches.pixels, again.patches.pixels)
    assert np.array_equal(first.counts, again.counts)
    assert not np.array_equal(first.patches.pixels, other.patches.pixels)


def test_pixels_and_counts_are_those_of_the_block(dataset: DataSet, tmp_path: Path) -> None:
    """Without augmentation a sample is a part of the volume, where it says it is."""
    images = cache_data(dataset, tmp_path)
    blocks = Blocks(images, 3, PATCHER, window=16, density=1 / 64, augment=False, foreground=1.0)
    for index in range(12):
        sample = blocks[index]
        source = next(image for image in images if image.name == sample.name)
        tree, origin = sample.patches.tree, sample.patches.origin
        assert origin is not None
        assert sample.patches.extent == source.shape
        part = tuple(slice(at, at + length) for at, length in zip(origin, tree.shape, strict=True))
        assert np.array_equal(sample.patches.pixels, cut(np.ascontiguousarray(source.image()[part]), tree))
        assert np.array_equal(sample.counts, count_labels(np.asarray(source.mask()[part]), tree, 3))
        # A rare class lies in each.
        assert sample.counts[..., 1:].any()


@pytest.mark.filterwarnings("ignore:.*no image to validate on")
def test_the_module_gives_padded_batches(dataset: DataSet, tmp_path: Path) -> None:
    train, val = split_data(dataset)
    module = VolumeModule(train, val, PATCHER, tmp_path, window=16, density=1 / 64, batch_size=3, workers=0, grids=(1,))
    module.prepare_data()
    module.setup()
    assert (module.channels, module.dtype) == (1, "int16")
    batch = next(iter(module.train_dataloader()))
    assert batch.tokens.pixels.shape[2:] == (1, 4, 4, 4)
    assert batch.counts.shape == (*batch.tokens.valid.shape, 4, 4, 4, 3)
    assert batch.ghosts is not None
    assert batch.ghosts[1].shape == (batch.tokens.valid.numel(), 27)
    whole = next(iter(module.val_dataloader()))
    assert whole.counts.sum() == np.prod(module.whole.images[0].shape)  # type: ignore[union-attr]
