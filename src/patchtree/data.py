"""Samples and batches for torch: windows to train on, whole images to validate on, and Lightning's data module."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from patchtree.augment import Window, place, take, vary_colours, vary_detail, vary_patches, vary_window
from patchtree.budget import LEAST, choose_density, with_budget
from patchtree.cache import Cached, cache_data, statistics
from patchtree.datasets import DataSet, Pair
from patchtree.draws import draw_corner, draw_odds, draw_source
from patchtree.errors import InputError
from patchtree.mips import align, cut_window, open_mips, suits, work
from patchtree.models.ghosts import ghost_batch
from patchtree.patcher import Patcher, Patches, spare_budget_allowed
from patchtree.patches import count_labels
from patchtree.tokens import Tokens, collate, pad

_LOOKED_AT = 4
# A core makes levels of so many pixels times planes in a second, and may do so for this share of the time.
_WORK_A_SECOND, _SHARE = 280e6, 0.05
# So much, some 40 images of 12 million pixels and 6 classes, is always worth it: who has little time has many cores.
_ALWAYS = 1 << 32
# The counts of a sample without a mask.
_NO_COUNTS = np.zeros((1, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Sample:
    """The patches of an image, or of a window of it, and their labels.

    Attributes:
        patches: N patches.
        counts: ``(N, p, p, K)`` float32, pixels of each class under each patch pixel (see `patchtree.count_labels`).
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
        counts: ``(B, N, p, p, K)`` float32; 0 on padding.
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


@dataclass(frozen=True, eq=False)
class Windows(Dataset[Sample]):
    """Random windows of images, augmented, to train on.

    Sample ``i`` of epoch ``e`` is ``windows[e * length + i]``, and depends on these fields, ``e`` and ``i`` alone: not
    on workers, nor on what was drawn before. Positions are those in the whole image, flipped and turned as the window.

    Attributes:
        images: what to draw from, each with the same chance.
        classes: number of classes, ``K``; 0: there are no masks, and ``counts`` is ``(1, 0)``.
        patcher: its budget is replaced by one in proportion to the window's area.
        ignore: id of pixels without a label.
        window: side of the windows in pixels; smaller images are shown whole.
        density: tokens a pixel, see `with_budget`.
        spread: samples are given from a `spread`-th of the density to all of it, any ratio as likely, in windows larger
            in proportion, so that they hold as many tokens; 1: all of it.
        foreground: share of samples that hold a pixel of a rare class (any but the most frequent) in their middle half.
            The class is drawn first, then an image that has it.
        augment: flip, turn, rotate, scale, change colours and the thresholds of edges.
        seed: of everything random.
        length: samples an epoch.
        levels: patch large windows from the images' levels, which are written beside them (see `patchtree.mips`).
    """

    images: tuple[Cached, ...]
    classes: int
    patcher: Patcher
    ignore: int | None = None
    window: int = 1024
    density: float = 1 / 4096
    spread: float = 1.0
    foreground: float = 0.5
    augment: bool = True
    seed: int = 0
    length: int = 256
    levels: bool = True

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("there are no images to draw windows from; give at least one")
        if min(self.window, self.length, self.spread) < 1 or self.density <= 0 or not 0 <= self.foreground <= 1:
            raise InputError(
                f"windows of {self.window} px, {self.length} an epoch, with density {self.density}, a spread of "
                f"{self.spread} and a foreground share of {self.foreground} are not possible; give at least 1, 1, more "
                "than 0, at least 1, and 0 to 1"
            )
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is not possible; give 0 or more")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Draw a sample; `index` may exceed the length, see above."""
        rng = np.random.default_rng((self.seed, *divmod(index, self.length)))
        fraction = self.spread ** -rng.random() if self.spread > 1 else 1.0
        source, corner, shape = self.draw(rng, fraction)
        sample = self.cut(source, corner, shape, fraction, rng)
        if not self.classes:
            return sample
        axes = tuple(range(sample.counts.ndim - 1))
        shown, known = sample.counts.sum(axes, dtype=np.float64), np.array(source.pixels, np.float64)
        window, whole = (pixels / max(1.0, pixels.sum()) for pixels in (shown, known))
        return replace(sample, odds=draw_odds(self._pixels, window, whole, self.foreground))

    def cut(
        self,
        source: Cached,
        corner: NDArray[np.int64],
        shape: NDArray[np.int64],
        fraction: float,
        rng: np.random.Generator,
    ) -> Sample:
        """Cut a window, augmented, at this fraction of the density; corner and shape are of a window in the image."""
        part = Window((int(corner[0]), int(corner[1])), (int(shape[0]), int(shape[1])))
        if self.augment:
            part = vary_window(part, rng)
        patcher = with_budget(self.patcher, part.shape, self.density * fraction)
        if self.augment:
            patcher = replace(patcher, detail=vary_detail(patcher.detail, rng))
        if self.levels and suits(patcher, part, source.channels):
            return self._cut_levels(source, align(part), patcher, rng)
        image = take(source.image(), part)
        mask = take(source.mask(), part, ids=True) if self.classes else None
        image = vary_colours(image, rng) if self.augment else image
        at = place(part, (source.shape[0], source.shape[1]))
        return cut_sample(patcher, image, mask, source.name, self.classes, self.ignore, *at)

    def _cut_levels(self, source: Cached, part: Window, patcher: Patcher, rng: np.random.Generator) -> Sample:
        pixels, tree, counts = cut_window(open_mips(source), part, patcher, self.classes, self.ignore)
        patches = Patches(pixels, tree, *place(part, (source.shape[0], source.shape[1])))
        patches = vary_patches(patches, rng) if self.augment else patches
        return Sample(patches, counts if self.classes else _NO_COUNTS, source.name)

    @cached_property
    def _pixels(self) -> NDArray[np.int64]:
        return np.array([image.pixels for image in self.images])

    def draw(
        self, rng: np.random.Generator, fraction: float = 1.0
    ) -> tuple[Cached, NDArray[np.int64], NDArray[np.int64]]:
        """Choose an image and a window inside it, of such a size that this fraction of the density suits it.

        Returns:
            The image, and the window's corner and shape in its pixels.
        """
        at, label = draw_source(self._pixels, self.foreground, rng)
        source = self.images[at]
        room = np.array(source.shape)
        shape = np.minimum(round(self.window / fraction ** (1 / len(room))), room)
        if label is None:
            corner = rng.integers(room - shape + 1)
        else:
            corner = draw_corner(rng.choice(source.places(label)), shape, room, rng)
        return source, corner, shape


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
    counts = _NO_COUNTS if mask is None else count_labels(mask, patches.tree, classes, ignore)
    return Sample(patches, counts, name)


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
