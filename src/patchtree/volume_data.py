"""Samples of volumes for torch: blocks of some slices, turned and varied as windows of images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.augment import Window, place, take, vary_colours, vary_window
from patchtree.cache import Cached
from patchtree.data import DataModule
from patchtree.samples import Sample, cut_sample
from patchtree.windows import Windows


@dataclass(frozen=True)
class Block:
    """A part of a volume, and how it is turned: a plan that `take_block` carries out.

    Attributes:
        first: its first slice.
        depth: number of slices.
        window: the part of each slice, and how that is turned.
        reverse: put the last slice first.
    """

    first: int
    depth: int
    window: Window
    reverse: bool = False


def place_block(block: Block, extent: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Say where the block's corner lies once the whole volume is turned as the block is.

    >>> place_block(Block(2, 5, Window((10, 20), (4, 8), turns=1), reverse=True), extent=(30, 100, 50))
    ((23, 22, 10), (30, 50, 100))

    Args:
        block: the plan.
        extent: ``(D, H, W)`` of the whole volume.

    Returns:
        The origin and the extent that `Patcher` takes.
    """
    depth, height, width = extent
    corner, shape = place(block.window, (height, width))
    return (depth - block.first - block.depth if block.reverse else block.first, *corner), (depth, *shape)


def take_block(volume: NDArray[Any], block: Block, ids: bool = False) -> NDArray[Any]:
    """Read a block, ``(d, h, w)`` or ``(d, h, w, C)``; only the slices it needs, so the volume may be a memory map.

    >>> volume = np.arange(8).reshape(2, 2, 2)
    >>> take_block(volume, Block(0, 2, Window((0, 0), (1, 2), turns=1), reverse=True)).tolist()
    [[[5], [4]], [[1], [0]]]

    Args:
        volume: ``(D, H, W)`` or ``(D, H, W, C)``.
        block: the plan.
        ids: the volume is a mask, see `take`.
    """
    slices = volume[block.first : block.first + block.depth]
    taken = [take(one, block.window, ids) for one in slices]
    return np.stack(taken[::-1] if block.reverse else taken)


def vary_block(block: Block, rng: np.random.Generator) -> Block:
    """Turn all slices alike as `vary_window` does, and put the last first in half of the cases.

    >>> vary_block(Block(0, 4, Window((0, 0), (8, 8))), np.random.default_rng(5)).reverse
    True
    """
    return replace(block, window=vary_window(block.window, rng), reverse=bool(rng.integers(2)))


class Blocks(Windows):
    """Random blocks of volumes, augmented, to train on; attributes as those of `Windows`, which has no levels here."""

    def cut(
        self,
        source: Cached,
        corner: Sequence[int],
        shape: Sequence[int],
        fraction: float,
        rng: np.random.Generator,
    ) -> Sample:
        """Cut a block, augmented, at this fraction of the density."""
        block = Block(corner[0], shape[0], Window.of(corner[1:], shape[1:]))
        if self.augment:
            block = vary_block(block, rng)
        image = take_block(source.image(), block)
        mask = take_block(source.mask(), block, ids=True) if self.classes else None
        image = vary_colours(image, rng, ndim=3) if self.augment else image
        patcher, where = self.patcher_for(shape, fraction, rng), place_block(block, source.shape)
        return cut_sample(patcher, image, mask, source.name, self.classes, self.ignore, *where)


class VolumeModule(DataModule):
    """The data of a training on volumes; arguments as `DataModule`'s."""

    windows_of = Blocks
