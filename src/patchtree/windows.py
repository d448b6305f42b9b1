"""Windows to train on: random parts of images, turned and varied, as samples that depend on seed and number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from patchtree.augment import Window, place, take, vary_colours, vary_detail, vary_patches, vary_window
from patchtree.budget import with_budget
from patchtree.cache import Cached
from patchtree.draws import draw_corner, draw_odds, draw_source
from patchtree.errors import InputError
from patchtree.mips import align, cut_window, open_mips, suits
from patchtree.patcher import Patcher, Patches
from patchtree.samples import NO_COUNTS, Sample, cut_sample


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
        corner: Sequence[int],
        shape: Sequence[int],
        fraction: float,
        rng: np.random.Generator,
    ) -> Sample:
        """Cut a window, augmented, at this fraction of the density; corner and shape are of a window in the image."""
        part = Window.of(corner, shape)
        if self.augment:
            part = vary_window(part, rng)
        patcher = self.patcher_for(shape, fraction, rng)
        if self.levels and suits(patcher, part, source.channels):
            return self._cut_levels(source, align(part), patcher, rng)
        image = take(source.image(), part)
        mask = take(source.mask(), part, ids=True) if self.classes else None
        image = vary_colours(image, rng) if self.augment else image
        at = place(part, (source.shape[0], source.shape[1]))
        return cut_sample(patcher, image, mask, source.name, self.classes, self.ignore, *at)

    def patcher_for(self, shape: Sequence[int], fraction: float, rng: np.random.Generator) -> Patcher:
        """Give the patcher of a window of this shape: its budget at this fraction of the density, its detail varied."""
        patcher = with_budget(self.patcher, tuple(shape), self.density * fraction)
        return replace(patcher, detail=vary_detail(patcher.detail, rng)) if self.augment else patcher

    def _cut_levels(self, source: Cached, part: Window, patcher: Patcher, rng: np.random.Generator) -> Sample:
        pixels, tree, counts = cut_window(open_mips(source), part, patcher, self.classes, self.ignore)
        patches = Patches(pixels, tree, *place(part, (source.shape[0], source.shape[1])))
        patches = vary_patches(patches, rng) if self.augment else patches
        return Sample(patches, counts if self.classes else NO_COUNTS, source.name)

    @cached_property
    def _pixels(self) -> NDArray[np.int64]:
        return np.array([image.pixels for image in self.images])

    def draw(self, rng: np.random.Generator, fraction: float = 1.0) -> tuple[Cached, list[int], list[int]]:
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
        return source, corner.tolist(), shape.tolist()
