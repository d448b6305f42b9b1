"""A slide as the pyramid that trees are made for: level 0 halved again and again, whatever levels the file has."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError
from patchtree.io.slides import Slide, level_for
from patchtree.pyramid import CV_CHANNELS

CACHE_BYTES = 256 << 20
# How a level is read, its shape, and its downsample.
_Source = tuple[Callable[..., NDArray[Any]], tuple[int, int], tuple[float, float]]
# More than this is never read at once, for pixels that are averaged from many.
_PIXELS_AT_ONCE = 1 << 22
# Thinner tiles, such as the strips of scanned lines, are read several at a time.
_LEAST_TILE = 64


class Halved:
    """Reads level ``l`` of a slide as level 0 halved ``l`` times, from the coarsest of its own levels that will do.

    A pixel is the mean of the slide's pixels under it; at the far border only those inside the slide count. Levels that
    the file has are given as they are, in its type; those made of finer ones are floats. Safe to use from several
    threads; a tile that is asked for twice is decoded once, as long as it stays among the last `cache` bytes.

    Attributes:
        slide: what is read.
    """

    def __init__(self, slide: Slide, cache: int = CACHE_BYTES) -> None:
        self.slide = slide
        self._tiles = _Tiles(slide, cache)
        self._kept: tuple[int, NDArray[Any]] | None = None
        self._sources: dict[int, _Source] = {}

    @property
    def kept(self) -> tuple[int, NDArray[Any]] | None:
        """A level that is held, and its pixels."""
        return self._kept

    def shape(self, level: int) -> tuple[int, int]:
        """Give the shape of a level, (H, W)."""
        height, width = self.slide.shape
        return -(-height >> level), -(-width >> level)

    def tile(self, level: int) -> int:
        """Give the side, in pixels of a level, of the parts that are best read whole."""
        source = level_for(self.slide, 1 << level)
        factor = (1 << level) / max(self.slide.levels[source].downsample)
        return max(1, round(min(self._tiles.shape(source)) / factor))

    def keep(self, level: int, values: NDArray[Any]) -> None:
        """Hold a level that was read whole, for it and coarser ones to be made of."""
        self._kept = level, values
        self._sources.clear()

    def read(self, level: int, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """Read the part of a box that lies inside the level, (h, w, C), not to be written to."""
        (height, width), step = self.shape(level), 1 << level
        y0, x0, y1, x1 = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
        read, shape, down = self._source(level)
        top, bottom = _span(y0, y1, step / down[0], shape[0])
        left, right = _span(x0, x1, step / down[1], shape[1])
        if (bottom - top) * (right - left) > _PIXELS_AT_ONCE and max(y1 - y0, x1 - x0) > 1:
            middle, centre = (y0 + y1) // 2, (x0 + x1) // 2
            wide = x1 - x0 > y1 - y0
            near = (y0, x0, y1, centre) if wide else (y0, x0, middle, x1)
            far = (y0, centre, y1, x1) if wide else (middle, x0, y1, x1)
            return np.concatenate([self.read(level, *near), self.read(level, *far)], axis=int(wide))
        pixels = read(top, left, bottom, right)
        factor = max(1, round(step / down[0]))
        nested = factor * down[0] == factor * down[1] == step
        if nested and factor == 1:
            beyond = (y1 - y0 - len(pixels), x1 - x0 - pixels.shape[1])
            return np.pad(pixels, ((0, beyond[0]), (0, beyond[1]), (0, 0)), "edge") if any(beyond) else pixels
        small = pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32
        pixels = pixels.astype(np.float32 if small else np.float64, copy=False)
        inside = y1 * step <= self.slide.shape[0] and x1 * step <= self.slide.shape[1]
        if nested and inside and pixels.shape[:2] == ((y1 - y0) * factor, (x1 - x0) * factor):
            return _mean(pixels, factor)
        rows = _shares((y0, y1), step, (top, bottom), down[0], self.slide.shape[0]).astype(pixels.dtype)
        columns = _shares((x0, x1), step, (left, right), down[1], self.slide.shape[1]).astype(pixels.dtype)
        return np.asarray(np.matmul(columns, np.tensordot(rows, pixels, axes=1)))

    def _source(self, level: int) -> _Source:
        """Give what a level is made of: how it is read, its shape, and its downsample."""
        if level not in self._sources:
            index = level_for(self.slide, 1 << level)
            stored = self.slide.levels[index]
            self._sources[level] = partial(self._tiles.read, index), stored.shape, stored.downsample
            if self._kept is not None and max(stored.downsample) < 1 << self._kept[0] <= 1 << level:
                at, values = self._kept
                down = float(1 << at), float(1 << at)
                self._sources[level] = lambda y0, x0, y1, x1: values[y0:y1, x0:x1], self.shape(at), down
        return self._sources[level]


def by_part(index: NDArray[np.integer[Any]], side: int) -> list[tuple[tuple[int, int], NDArray[np.int64]]]:
    """Group cells, ``(M, 2)``, by the squares of `side` cells that they lie in, row by row.

    >>> by_part(np.array([[5, 0], [0, 1], [4, 1]]), side=4)
    [((0, 0), array([1])), ((1, 0), array([0, 2]))]

    Returns:
        For each square that has cells its row and column, and the cells' numbers in order.
    """
    if not len(index):
        return []
    rows, columns = (index // side).astype(np.int64).T
    width = int(columns.max()) + 1
    # One number a square: rows of two are sorted as records, at ten times the cost.
    key = rows * width + columns
    order = np.argsort(key, kind="stable")
    first = np.flatnonzero(np.diff(key[order], prepend=-1))
    squares = key[order[first]].tolist()
    return [(divmod(square, width), cells) for square, cells in zip(squares, np.split(order, first[1:]), strict=True)]


def threads(workers: int | None) -> ThreadPoolExecutor:
    """Start threads, one a core that this process may use if it is not said how many."""
    if workers is None:
        cores = getattr(os, "sched_getaffinity", None)
        workers = len(cores(0)) if cores else os.cpu_count() or 1
    if workers < 1:
        raise InputError(f"{workers} workers are not possible; give at least 1")
    return ThreadPoolExecutor(workers)


class _Tiles:
    """The last tiles of a slide that were read, for several threads."""

    def __init__(self, slide: Slide, limit: int) -> None:
        self.slide, self.limit, self.bytes = slide, limit, 0
        self.lock = Lock()
        self.held: OrderedDict[tuple[int, int, int], Future[NDArray[Any]]] = OrderedDict()

    def shape(self, level: int) -> tuple[int, int]:
        """Give the shape of what is read at once: a tile, or several thin ones."""
        height, width = (-(-_LEAST_TILE // side) * side for side in self.slide.levels[level].tile)
        return height, width

    def read(self, level: int, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        height, width = self.shape(level)
        rows, columns = range(y0 // height, -(-y1 // height)), range(x0 // width, -(-x1 // width))
        if len(rows) == len(columns) == 1:
            top, left = y0 - rows[0] * height, x0 - columns[0] * width
            return self._get(level, rows[0], columns[0])[top : top + y1 - y0, left : left + x1 - x0]
        out = np.empty((y1 - y0, x1 - x0, self.slide.channels), self.slide.dtype)
        for row in rows:
            for column in columns:
                top, left = row * height - y0, column * width - x0
                tile = self._get(level, row, column)[max(0, -top) :, max(0, -left) :]
                part = out[max(0, top) : top + height, max(0, left) : left + width]
                part[:] = tile[: len(part), : part.shape[1]]
        return out

    def _get(self, level: int, row: int, column: int) -> NDArray[Any]:
        key = level, row, column
        with self.lock:
            known = self.held.get(key)
            if known is not None:
                self.held.move_to_end(key)
            else:
                mine = self.held[key] = Future()
        if known is not None:
            return known.result()
        (height, width), (bottom, right) = self.shape(level), self.slide.levels[level].shape
        top, left = row * height, column * width
        try:
            tile = self.slide.read(level, top, left, min(top + height, bottom), min(left + width, right))
        except BaseException as error:
            with self.lock:
                self.held.pop(key, None)
            mine.set_exception(error)
            raise
        with self.lock:
            mine.set_result(tile)
            if self.held.get(key) is mine:
                self.bytes += tile.nbytes
            while self.bytes > self.limit:
                _, oldest = self.held.popitem(last=False)
                self.bytes -= oldest.result().nbytes if oldest.done() else 0
        return tile


def _span(start: int, stop: int, ratio: float, length: int) -> tuple[int, int]:
    """Give the pixels of a level under a span of one that is so many times coarser, at least one."""
    low = min(math.floor(start * ratio), length - 1)
    return low, max(low + 1, min(math.ceil(stop * ratio), length))


def _shares(span: tuple[int, int], step: int, finer: tuple[int, int], down: float, length: int) -> NDArray[np.float64]:
    """Give what share each pixel of a finer level has in each pixel of a span, ``(stop - start, pixels)``."""
    low, near = np.arange(*span)[:, None] * float(step), np.arange(*finer) * down
    overlap = np.minimum(np.minimum(low + step, near + down), length) - np.maximum(low, near)
    overlap = np.maximum(overlap, 0)
    # A level may end up to a pixel before the slide does: then its last pixel goes on.
    overlap[overlap.sum(axis=1) == 0, -1] = 1
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True))


def _mean(pixels: NDArray[Any], factor: int) -> NDArray[Any]:
    """Average blocks of `factor` pixels along both axes."""
    import cv2

    height, width, channels = pixels.shape
    if channels > CV_CHANNELS:
        blocks = pixels.reshape(height // factor, factor, width // factor, factor, channels)
        return np.asarray(blocks.mean((1, 3), dtype=pixels.dtype))
    size = (width // factor, height // factor)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)).reshape(*size[::-1], channels)
