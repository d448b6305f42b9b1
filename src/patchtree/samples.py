"""Samples and batches: the patches of an image or of a part of it, with their labels, and several of them for torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchtree.models.ghosts import ghost_batch
from patchtree.patcher import Patcher, Patches, spare_budget_allowed
from patchtree.patches import count_labels
from patchtree.tokens import Tokens, collate, pad

# The counts of a sample without a mask.
NO_COUNTS = np.zeros((1, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Sample:
    """The patches of an image, or of a window of it, and their labels.

    Attributes:
        patches: N patches.
        counts: ``(N, p, p, K)`` float32, pixels of each class under each patch pixel (see `patchtree.count_labels`);
            one more ``p`` in 3-D.
        name: the image's name.
        odds: see `draw_odds`; 1 if it was not drawn.
        fraction: of the density, see `Whole`.
    """

    patches: Patches
    counts: NDArray[np.float32]
    name: str
    odds: float = 1.0
    fraction: float = 1.0


@dataclass(frozen=True, eq=False)
class Batch:
    """What a training step takes.

    Attributes:
        tokens: B images of N tokens.
        counts: ``(B, N, p, p, K)`` float32, one more ``p`` in 3-D; 0 on padding.
        ghosts: what `Segmenter` takes as ``ghosts``, by grid; None if no grids were asked for.
        names: the B images' names.
        odds: ``(B,)`` float32, of each sample.
        fractions: the B samples'.
    """

    tokens: Tokens
    counts: Tensor
    ghosts: dict[int, Tensor] | None
    names: tuple[str, ...]
    odds: Tensor
    fractions: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move the tensors to a device."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, tokens=self.tokens.to(device, non_blocking))

    def pin_memory(self) -> Batch:
        """Put the tensors in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return replace(self._each(Tensor.pin_memory), tokens=self.tokens.pin_memory())

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        ghosts = None if self.ghosts is None else {grid: move(index) for grid, index in self.ghosts.items()}
        return replace(self, counts=move(self.counts), ghosts=ghosts, odds=move(self.odds))


def collate_samples(
    samples: Sequence[Sample],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    grids: Iterable[int] = (),
) -> Batch:
    """Make a padded, normalised batch, with the ghost cells for a model's grids.

    >>> from patchtree.tree import Tree
    >>> tree = Tree.uniform((32, 32), patch_size=16)
    >>> patches = Patches(np.zeros((4, 16, 16, 3), np.uint8), tree)
    >>> batch = collate_samples([Sample(patches, np.ones((4, 16, 16, 2), np.float32), "a")], grids=[4])
    >>> batch.counts.shape, batch.ghosts[4].shape
    (torch.Size([1, 4, 16, 16, 2]), torch.Size([4, 36]))

    Args:
        samples: B samples of one patch size and number of channels.
        mean: as in `patchtree.collate`.
        std: as in `patchtree.collate`.
        grids: cells along the side of a leaf, ``Segmenter.grids``.
    """
    tokens = collate([sample.patches for sample in samples], mean, std)
    grids = tuple(grids)
    ghosts = ghost_batch(tokens.trees, tokens.valid.shape[1], grids) if grids else None
    counts, odds = pad([sample.counts for sample in samples]), torch.tensor([sample.odds for sample in samples])
    names, fractions = tuple(sample.name for sample in samples), tuple(sample.fraction for sample in samples)
    return Batch(tokens, counts, ghosts, names, odds, fractions)


def cut_sample(
    patcher: Patcher,
    image: NDArray[Any],
    mask: NDArray[Any] | None,
    name: str,
    classes: int,
    ignore: int | None,
    origin: tuple[int, ...] | None = None,
    extent: tuple[int, ...] | None = None,
) -> Sample:
    """Patch an image, or a window that lies at `origin` in one of shape `extent`, and count what is under the patches.

    Arguments as of `Windows`; without a mask nothing is counted.
    """
    with spare_budget_allowed():  # `warn_unmet` says it once for all samples
        patches = patcher(image, origin, extent)
    counts = NO_COUNTS if mask is None else count_labels(mask, patches.tree, classes, ignore)
    return Sample(patches, counts, name)
