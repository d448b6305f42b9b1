"""Samples of whole slides for torch: windows of a slide within sight of the rest, as prediction sees them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from patchtree.augment import Window as Turn
from patchtree.augment import place, vary_detail, vary_patches
from patchtree.budget import choose_density
from patchtree.cache import statistics
from patchtree.data import DataModule
from patchtree.draws import draw_corner, draw_odds, draw_source
from patchtree.foveate import merge
from patchtree.io.coverage import count_part
from patchtree.io.slides import Slide, open_slide
from patchtree.io.slides.base import Box
from patchtree.patcher import Patcher, Patches
from patchtree.samples import Sample
from patchtree.slide_sets import Labels, open_labels
from patchtree.slide_sources import SlideSource, look_at
from patchtree.slides.cut import cut_halved
from patchtree.slides.halved import Halved
from patchtree.slides.lazy import Coarse, measure_coarse, refine_halved
from patchtree.slides.turned import Turned
from patchtree.tree import Tree
from patchtree.turns import turn

# The least tokens of a window, and those that show the rest of the slide: an eighth of all, as in prediction.
_LEAST, _LEAST_AROUND, _SHARE_AROUND = 256, 64, 1 / 7
_SIDES = (256, 8192)
# Windows that are validated on in all, and of each slide at least and at most.
_VALIDATED, _OF_EACH = 128, (4, 32)
# Slides that a process holds open, bytes of tiles for one sample, and ways of turning slides that are remembered.
_OPEN, _TILES, _VIEWS = 8, 32 << 20, 512
# What is read of the first few slides to choose the density.
_LOOKED_AT, _LOOKED_AT_SIDE = 4, 2048


def choose_side(density: float, tokens: int) -> int:
    """Give the side of a training window of a slide, in pixels, that holds about as many tokens.

    >>> choose_side(1 / 4096, tokens=300), choose_side(1 / 65536, tokens=1024)
    (1088, 8192)
    """
    least, most = _SIDES
    return min(most, max(least, round(math.sqrt(tokens / density) / 64) * 64))


def density_of(sources: Sequence[SlideSource], patcher: Patcher) -> float:
    """Give the tokens that a pixel of tissue is worth, see `choose_density`, by a part of each of a few slides."""
    first = sources[0]
    with Handles() as handles:
        shown = []
        for source in sources[:_LOOKED_AT]:
            windows = SlideWindows((source,), patcher, _LOOKED_AT_SIDE, density=1.0, foreground=1.0)
            _, box = windows.draw(np.random.default_rng(0))
            slide, labels = handles.get(source)
            pixels = slide.read(0, *box)
            shown.append((pixels, labels.ids(box)))
    return choose_density(shown, patcher, len(first.labels), first.ignore)


class Handles:
    """The slides and labels that a process has open, the last few; a copy for another process has none.

    >>> with Handles() as handles:
    ...     len(handles)
    0
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[Slide, Labels]] = OrderedDict()
        self._kept: dict[str, tuple[int, NDArray[Any]] | None] = {}
        self._views: OrderedDict[tuple[Any, ...], tuple[Coarse, Tree]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def __enter__(self) -> Handles:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def get(self, source: SlideSource) -> tuple[Slide, Labels]:
        """Give a slide and its labels, opened if they are not."""
        key = str(source.pair.image)
        if key not in self._open:
            slide = open_slide(source.pair.image)
            labels = source.drawing or open_labels(
                source.pair.mask, source.shape, source.labels, source.ignore, source.white
            )
            self._open[key] = slide, labels
            while len(self._open) > _OPEN:
                self._close()
        self._open.move_to_end(key)
        return self._open[key]

    def view(
        self, source: SlideSource, halved: Halved, pool: Executor, patcher: Patcher, how: tuple[bool, int]
    ) -> tuple[Coarse, Tree]:
        """Give what windows of a slide, turned in one way, have in common: coarse levels, and a tree of all of it.

        Args:
            source: the slide.
            halved: the slide turned; it is given the level that is read whole.
            pool: threads that read.
            patcher: makes the tree of all.
            how: whether the slide is mirrored, and its quarter turns.
        """
        path = str(source.pair.image)
        if path not in self._kept:
            straight = Halved(self.get(source)[0], _TILES)
            measure_coarse(straight, pool, patcher)
            kept = straight.kept
            # What the file has is read from there.
            stored = kept is not None and any(
                level.downsample == (1 << kept[0], 1 << kept[0]) for level in straight.slide.levels
            )
            self._kept[path] = None if stored else kept
        if (kept := self._kept[path]) is not None:
            halved.keep(kept[0], turn(kept[1], *how))
        key = (path, *how, patcher)
        if key not in self._views:
            coarse = measure_coarse(halved, pool, patcher)
            self._views[key] = coarse, refine_halved(halved, pool, patcher, coarse=coarse)
            while len(self._views) > _VIEWS:
                self._views.popitem(last=False)
        return self._views[key]

    def close(self) -> None:
        """Close all."""
        while self._open:
            self._close()

    def _close(self) -> None:
        """Close what was not asked for the longest."""
        path, (slide, labels) = self._open.popitem(last=False)
        if self._kept.get(path) is not None:
            del self._kept[path]
        slide.close()
        labels.close()


def read_window(
    source: SlideSource,
    box: Box,
    patcher: Patcher,
    density: float,
    handles: Handles,
    flip: bool = False,
    turns: int = 0,
) -> Sample:
    """Cut a window of a slide, refined inside and coarse around it as `patchtree.slide_inference` does.

    Its labels are those of the pixels in the window; all around it nothing is labelled.

    Args:
        source: the slide.
        box: y0, x0, y1, x1 in pixels of the slide.
        patcher: its budget is replaced.
        density: tokens that a pixel of tissue is worth.
        handles: what is open.
        flip: mirror the slide left to right.
        turns: quarter turns of the slide, after that.
    """
    slide, labels = handles.get(source)
    y0, x0, y1, x1 = box
    turned = Turned(slide, flip, turns)
    (top, left), _ = place(Turn((y0, x0), (y1 - y0, x1 - x0), flip=flip, turns=turns), source.shape)
    height, width = (x1 - x0, y1 - y0) if turns % 2 else (y1 - y0, x1 - x0)
    there = top, left, top + height, left + width
    budget = max(_LEAST, round(density * source.tissue_in(box)))
    most = density * height * width
    around = 0 if box == (0, 0, *source.shape) else max(_LEAST_AROUND, round(most * _SHARE_AROUND))
    halved, pool = Halved(turned, _TILES), _Here()
    coarse, whole = handles.view(source, halved, pool, replace(patcher, budget=max(around, 1)), (flip, turns))
    tree = refine_halved(halved, pool, replace(patcher, budget=budget), None, there, coarse)
    tree = merge(tree, whole) if around else tree
    pixels = cut_halved(halved, tree, pool)
    ids = turn(labels.ids(box), flip, turns)
    counts = count_part(ids, (top, left), tree, len(source.labels), source.ignore)
    return Sample(Patches(pixels, tree), counts, source.name)


@dataclass(frozen=True, eq=False)
class SlideWindows(Dataset[Sample]):
    """Random windows of slides, flipped, turned and coloured anew, to train on.

    Sample ``i`` of epoch ``e`` is ``windows[e * length + i]``, as of `patchtree.data.Windows`. A window lies around a
    random place on tissue. Positions are those in the whole slide, flipped and turned as the window is.

    Attributes:
        slides: what to draw from, each with the same chance.
        patcher: its budget is replaced.
        window: side of the windows in pixels; smaller slides are shown whole.
        density: tokens that a pixel of tissue is worth.
        foreground: share of samples that hold a place of a rare class in their middle half, as of `Windows`.
        augment: flip, turn, change colours and the thresholds of edges.
        seed: of everything random.
        length: samples an epoch.
        handles: what is open.
    """

    slides: tuple[SlideSource, ...]
    patcher: Patcher
    window: int
    density: float
    foreground: float = 0.5
    augment: bool = True
    seed: int = 0
    length: int = 256
    handles: Handles = field(default_factory=Handles)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Draw a sample; `index` may exceed the length, see above."""
        rng = np.random.default_rng((self.seed, *divmod(index, self.length)))
        source, box = self.draw(rng)
        if not self.augment:
            sample = read_window(source, box, self.patcher, self.density, self.handles)
        else:
            flip, turns = bool(rng.integers(2)), int(rng.integers(4))
            patcher = replace(self.patcher, detail=vary_detail(self.patcher.detail, rng))
            sample = read_window(source, box, patcher, self.density, self.handles, flip, turns)
            sample = replace(sample, patches=vary_patches(sample.patches, rng))
        # Places are drawn on tissue, so shares are of that.
        shown = sample.counts.sum((0, 1, 2), dtype=np.float64) / max(1.0, source.tissue_in(box))
        return replace(sample, odds=draw_odds(self._pixels, shown, source.pixels / source.area, self.foreground))

    @cached_property
    def _pixels(self) -> NDArray[np.float64]:
        return np.array([slide.pixels for slide in self.slides])

    def draw(self, rng: np.random.Generator) -> tuple[SlideSource, Box]:
        """Choose a slide and a box that lies inside it."""
        at, label = draw_source(self._pixels, self.foreground, rng)
        source = self.slides[at]
        if label is None:
            target = rng.choice(np.argwhere(source.tissue)) * source.side + rng.integers(source.side, size=2)
        else:
            target = rng.choice(source.places[label])
        room = np.array(source.shape)
        shape = np.minimum(self.window, room)
        y, x = draw_corner(target, shape, room, rng).tolist()
        return source, (y, x, y + int(shape[0]), x + int(shape[1]))


@dataclass(frozen=True, eq=False)
class SlideParts(Dataset[Sample]):
    """Fixed windows of slides as they are, to validate on; see `fixed_windows`.

    Attributes:
        parts: slide, box, and how much the box's labels count.
        patcher: its budget is replaced.
        density: tokens that a pixel of tissue is worth.
        handles: what is open.
    """

    parts: tuple[tuple[SlideSource, Box, float], ...]
    patcher: Patcher
    density: float
    handles: Handles = field(default_factory=Handles)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Sample:
        """Cut a window. An index beyond the last gives one again, with labels that count nothing."""
        source, box, weight = self.parts[index % len(self)]
        sample = read_window(source, box, self.patcher, self.density, self.handles)
        return replace(sample, counts=sample.counts * np.float32(weight if index < len(self) else 0))


def fixed_windows(source: SlideSource, side: int, most: int) -> list[tuple[SlideSource, Box, float]]:
    """Choose windows of a slide to validate on, from a grid over its tissue that leaves no gaps and no overlaps.

    All of them if they are no more than `most`. Otherwise half of those chosen have a place of a rare class, as far as
    there are so many, half have none, and each counts for as many as there are of its kind: sums over the windows
    chosen estimate those over all.

    Args:
        source: the slide.
        side: of the windows in pixels.
        most: of the windows.

    Returns:
        Slide, box and weight of each.
    """
    height, width = source.shape
    cells = [
        (y, x, min(y + side, height), min(x + side, width))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]
    boxes = [box for box in cells if source.tissue_in(box)]
    if len(boxes) <= most:
        return [(source, box, 1.0) for box in boxes]
    rare = [places for label, places in enumerate(source.places) if label != source.pixels.argmax()]
    marked = {(y, x) for y, x in (np.concatenate([np.zeros((0, 2), int), *rare]) // side * side).tolist()}
    having = [box for box in boxes if box[:2] in marked]
    others = [box for box in boxes if box[:2] not in marked]
    share = min(len(having), max(most // 2, most - len(others)))
    chosen = []
    for group, count in ((having, share), (others, most - share)):
        picked = np.unique(np.linspace(0, len(group) - 1, count).round().astype(int)).tolist() if count else []
        chosen += [(source, group[at], len(group) / len(picked)) for at in picked]
    return sorted(chosen, key=lambda part: part[1])


class SlideModule(DataModule):
    """A training's data where images are slides: windows of one part, fixed windows of the other.

    Nothing is decoded beforehand: `setup` looks at the slides, and samples are read from them.

    Attributes:
        slides: what is trained on, once `setup` was called.
    """

    slides: tuple[SlideSource, ...] = ()

    def prepare_data(self) -> None:
        """Do nothing."""

    def setup(self, stage: str | None = None) -> None:
        """Look at the slides, choose the density and measure the normalisation; a second call changes nothing."""
        if self.windows is not None:
            return
        slides, held_out = (look_at(part) for part in (self.train, self.val))
        self.channels, self.dtype, self.slides = slides[0].channels, slides[0].dtype, slides
        if self.density is None:
            self.density = density_of(slides, self.patcher)
        if self.mean is None or self.std is None:
            self.mean, self.std = statistics(slides)
        self.windows = SlideWindows(
            slides,
            self.patcher,
            self.window,
            self.density,
            foreground=self.foreground,
            augment=self.augment,
            seed=self.seed,
            length=self.samples,
        )
        fewest, most = _OF_EACH
        each = min(most, max(fewest, _VALIDATED // len(held_out)))
        parts = [part for source in held_out for part in fixed_windows(source, self.window, each)]
        self.whole = SlideParts(tuple(parts), self.patcher, self.density)

    def teardown(self, stage: str) -> None:
        """Close what is open."""
        for samples in (self.windows, self.whole):
            if isinstance(samples, SlideWindows | SlideParts):
                samples.handles.close()


class _Here(Executor):
    """Works on what it is given at once, in the thread that gives it: a process that makes samples has one core."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Work on it."""
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done
