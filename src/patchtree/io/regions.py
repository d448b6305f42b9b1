"""Finished parts of an output, kept in a folder beside it, so that a run that was killed can go on."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import DTypeLike, NDArray

from patchtree.errors import InputError
from patchtree.files import replacing

_PLAN = "plan.json"


@dataclass(frozen=True)
class Regions:
    """The regions of an output, each finished or not.

    A region is a square of the image's grid, cut off at its far border. Each is a file of its own that is there when it
    is whole, so several processes may finish regions at once and any of them may be killed.

    >>> import tempfile
    >>> output = Path(tempfile.mkdtemp()) / "ids.tif"
    >>> regions = Regions.open(output, (100, 60), key="model 1, slide 2", side=64)
    >>> for i in regions.missing():
    ...     y0, x0, y1, x1 = regions.box(i)
    ...     regions.put(i, np.full((y1 - y0, x1 - x0), i, np.uint8))
    >>> regions = Regions.open(output, (100, 60), key="model 1, slide 2", side=64, resume=True)
    >>> list(regions.missing()), regions.read(60, 0, 68, 2)[:, 0].tolist()
    ([], [0, 0, 0, 0, 1, 1, 1, 1])
    >>> regions.remove()

    Attributes:
        folder: where they are kept: the output's name and ``.part``.
        shape: (H, W) of the output.
        side: of a region, in pixels.
        dtype: of the values.
        channels: shape of the values of a pixel, () for class ids.
    """

    folder: Path
    shape: tuple[int, int]
    side: int
    dtype: np.dtype[Any]
    channels: tuple[int, ...] = ()
    _held: dict[int, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        output: str | os.PathLike[str],
        shape: tuple[int, int],
        key: str,
        side: int = 2048,
        dtype: DTypeLike = np.uint8,
        channels: tuple[int, ...] = (),
        resume: bool = False,
    ) -> Regions:
        """Begin, or go on with what is there.

        Args:
            output: the file to be made of the regions; its folder exists.
            shape: (H, W) of it.
            key: says all that the values depend on; regions of another key are of no use.
            side: of a region, in pixels.
            dtype: of the values.
            channels: shape of the values of a pixel.
            resume: keep the regions that are finished; else they are removed.

        Raises:
            InputError: the folder cannot be written, or holds regions of another run.
        """
        output = Path(output)
        folder = output.with_name(output.name + ".part")
        regions = cls(folder, (int(shape[0]), int(shape[1])), side, np.dtype(dtype), channels)
        plan = {"key": key, "shape": shape, "side": side, "dtype": regions.dtype.name, "channels": channels}
        text = json.dumps(plan, indent=1)
        if folder.is_dir() and not resume:
            regions.remove()
        if (folder / _PLAN).is_file():
            if (folder / _PLAN).read_text(encoding="utf-8") != text:
                raise InputError(
                    f"{folder}: holds parts of another run (other input, model or options); "
                    "run with what it was begun with, or without --resume"
                )
            return regions
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be created, {error.strerror}; choose another folder") from error
        with replacing(folder / _PLAN) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return regions

    def __len__(self) -> int:
        return self._grid[0] * self._grid[1]

    def box(self, i: int) -> tuple[int, int, int, int]:
        """y0, x0, y1, x1 of a region, numbered row by row."""
        row, column = divmod(i, self._grid[1])
        y0, x0 = row * self.side, column * self.side
        return y0, x0, min(y0 + self.side, self.shape[0]), min(x0 + self.side, self.shape[1])

    def missing(self) -> Iterator[int]:
        """Number the regions that are not finished, or whose file is damaged, in order."""
        for i in range(len(self)):
            if not self.done(i):
                yield i

    def done(self, i: int) -> bool:
        """Whether a region is finished and its file whole."""
        return self._load(i) is not None

    def put(self, i: int, values: NDArray[Any]) -> None:
        """Finish a region.

        Raises:
            InputError: the values have another shape or type, or cannot be written.
        """
        y0, x0, y1, x1 = self.box(i)
        if values.shape != (y1 - y0, x1 - x0, *self.channels) or values.dtype != self.dtype:
            raise InputError(f"{self.folder}: region {i} is not of shape {values.shape} and type {values.dtype}")
        packed = bytes(imagecodecs.zstd_encode(values.tobytes(), level=1))
        with replacing(self._file(i)) as temporary:
            temporary.write_bytes(zlib.crc32(packed).to_bytes(4, "little") + packed)

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        """Put finished regions together, ``(y1 - y0, x1 - x0, ...)``.

        Regions of the rows read last are held, for whoever reads from top to bottom.

        Raises:
            InputError: a region is not finished, or its file is damaged.
        """
        out = np.empty((y1 - y0, x1 - x0, *self.channels), self.dtype)
        wanted = [
            row * self._grid[1] + column
            for row in range(y0 // self.side, -(-y1 // self.side))
            for column in range(x0 // self.side, -(-x1 // self.side))
        ]
        for i in [i for i in self._held if i not in wanted]:
            del self._held[i]
        for i in wanted:
            top, left, bottom, right = self.box(i)
            if i not in self._held:
                values = self._load(i)
                if values is None:
                    raise InputError(f"{self._file(i)}: missing or damaged; run again with --resume")
                self._held[i] = values
            rows, columns = slice(max(y0, top), min(y1, bottom)), slice(max(x0, left), min(x1, right))
            part = self._held[i][rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            out[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0] = part
        return out

    def remove(self) -> None:
        """Remove the folder, once the output is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _grid(self) -> tuple[int, int]:
        return -(-self.shape[0] // self.side), -(-self.shape[1] // self.side)

    def _file(self, i: int) -> Path:
        return self.folder / f"{i:06d}.zst"

    def _load(self, i: int) -> NDArray[Any] | None:
        try:
            data = self._file(i).read_bytes()
        except FileNotFoundError:
            return None
        if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
            return None
        y0, x0, y1, x1 = self.box(i)
        values = np.frombuffer(imagecodecs.zstd_decode(data[4:]), self.dtype)
        return values.reshape(y1 - y0, x1 - x0, *self.channels)
