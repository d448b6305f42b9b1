"""Write a slide for benchmarks and tests: a pyramid of JPEG tiles, mostly glass, with stained tissue, and its truth.

Run with ``python bench/make_slide.py slide.tif --mask truth.tif --size 65536``. The tissue is the immunohistochemistry
image that ships inside scikit-image, bent and recoloured until it repeats only every 4,096 pixels: pale where the truth
is 0, stained brown where it is 1. Tiles wholly of one kind are encoded once for each place in that period. Coarser
levels are 2 x 2 means of the pixels of the finer ones before compression. Memory does not grow with the glass or the
inside of the tissue, only with the borders between them.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import time
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from bench.common import load_picture
from numpy.typing import NDArray

from patchtree.files import replacing

GLASS, PALE, STAINED, MIXED = range(4)
LABELS = {"background": 0, "stained": 1}
_PERIOD = 4096  # pixels after which the texture repeats
_CELLS = 1024  # points along the longer side at which the outlines are known; straight between them
_FADE = 12  # pixels of level 0 over which one kind becomes another
_TOP = 512  # pixels: the longer side of the coarsest level is no longer

Pixels = NDArray[np.uint8]
Kinds = NDArray[np.uint8]
Halves = dict[tuple[int, int], Pixels]


class Outlines:
    """Where tissue and stain are: signed distances to their borders, in pixels of level 0, positive inside."""

    def __init__(self, shape: tuple[int, int], tissue: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.step = max(max(shape) / _CELLS, 4.0)
        grid = tuple(int(np.ceil(length / self.step)) + 1 for length in shape)
        y, x = (axis.astype(np.float32) / max(grid) for axis in np.mgrid[: grid[0], : grid[1]])
        pieces = np.full(grid, -9, np.float32)
        for _ in range(4):
            place = rng.uniform(0.2, 0.8, 2) * grid / max(grid)
            pieces = np.maximum(pieces, -np.hypot((y - place[0]) * rng.uniform(0.7, 1.5), x - place[1]))
        pieces += 0.06 * _waves(grid, 0.06, rng)
        inside = pieces > np.quantile(pieces, 1 - tissue)
        spots = _waves(grid, 0.03, rng)
        stained = inside & (spots > np.quantile(spots[inside], 0.6))
        self._fields = [self._distance(inside), self._distance(stained)]

    def _distance(self, inside: NDArray[np.bool_]) -> NDArray[np.float32]:
        near, far = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (inside, ~inside))
        return cv2.GaussianBlur(np.asarray(near - far, np.float32), (0, 0), 2) * np.float32(self.step)

    def at(self, box: tuple[int, int, int, int], scale: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Distances of tissue and stain at the centres of a box's pixels, ``scale`` pixels of level 0 each."""
        y, x = (
            ((np.arange(low, high, dtype=np.float32) + 0.5) * scale / self.step).astype(np.float32)
            for low, high in ((box[0], box[2]), (box[1], box[3]))
        )
        places = np.meshgrid(x, y)
        tissue, stain = (
            cv2.remap(field, *places, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE) for field in self._fields
        )
        return tissue, np.minimum(tissue, stain)

    def kinds(self, shape: tuple[int, int], tile: int) -> Kinds:
        """What each tile of level 0 holds: one kind, or several."""
        out = np.full([-(-length // tile) for length in shape], MIXED, np.uint8)
        for row, column in np.ndindex(*out.shape):
            rows, columns = (
                slice(int(place * tile / self.step), int((place + 1) * tile / self.step) + 2) for place in (row, column)
            )
            tissue, stain = (field[rows, columns] for field in self._fields)
            if tissue.max() < -_FADE:
                out[row, column] = GLASS
            elif tissue.min() > _FADE and stain.max() < -_FADE:
                out[row, column] = PALE
            elif tissue.min() > _FADE and stain.min() > _FADE:
                out[row, column] = STAINED
        return out


class Textures:
    """Pixels of glass, pale and stained tissue at every level; they repeat without a seam."""

    def __init__(self, period: int, levels: int, tile: int, quality: int, seed: int) -> None:
        self.tile, self._quality = tile, quality
        self._levels = [_paint(period, seed)]
        for _ in range(levels - 1):
            last = self._levels[-1]
            self._levels.append(tuple(_halve(kind) if len(kind) > 1 else kind for kind in last))
        self._encoded: dict[tuple[int, ...], bytes] = {}

    def encode(self, pixels: Pixels) -> bytes:
        """JPEG that stands by itself."""
        return imagecodecs.jpeg_encode(
            pixels, self._quality, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
        )

    def encoded(self, kind: int, level: int, row: int, column: int) -> bytes:
        """A tile of one kind, made only once for each place in the period."""
        count = max(1, len(self._levels[level][0]) // self.tile)
        key = kind, level, row % count, column % count
        if key not in self._encoded:
            self._encoded[key] = self.encode(self.crop(*key))
        return self._encoded[key]

    def crop(self, kind: int, level: int, row: int, column: int, size: int | None = None) -> Pixels:
        """The pixels of a tile, or of another size in steps of that size."""
        size = size or self.tile
        texture = self._levels[level][kind]
        y, x = row * size % len(texture), column * size % len(texture)
        if max(y, x) + size <= len(texture):
            return texture[y : y + size, x : x + size]
        rows, columns = (np.arange(place, place + size) % len(texture) for place in (y, x))
        return texture[rows[:, None], columns]


def make_slide(
    path: str | Path,
    mask: str | Path | None = None,
    shape: tuple[int, int] = (65536, 65536),
    tissue: float = 0.15,
    tile: int = 256,
    quality: int = 75,
    mpp: float | None = 0.25,
    seed: int = 0,
) -> None:
    """Write a slide, and its truth as class ids (see ``LABELS``) in a pyramid of the same levels.

    Args:
        path: a TIFF that OpenSlide reads: a page a level, each half the size of the last, rounded down.
        mask: where the truth goes.
        shape: (H, W) of level 0.
        tissue: its share of the area.
        tile: pixels on a side, a power of 2.
        quality: of JPEG.
        mpp: micrometres a pixel in the resolution tags; None writes none.
        seed: the same one gives the same slide.
    """
    levels = 1
    while max(shape) >> (levels - 1) > _TOP:
        levels += 1
    outlines = Outlines(shape, tissue, seed)
    period = min(_PERIOD, max(4 * tile, 1 << (max(shape) // 16).bit_length()))
    textures = Textures(period, levels, tile, quality, seed)
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as writer:
        kinds, finer = outlines.kinds(shape, tile), None
        for level in range(levels):
            halves: Halves = {}
            writer.write(
                _encode_level(level, kinds, finer, halves, outlines, textures),
                shape=(*_floor(shape, level), 3),
                dtype=np.uint8,
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                **_layout(level, tile, mpp),
            )
            finer = kinds, halves
            kinds = _coarser(kinds, _floor(shape, level + 1), tile)
    if mask is not None:
        _write_mask(mask, outlines, shape, levels, tile, mpp)


def _encode_level(
    level: int,
    kinds: Kinds,
    finer: tuple[Kinds, Halves] | None,
    halves: Halves,
    outlines: Outlines,
    textures: Textures,
) -> Iterator[bytes]:
    """Tiles of a level, row by row; those of several kinds leave themselves at half the size in ``halves``."""
    for row, column in np.ndindex(*kinds.shape):
        if (kind := int(kinds[row, column])) != MIXED:
            yield textures.encoded(kind, level, row, column)
            continue
        pixels = _join(finer, textures, level, row, column) if finer else _mix(outlines, textures, row, column)
        halves[row, column] = _halve(pixels)
        yield textures.encode(pixels)


def _mix(outlines: Outlines, textures: Textures, row: int, column: int) -> Pixels:
    """A tile of level 0 across a border: each pixel between the kinds on its two sides."""
    tile = textures.tile
    y, x = row * tile, column * tile
    tissue, stain = (
        np.clip(distance / _FADE + 0.5, 0, 1)[..., None] for distance in outlines.at((y, x, y + tile, x + tile), 1)
    )
    glass, pale, stained = (textures.crop(kind, 0, row, column).astype(np.float32) for kind in (GLASS, PALE, STAINED))
    inside = pale + stain * (stained - pale)
    return np.rint(glass + tissue * (inside - glass)).astype(np.uint8)


def _join(finer: tuple[Kinds, Halves], textures: Textures, level: int, row: int, column: int) -> Pixels:
    """A tile from the four that it covers in the finer level, each at half its size."""
    kinds, halves = finer
    half = textures.tile // 2
    out = np.empty((2 * half, 2 * half, 3), np.uint8)
    for i, j in np.ndindex(2, 2):
        place = 2 * row + i, 2 * column + j
        # What lies beyond the border is cut off by readers.
        kind = int(kinds[place]) if place[0] < kinds.shape[0] and place[1] < kinds.shape[1] else GLASS
        part = halves[place] if kind == MIXED else textures.crop(kind, level, *place, half)
        out[i * half : (i + 1) * half, j * half : (j + 1) * half] = part
    return out


def _coarser(kinds: Kinds, shape: tuple[int, int], tile: int) -> Kinds:
    """The kinds of the tiles of the next level, which is of a shape (H, W)."""
    padded = np.pad(kinds, [(0, count % 2) for count in kinds.shape], mode="edge")
    four = np.stack([padded[i::2, j::2] for i, j in np.ndindex(2, 2)])
    rows, columns = (-(-length // tile) for length in shape)
    return np.where((four == four[0]).all(0), four[0], MIXED)[:rows, :columns].astype(np.uint8)


def _write_mask(
    path: str | Path, outlines: Outlines, shape: tuple[int, int], levels: int, tile: int, mpp: float | None
) -> None:
    """Write ids at every level: what the truth is at the centre of each pixel."""
    flat = [zlib.compress(np.full((tile, tile), label, np.uint8)) for label in range(len(LABELS))]
    kinds = outlines.kinds(shape, tile)

    def tiles(level: int) -> Iterator[bytes]:
        for row, column in np.ndindex(*kinds.shape):
            if (kind := kinds[row, column]) != MIXED:
                yield flat[int(kind == STAINED)]
                continue
            y, x = row * tile, column * tile
            stain = outlines.at((y, x, y + tile, x + tile), 1 << level)[1]
            yield zlib.compress((stain > 0).astype(np.uint8))

    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as writer:
        for level in range(levels):
            writer.write(
                tiles(level),
                shape=_floor(shape, level),
                dtype=np.uint8,
                photometric="minisblack",
                compression="adobe_deflate",
                **_layout(level, tile, mpp),
            )
            kinds = _coarser(kinds, _floor(shape, level + 1), tile)


def _floor(shape: tuple[int, int], level: int) -> tuple[int, int]:
    return shape[0] >> level, shape[1] >> level


def _layout(level: int, tile: int, mpp: float | None) -> dict[str, Any]:
    """What the pages of both files have in common: OpenSlide wants tiles, and all but the first marked as reduced."""
    size = {} if mpp is None else {"resolution": (1e4 / mpp / 2**level,) * 2, "resolutionunit": "CENTIMETER"}
    return {"tile": (tile, tile), "subfiletype": int(level > 0), "metadata": None, "software": False, **size}


@cache
def _paint(period: int, seed: int) -> tuple[Pixels, ...]:
    """Glass, pale and stained tissue that repeat after a period."""
    from skimage.color import hed2rgb, rgb2hed

    rng = np.random.default_rng(seed)
    stains = rgb2hed(load_picture("ihc")).astype(np.float32)
    pale = np.float32([1.3, 1, 0.15]) * stains + np.float32([0, 0.02, 0])
    stained = np.float32([1, 1, 1.3]) * stains + np.float32([0, 0, 0.02])
    bend = [_waves((period, period), 0.1, rng) * (period / 100) for _ in "yx"]
    y, x = np.mgrid[:period, :period].astype(np.float32)
    out = []
    for kind in (pale, stained):
        colours = np.rint(hed2rgb(kind).clip(0, 1) * 255).astype(np.uint8)
        # Mirrored, the image goes on without a seam; a pixel more, so that the last goes over into the first.
        colours = np.concatenate([colours, colours[::-1], colours[:1]])
        colours = np.concatenate([colours, colours[:, ::-1], colours[:, :1]], 1)
        length = np.float32(len(colours) - 1)
        bent = cv2.remap(colours, (x + bend[1]) % length, (y + bend[0]) % length, cv2.INTER_LINEAR)
        light = _waves((period, period), 0.15, rng)
        for channel, share in enumerate((0.024, 0.04, 0.048)):
            bent[..., channel] = np.rint(bent[..., channel] * (0.95 + share * light)).clip(0, 255)
        out.append(bent)
    glass = np.float32([243, 241, 244]) + rng.standard_normal((period, period, 1), np.float32)
    return np.rint(glass).astype(np.uint8), *out


def _waves(shape: tuple[int, ...], width: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise of unit variance that repeats, whose lumps are a share of the longer side wide."""
    side = max(shape)
    fine = min(side, round(8 / width))
    noise = rng.standard_normal((fine, fine), np.float32)
    frequency = np.hypot(np.fft.fftfreq(fine)[:, None], np.fft.rfftfreq(fine)) * fine
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * np.exp(-0.5 * (2 * np.pi * width / 2 * frequency) ** 2), (fine, fine))
    wide = np.pad(smooth / smooth.std(), 2, mode="wrap").astype(np.float32)
    place = (np.arange(side, dtype=np.float32) + 0.5) * (fine / side) + 1.5
    large = cv2.remap(wide, *np.meshgrid(place, place), cv2.INTER_LINEAR)
    return large[: shape[0], : shape[1]]


def _halve(pixels: Pixels) -> Pixels:
    """2 x 2 means of an even number of pixels."""
    return cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the slide, a .tif")
    parser.add_argument("--mask", type=Path, help="where its truth goes, a .tif")
    parser.add_argument("--size", type=int, nargs="+", default=[65536], help="one number, or height and width")
    parser.add_argument("--tissue", type=float, default=0.15, help="share of the area")
    parser.add_argument("--tile", type=int, default=256, help="pixels on a side")
    parser.add_argument("--quality", type=int, default=75, help="of JPEG")
    parser.add_argument("--mpp", type=float, default=0.25, help="micrometres a pixel")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.perf_counter()
    shape = (given.size[0], given.size[-1])
    make_slide(given.path, given.mask, shape, given.tissue, given.tile, given.quality, given.mpp, given.seed)
    size = given.path.stat().st_size / 1e6
    print(f"{given.path}: {shape[0]:,} x {shape[1]:,}, {size:,.0f} MB in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
