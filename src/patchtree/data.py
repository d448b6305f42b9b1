"""Data for Lightning: windows to train on, whole images to validate on, and the module that opens both."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from patchtree.budget import LEAST, choose_density, with_budget
from patchtree.cache import Cached, cache_data, statistics
from patchtree.datasets import DataSet, Pair
from patchtree.errors import InputError
from patchtree.mips import work
from patchtree.patcher import Patcher
from patchtree.samples import Sample, collate_samples, cut_sample
from patchtree.windows import Windows

_LOOKED_AT = 4
# A core makes levels of so many pixels times planes in a second, and may do so for this share of the time.
_WORK_A_SECOND, _SHARE = 280e6, 0.05
# So much, some 40 images of 12 million pixels and 6 classes, is always worth it: who has little time has many cores.
_ALWAYS = 1 << 32


@dataclass(frozen=True, eq=False)
class Whole(Dataset[Sample]):
    """Whole images as they are, to validate on.

    Attributes:
        images: a sample of each, for the first fraction, then for the next.
        classes: as of `Windows`.
        patcher: its budget is replaced by one in proportion to the image's area.
        ignore: id of pixels without a label.
        density: tokens a pixel, see `with_budget`.
        least: smallest budget.
        most: largest budget.
        fractions: of the density.
    """

    images: tuple[Cached, ...]
    classes: int
    patcher: Patcher
    ignore: int | None = None
    density: float = 1 / 4096
    least: int = LEAST
    most: int | None = None
    fractions: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return len(self.images) * len(self.fractions)

    def __getitem__(self, index: int) -> Sample:
        """Cut an image. An index beyond the last gives one again, with labels that count nothing."""
        which, at = divmod(index % len(self), len(self.images))
        source, fraction = self.images[at], self.fractions[which]
        patcher = with_budget(self.patcher, source.shape, fraction * self.density, self.least, self.most)
        mask = source.mask() if self.classes else None
        sample = cut_sample(patcher, source.image(), mask, source.name, self.classes, self.ignore)
        counts = sample.counts if index < len(self) else np.zeros_like(sample.counts)
        return replace(sample, counts=counts, fraction=fraction)


class Stream(Sampler[int]):
    """The endless stream of a process's sample numbers: every R-th, from a start.

    The batches of one step of ``R`` processes hold together the samples that one process with a batch ``R`` times as
    large would get.

    >>> from itertools import islice
    >>> list(islice(Stream(start=6, rank=1, processes=2), 3))
    [7, 9, 11]
    """

    def __init__(self, start: int = 0, processes: int = 1, rank: int = 0) -> None:
        self.start, self.processes, self.rank = start, processes, rank

    def __iter__(self) -> Iterator[int]:
        """Give the numbers, without end."""
        return count(self.start + self.rank, self.processes)


class WholeSampler(DistributedSampler[int]):
    """Deal samples of whole images out to the processes of a training, as many to each.

    What is missing to that is filled with samples that count nothing, so sums over all processes are exact.
    """

    def __init__(self, whole: Dataset[Sample], replicas: int = 1, rank: int = 0) -> None:
        super().__init__(whole, num_replicas=replicas, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[int]:
        """Give the numbers of the samples."""
        return iter(range(self.rank, self.total_size, self.num_replicas))


class DataModule(lightning.LightningDataModule):
    """A training's data: windows of one part of a data set, whole images of the other.

    Windows come as an endless stream, so that a training can go on anywhere: `start` is the number of windows that all
    processes together have drawn before.

    `prepare_data` fills the cache; `setup` opens it and measures the normalisation. Until `setup` was called, `mean`,
    `std`, `channels` and `dtype` are not there.

    Args:
        train: what to train on.
        val: what to validate on; the same labels.
        patcher: how images become patches; its budget is replaced, see `density`.
        cache: folder for decoded images and masks, see `cache_data`. Removing it is the caller's part.
        window: side of the windows in pixels.
        density: tokens a pixel; None chooses by what the labels need, see `choose_density`.
        least: smallest budget of a whole image.
        most: largest budget of a whole image.
        spread: of the windows' budgets, see `Windows`.
        fractions: of the density that whole images are given at, see `Whole`.
        foreground: share of windows centred on a rare class.
        augment: augment the windows.
        samples: windows an epoch, see `Windows`.
        batch_size: windows a batch, for each process.
        workers: processes that make samples; 0 makes them in this one.
        seed: of everything random.
        grids: of the model, ``Segmenter.grids``; the workers then find the ghost cells.
        time: seconds of the training, which say of how many images levels are worth making; None: it goes by epochs.
        mean: normalisation, measured from the training images if None.
        std: as `mean`.
        progress: shows how far the cache is, such as ``rich.progress.track``.
    """

    windows_of: type[Windows] = Windows

    def __init__(
        self,
        train: DataSet,
        val: DataSet,
        patcher: Patcher,
        cache: str | os.PathLike[str],
        *,
        window: int = 1024,
        density: float | None = None,
        least: int = LEAST,
        most: int | None = None,
        spread: float = 1.0,
        fractions: Sequence[float] = (1.0,),
        foreground: float = 0.5,
        augment: bool = True,
        samples: int = 256,
        batch_size: int = 8,
        workers: int = 1,
        seed: int = 0,
        grids: Sequence[int] = (),
        time: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        progress: Callable[[Sequence[Pair]], Iterable[Pair]] | None = None,
    ) -> None:
        super().__init__()
        if patcher.ndim != train.ndim:
            raise InputError(
                f"a patcher with ndim={patcher.ndim} cannot cut the images of {train.root}; give ndim={train.ndim}"
            )
        self.train, self.val = train, val
        self.patcher, self.cache = patcher, Path(cache)
        self.window, self.density, self.spread, self.fractions = window, density, spread, tuple(fractions)
        self.least, self.most = least, most
        self.foreground, self.augment = foreground, augment
        self.samples, self.batch_size, self.workers, self.seed = samples, batch_size, workers, seed
        self.grids, self.time = tuple(grids), time
        self.mean, self.std = mean, std
        self.progress = progress
        self.channels = self.start = 0
        self.dtype = ""
        self.images: tuple[Cached, ...] = ()
        self.windows: Dataset[Sample] | None = None
        self.whole: Dataset[Sample] | None = None

    def prepare_data(self) -> None:
        """Decode the images and masks into the cache; Lightning calls this once a machine."""
        for part in (self.train, self.val):
            cache_data(part, self.cache, self.progress)

    def setup(self, stage: str | None = None) -> None:
        """Open the cache, choose the density and measure the normalisation; a second call changes nothing.

        Raises:
            InputError: the images differ in channels or type, or see `Windows`.
        """
        if self.windows is not None:
            return
        images, held_out = cache_data(self.train, self.cache), cache_data(self.val, self.cache)
        self.channels = images[0].channels
        if held_out[0].channels != self.channels:
            raise InputError(
                f"{self.val.pairs[0].image}: has {held_out[0].channels} channels, the images to train on have "
                f"{self.channels}; give all images the same channels"
            )
        types = {image.image().dtype.name: image for image in (*images, *held_out)}
        if len(types) > 1 and types.keys() & {"uint8", "uint16"}:
            names = " and ".join(f"{image.name} is {name}" for name, image in sorted(types.items()))
            raise InputError(
                f"{self.train.root}: {names}; give all images one type, their values mean different things"
            )
        self.dtype = images[0].image().dtype.name
        if self.mean is None or self.std is None:
            self.mean, self.std = statistics(images)
        self.images = images
        self.make_samples(images, held_out)

    def make_samples(self, images: tuple[Cached, ...], held_out: tuple[Cached, ...]) -> None:
        """Fill `windows` and `whole` with what is trained and validated on."""
        seen, held = (np.sum([image.pixels for image in part], axis=0).tolist() for part in (images, held_out))

        def only_in(part: list[int], other: list[int]) -> str:
            return ", ".join(repr(name) for name, at in self.train.labels.items() if part[at] and not other[at])

        if unseen := only_in(held, seen):
            warnings.warn(
                f"{self.train.root}: no image to train on has {unseen}, but some to validate on do; "
                "say in a splits.json which are which",
                stacklevel=2,
            )
        if untold := only_in(seen, held):
            warnings.warn(
                f"{self.train.root}: no image to validate on has {untold}, so nothing is known of how well "
                "that is found; say in a splits.json which images to validate on",
                stacklevel=2,
            )
        if self.density is None:
            shown = [(image.image(), image.mask()) for image in images[:_LOOKED_AT]]
            self.density = choose_density(shown, self.patcher, len(self.train.labels), self.train.ignore)
        self.windows = self.windows_of(
            images,
            len(self.train.labels),
            self.patcher,
            ignore=self.train.ignore,
            window=self.window,
            density=self.density,
            spread=self.spread,
            foreground=self.foreground,
            augment=self.augment,
            seed=self.seed,
            length=self.samples,
            levels=self._levels_pay(work(images)),
        )
        self.whole = Whole(
            held_out,
            len(self.train.labels),
            self.patcher,
            ignore=self.train.ignore,
            density=self.density,
            least=self.least,
            most=self.most,
            fractions=self.fractions,
        )

    def _levels_pay(self, amount: float) -> bool:
        """Whether there is time to make levels, and room for them: half a byte to two for a pixel of a plane."""
        enough = max(_ALWAYS, (self.time or 0) * _SHARE * _WORK_A_SECOND)
        return amount <= enough and 2 * amount <= shutil.disk_usage(self.cache).free

    def train_dataloader(self) -> DataLoader[Sample]:
        """Give batches of windows, without end."""
        assert self.windows is not None, "call setup() first"
        return self._loader(self.windows, Stream(self.start, *self._world()), self.batch_size)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Give whole images, at each fraction, one a batch."""
        assert self.whole is not None, "call setup() first"
        return self._loader(self.whole, WholeSampler(self.whole, *self._world()), 1)

    def _world(self) -> tuple[int, int]:
        """Give the number of processes and which of them this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _loader(self, samples: Dataset[Sample], sampler: Sampler[int], size: int) -> DataLoader[Sample]:
        return DataLoader(
            samples,
            batch_size=size,
            sampler=sampler,
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=partial(collate_samples, mean=self.mean, std=self.std, grids=self.grids),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
        )


def warn_unmet(whole: Whole) -> None:
    """Warn once if the trees of the first few images stay below their budget for want of detail.

    >>> warn_unmet(Whole((), classes=2, patcher=Patcher()))
    """
    short, looked_at = [], whole.images[:_LOOKED_AT]
    for source in looked_at:
        patcher = with_budget(whole.patcher, source.shape, whole.density, whole.least, whole.most)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            patcher.plan(source.image())
        short += [str(warning.message) for warning in caught]
    if short:
        warnings.warn(f"in {len(short)} of {len(looked_at)} images looked at: {short[0]}", stacklevel=2)


def _one_thread(worker: int) -> None:
    """Keep OpenCV to the worker's own thread: there are as many workers as cores are to be used."""
    import cv2

    # Not 1: that waits for the threads of the process that this one was forked from, for ever.
    cv2.setNumThreads(0)
