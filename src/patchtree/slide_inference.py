"""Inference on whole slides: a predictor and a slide in, a pyramid of class ids out, in bounded memory."""

from __future__ import annotations

import ctypes
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from patchtree.blend import Blend, Layer
from patchtree.errors import InputError
from patchtree.files import replacing
from patchtree.foveate import Window, merge, plan_windows
from patchtree.ids import Ids, count_ids, type_of
from patchtree.io.colours import class_colours
from patchtree.io.probabilities import BLOCK, write_probabilities
from patchtree.io.pyramids import TILE, write_class_map
from patchtree.io.regions import Regions
from patchtree.io.slides import Slide
from patchtree.io.slides.base import Box, overlap
from patchtree.patcher import Patcher, Patches
from patchtree.slides.cut import cut_halved
from patchtree.slides.halved import Halved, threads
from patchtree.slides.lazy import finest_level, opened, refine_halved
from patchtree.slides.lenient import Lenient
from patchtree.tree import Tree, cover_level, grid_shape

if TYPE_CHECKING:
    from patchtree.runs import RunConfig

T = TypeVar("T")
U = TypeVar("U")

Progress = Callable[[str, int, int], None]
Read = Callable[[int, int, int, int], NDArray[Any]]

# The most tokens of a sequence.
TOKENS = 4096
# Tissue is found with a tree of so many leaves, in cells of at least so many pixels.
_LOOK = 65536
_CELL = 512
# Finished regions of the output are squares of this side in pixels.
_SIDE = 2048
# Pixels that are painted in one go by one thread.
_STRIPE = 4096
# Pixels of a band of rows that waits to be written.
_BAND = 1 << 26
# Bytes of layers that are held for regions to come, and of tiles.
_HELD = 128 << 20
_CACHE = 128 << 20
_BAD_TILES = "bad-tiles.txt"


class InPatches(Protocol):
    """What predicts: see `patchtree.inference.Predictor`."""

    @property
    def config(self) -> RunConfig:
        """What the run is."""

    @property
    def smooth(self) -> bool:
        """Whether probabilities are interpolated between patch pixels."""

    def in_patches(self, patches: Patches) -> NDArray[np.float32]:
        """Predict the probability of each class at every patch pixel of one image, ``(N, p, p, K)``."""

    def check(self, channels: int, dtype: np.dtype[Any]) -> None:
        """Refuse images of another kind than those that the run was trained on."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How a slide is looked at.

    Attributes:
        tissue: cells of `side` pixels where there is something to see, ``(ceil(H / side), ceil(W / side))``.
        side: of a cell in pixels.
        windows: what is predicted, each in a sequence of its own.
    """

    tissue: NDArray[np.bool_]
    side: int
    windows: tuple[Window, ...]


