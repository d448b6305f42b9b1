"""Samples for image-level tasks: whole images within a budget, and the class of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from patchtree.augment import Window, take, vary_colours, vary_detail, vary_window
from patchtree.budget import LEAST, with_budget
from patchtree.cache import Cached
from patchtree.data import DataModule
from patchtree.errors import InputError
from patchtree.patcher import Patcher, spare_budget_allowed
from patchtree.samples import Sample


@dataclass(frozen=True, eq=False)
class Images(Dataset[Sample]):
    """Whole images, ``counts`` being ``(1, K)``: 1 at the image's class.

    To train on, sample ``i`` of epoch ``e`` is ``images[e * length + i]``: every image once an epoch, in an order and
    varied in a way that depend on the seed, ``e`` and ``i`` alone. To validate on, images are as they are, and indices
    beyond the last give images again, with labels that count nothing.

    Attributes:
        images: one sample each.
        labels: class id of each.
        classes: number of classes, ``K``.
        patcher: its budget is replaced by one in proportion to the image's area.
        density: tokens a pixel, see `with_budget`.
        most: largest budget.
        seed: of everything random, to train on; None: to validate on.
    """

    images: tuple[Cached, ...]
    labels: tuple[int, ...]
    classes: int
    patcher: Patcher
    density: float
    most: int
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Give a sample; `index` may exceed the length, see above."""
        epoch, at = divmod(index, len(self))
        if self.seed is not None:
            at = int(np.random.default_rng((self.seed, epoch)).permutation(len(self))[at])
        source = self.images[at]
        image, patcher = source.image(), self.patcher
        if self.seed is not None:
            rng = np.random.default_rng((self.seed, epoch, at))
            height, width = source.shape
            image = vary_colours(take(image, vary_window(Window((0, 0), (height, width)), rng)), rng)
            patcher = replace(patcher, detail=vary_detail(patcher.detail, rng))
        patcher = with_budget(patcher, source.shape, self.density, LEAST, self.most)
        with spare_budget_allowed():
            patches = patcher(image)
        counts = np.zeros((1, self.classes), np.float32)
        counts[0, self.labels[at]] = self.seed is not None or epoch == 0
        return Sample(patches, counts, source.name)


class ImageData(DataModule):
    """The data of an image-level training; arguments as `DataModule`'s, those of windows having no effect."""

    def make_samples(self, images: tuple[Cached, ...], held_out: tuple[Cached, ...]) -> None:
        """Fill `windows` and `whole` with what is trained and validated on."""
        held = {pair.label for pair in self.train.pairs}
        absent = [name for name, label in self.train.labels.items() if label not in held]
        if absent:
            raise InputError(f"{self.train.root}: no image to train on is {absent[0]!r}; mend splits.json")
        assert self.density is not None
        assert self.most is not None
        for name, part, cached, seed in (
            ("windows", self.train, images, self.seed),
            ("whole", self.val, held_out, None),
        ):
            labels = tuple(int(pair.label or 0) for pair in part.pairs)
            samples = Images(cached, labels, len(part.labels), self.patcher, self.density, self.most, seed)
            setattr(self, name, samples)