def predict_slide(
    predictor: InPatches,
    slide: Slide,
    out: str | os.PathLike[str],
    *,
    key: str = "",
    probabilities: str | os.PathLike[str] | None = None,
    ome: bool = False,
    min_mpp: float | None = None,
    tokens: int = TOKENS,
    workers: int | None = None,
    resume: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Predict the class of every pixel of a slide, and write the ids as a pyramid of the slide's size.

    Tissue is where refining by residual opens cells of 512 pixels or more; what lies further from it than a cell is of
    class 0. If `tokens` resolve all tissue at the run's density, the slide is one sequence. Otherwise windows cover the
    tissue (see `patchtree.foveate`), each refined inside and coarse around, and overlapping windows are blended.

    Each window that is finished is kept beside the output until the regions that it covers are finished, and these
    until the output is whole. So a run that was killed goes on with ``resume``, to the same bytes.

    Args:
        predictor: such as `patchtree.inference.load` gives.
        slide: what `open_slide` gave; as `patchtree.slides.lenient.Lenient`, what cannot be read of it is background.
        out: the file to write, a TIFF; its folder exists.
        key: what else the prediction depends on, such as the model; what was begun with another is not gone on with.
        probabilities: an OME-Zarr folder to write the probabilities to as well, in 8 bits; that takes much longer.
        ome: write an OME-TIFF instead of a plain tiled pyramid.
        min_mpp: micrometres along a pixel of the finest patches; the run's density is then that of such pixels.
        tokens: the most of a sequence.
        workers: threads that read and paint; None: one a core. The result does not depend on it.
        resume: go on with what is there.
        progress: told ``"windows"``, the number of those done and that of all; then, likewise, of the parts of the
            output, ``"writing"`` and ``"probabilities"``.

    Returns:
        ``windows`` (their number), ``tissue`` (share of the area), ``pixels`` (of each class name).

    Raises:
        InputError: the slide is of another kind than the run's images, cannot be read, or the output cannot be written.
    """
    config, out = predictor.config, Path(out)
    try:
        predictor.check(slide.channels, slide.dtype)
    except InputError as error:
        raise InputError(f"{slide.path}: {error}") from error
    shape, classes = slide.shape, len(config.labels)
    about = f"{key}; {shape}, tokens {tokens}, min_mpp {min_mpp}, smooth {predictor.smooth}, density {config.density}"
    regions = Regions.open(out, shape, about, _SIDE, type_of(classes), resume=resume)
    if isinstance(slide, Lenient):
        slide.keep_log(regions.folder / _BAD_TILES)
    halved = Halved(slide, _CACHE)
    with threads(workers) as pool:
        view = _View(halved, pool, replace(Patcher.from_dict(config.patcher), max_level=None), min_mpp)
        plan = view.plan(config.density, min(tokens, config.most))
        work = _Work(plan, regions, predictor.smooth, pool, probabilities is not None)
        todo = work.todo()
        total = len(plan.windows)
        progress("windows", total - len(todo), total)
        ready = _ahead(lambda at: view.patches(plan.windows[at]), todo)
        for done, (at, patches) in enumerate(zip(todo, ready, strict=True), total - len(todo) + 1):
            work.finish(at, patches.tree, predictor.in_patches(patches))
            _give_back()
            progress("windows", done, total)
        work.finish_regions()
        counts = work.write(out, slide.mpp, ome, classes, progress)
        if probabilities is not None:
            work.write_probabilities(Path(probabilities), slide.mpp, config.labels, progress)
    if isinstance(slide, Lenient):
        slide.keep_log(None)
    regions.remove()
    return {
        "windows": total,
        "tissue": float(plan.tissue.mean()),
        "pixels": {name: counts[label] for name, label in config.labels.items()},
    }


def find_tissue(halved: Halved, pool: Executor, patch_size: int) -> tuple[NDArray[np.bool_], int]:
    """Find the cells of a slide that have anything in them: a grid of cells, and a cell's side in pixels."""
    shape = halved.slide.shape
    top = cover_level(shape, patch_size)
    level = 0
    while level < top and (
        patch_size << level < _CELL or 4 * math.prod(grid_shape(shape, patch_size << level)) > _LOOK
    ):
        level += 1
    if not level:
        return np.ones((1, 1), bool), patch_size
    tree = refine_halved(halved, pool, Patcher(patch_size, _LOOK, detail="residual"))
    return opened(tree, level), patch_size << level


class _View:
    """Makes the sequences of a slide."""

    def __init__(self, halved: Halved, pool: Executor, patcher: Patcher, min_mpp: float | None) -> None:
        self.halved, self.pool, self.patcher, self.min_mpp = halved, pool, patcher, min_mpp
        self._whole: Tree | None = None

    def plan(self, density: float, tokens: int) -> Plan:
        """Plan the windows."""
        tissue, side = find_tissue(self.halved, self.pool, self.patcher.patch_size)
        coarser = finest_level(self.halved.slide, self.min_mpp)
        windows = plan_windows(tissue, side, self.halved.slide.shape, density / 4**coarser, tokens)
        return Plan(tissue, side, windows)

    def patches(self, window: Window) -> Patches:
        """Make the sequence of a window."""
        tree = self._refine(window.budget, window.box)
        if window.around:
            if self._whole is None:
                self._whole = self._refine(window.around, None)
            tree = merge(tree, self._whole)
        return Patches(cut_halved(self.halved, tree, self.pool), tree)

    def _refine(self, budget: int, box: Box | None) -> Tree:
        return refine_halved(self.halved, self.pool, replace(self.patcher, budget=budget), self.min_mpp, box)


class _Work:
    """What is done of a slide, and what is not."""

    def __init__(self, plan: Plan, regions: Regions, smooth: bool, pool: Executor, all_windows: bool) -> None:
        self.plan, self.regions, self.smooth, self.pool = plan, regions, smooth, pool
        self.all_windows = all_windows
        self.shown = _grow(plan.tissue)
        covered = [self._covered(window) for window in plan.windows]
        # A single window is painted when the output is written.
        self.kept = len(plan.windows) > 1
        self.windows_of: dict[int, list[int]] = {}
        for at, places in enumerate(covered):
            for place in places:
                self.windows_of.setdefault(place, []).append(at)
        self.done_regions = {place for place in self.windows_of if self.kept and regions.done(place)}
        self._layers: OrderedDict[int, Layer] = OrderedDict()
        self._done: set[int] = set()

    def todo(self) -> list[int]:
        """Number the windows that are not finished and that an unfinished region needs."""
        needed = sorted(self._needed())
        self._done = {at for at in needed if self._load(at)}
        return [at for at in needed if at not in self._done]

    def finish(self, at: int, tree: Tree, shares: NDArray[np.float32]) -> None:
        """Keep what was predicted for a window, and finish the regions that have waited for it."""
        with replacing(self._file(at)) as temporary, temporary.open("wb") as file:
            np.savez(file, tree=np.frombuffer(tree.to_bytes(), np.uint8), shares=shares)
        self._hold(at, Layer(self.plan.windows[at], tree, shares, self.smooth))
        self._done.add(at)
        self.finish_regions()

    def finish_regions(self) -> None:
        """Finish all regions whose windows are finished, and let go of windows that no other region needs."""
        if not self.kept:
            return
        ready = [place for place in self._missing() if self._done.issuperset(self.windows_of[place])]
        for place in ready:
            blend = self._blend(self.windows_of[place])
            y0, x0, y1, x1 = box = self.regions.box(place)
            ids: Ids = np.empty((y1 - y0, x1 - x0), self.regions.dtype)
            self._paint(ids, blend, box)
            self.regions.put(place, ids)
            self.done_regions.add(place)
        for at in sorted(self._done - self._needed()):
            self._layers.pop(at, None)
            self._file(at).unlink(missing_ok=True)

    def write(
        self, out: Path, mpp: tuple[float, float] | None, ome: bool, classes: int, progress: Progress
    ) -> list[int]:
        """Write the output; gives the pixels of each class."""
        height, width = self.regions.shape
        counts = np.zeros(classes, np.int64)
        direct = self._blend([0]) if self.windows_of and not self.kept else None
        rows = _SIDE if self.kept else max(1, _BAND // (TILE * width)) * TILE
        # One is made while the other is written: new ones would cost more than what is done with them.
        both = np.empty((2, min(rows, height), width), self.regions.dtype)
        # The class of each tile of one class, else -1; these are not painted.
        plain = np.full(grid_shape((height, width), TILE), -1, np.int32)

        def rows_of(band: Box) -> Ids:
            y0, _, y1, _ = band
            ids: Ids = both[y0 // rows % 2, : y1 - y0]
            if direct is not None:
                counts[:] += self._paint(ids, direct, band, plain[y0 // TILE : -(-y1 // TILE)])
                return ids
            ids[:] = 0
            for place in sorted(self.done_regions):
                box = self.regions.box(place)
                if overlap(box, band):
                    top, left, bottom, right = box
                    part = ids[top - y0 : bottom - y0, left:right]
                    part[:] = self.regions.read(*box)
                    counts[:] += count_ids(part, classes)
            return ids

        bands = [(top, 0, min(top + rows, height), width) for top in range(0, height, rows)]
        with closing(_ahead(rows_of, bands)) as ready:
            read = _counted(lambda *_: next(ready), "writing", len(bands), progress)
            options: dict[str, Any] = {"mpp": mpp, "ome": ome, "rows": rows, "plain": plain.__getitem__}
            write_class_map(out, (height, width), read, self.regions.dtype, **options)
        counts[0] = height * width - counts[1:].sum()
        return [int(count) for count in counts]

    def write_probabilities(
        self, out: Path, mpp: tuple[float, float] | None, labels: dict[str, int], progress: Progress
    ) -> None:
        """Write the probabilities of all classes."""

        def read(y0: int, x0: int, y1: int, x1: int) -> NDArray[np.float32]:
            places = {place for place in self.windows_of if overlap(self.regions.box(place), (y0, x0, y1, x1))}
            windows = sorted({at for place in places for at in self.windows_of[place]})
            if windows:
                return self._blend(windows).probabilities((y0, x0, y1, x1))
            glass = np.zeros((y1 - y0, x1 - x0, len(labels)), np.float32)
            glass[..., 0] = 1
            return glass

        blocks = math.prod(grid_shape(self.regions.shape, BLOCK))
        counted = _counted(read, "probabilities", blocks, progress)
        write_probabilities(out, self.regions.shape, counted, list(labels), class_colours(labels), mpp)

    def _missing(self) -> list[int]:
        return sorted(self.windows_of.keys() - self.done_regions)

    def _needed(self) -> set[int]:
        """Number the windows that must be at hand."""
        places = self.windows_of if self.all_windows else self._missing()
        return {at for place in places for at in self.windows_of[place]}

    def _covered(self, window: Window) -> Iterator[int]:
        """Number the regions that a window covers and that have tissue."""
        y0, x0, y1, x1 = window.box
        columns = -(-self.regions.shape[1] // _SIDE)
        for row in range(y0 // _SIDE, -(-y1 // _SIDE)):
            for column in range(x0 // _SIDE, -(-x1 // _SIDE)):
                place = row * columns + column
                top, left, bottom, right = self.regions.box(place)
                side = self.plan.side
                cells = (
                    slice(max(top, y0) // side, -(-min(bottom, y1) // side)),
                    slice(max(left, x0) // side, -(-min(right, x1) // side)),
                )
                if self.shown[cells].any():
                    yield place

    def _paint(self, ids: Ids, blend: Blend, box: Box, plain: NDArray[np.int32] | None = None) -> NDArray[np.int64]:
        """Paint a box in stripes, by several threads; gives the pixels of each class.

        Stripes of one class may be told of instead, in tiles.
        """
        y0, x0, y1, x1 = box

        def stripe(left: int) -> NDArray[np.int64]:
            part = y0, left, y1, min(left + _STRIPE, x1)
            kind = blend.kind(part) if plain is not None else None
            if plain is None or kind is None:
                return blend.fill(ids[:, left - x0 : part[3] - x0], part)
            plain[:, left // TILE : -(-part[3] // TILE)] = kind
            counts = np.zeros(blend.classes, np.int64)
            counts[kind] = (y1 - y0) * (part[3] - left)
            return counts

        return np.asarray(np.sum(list(self.pool.map(stripe, range(x0, x1, _STRIPE))), axis=0))

    def _blend(self, windows: Iterable[int]) -> Blend:
        return Blend([self._layer(at) for at in windows], self.shown, self.plan.side)

    def _layer(self, at: int) -> Layer:
        if at not in self._layers:
            loaded = self._load(at)
            if loaded is None:
                raise InputError(f"{self._file(at)}: missing or damaged; run again with --resume")
            self._hold(at, Layer(self.plan.windows[at], *loaded, self.smooth))
        self._layers.move_to_end(at)
        return self._layers[at]

    def _hold(self, at: int, layer: Layer) -> None:
        self._layers[at] = layer
        while len(self._layers) > 1 and sum(held.nbytes for held in self._layers.values()) > _HELD:
            self._layers.popitem(last=False)

    def _load(self, at: int) -> tuple[Tree, NDArray[np.float32]] | None:
        """Read what was kept of a window; None if it is not there, or damaged."""
        try:
            with np.load(self._file(at), allow_pickle=False) as file:
                return Tree.from_bytes(file["tree"].tobytes()), file["shares"]
        except (OSError, ValueError, LookupError, EOFError, BadZipFile):
            return None

    def _file(self, at: int) -> Path:
        return self.regions.folder / f"window-{at:06d}.npz"


def _grow(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Add the cells next to tissue."""
    import cv2

    return cv2.dilate(tissue.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def _give_back() -> None:
    """Give freed memory back to the system: sequences of ever other lengths leave holes that glibc keeps."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return


def _counted(read: Read, what: str, total: int, progress: Progress) -> Read:
    """Tell how often something was read."""
    done = 0

    def counted(y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        nonlocal done
        part = read(y0, x0, y1, x1)
        done += 1
        progress(what, done, total)
        return part

    return counted


def _ahead(work: Callable[[T], U], items: Sequence[T]) -> Generator[U]:
    """Work on items one after the other, on the next while the last is being used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(work, item) for item in items[:1]]
        for following in range(1, len(items) + 1):
            done = waiting.pop().result()
            waiting = [pool.submit(work, item) for item in items[following : following + 1]]
            yield done
