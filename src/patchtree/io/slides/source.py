"""Bytes of a file or of what a URL names, for many threads and processes at once."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from patchtree.errors import InputError

T = TypeVar("T")
Range = tuple[int, int]  # offset, count


def is_url(path: str) -> bool:
    """Whether a path is for fsspec to open.

    >>> is_url("s3://bucket/slide.tif"), is_url("C:/slides/slide.tif")
    (True, False)
    """
    return "://" in path


class Source(Protocol):
    """Where the bytes of a file are."""

    def opened(self) -> Any:
        """Give a path or an open file, for a library that wants one."""

    def fetch(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read ranges of bytes; those past the end come short."""

    def close(self) -> None:
        """Let go of the file."""


class LocalFile:
    """A file read without a position of its own, so that threads and forked processes do not disturb each other."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, os.close, self._file)

    def opened(self) -> str:
        """Give the path."""
        return self._path

    def fetch(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read ranges of bytes; those past the end come short."""
        if not self.close.alive:
            raise ValueError(f"{self._path} is closed")
        return [self._read(offset, count) for offset, count in ranges]

    if hasattr(os, "pread"):

        def _read(self, offset: int, count: int) -> bytes:
            return os.pread(self._file, count, offset)

    else:  # Windows

        def _read(self, offset: int, count: int) -> bytes:
            with self._lock:
                os.lseek(self._file, offset, os.SEEK_SET)
                return os.read(self._file, count)


class RemoteFile:
    """What a URL names, in ranges that fsspec fetches together."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._system = PerProcess(lambda: file_system(url))
        if not self._system.get()[0].isfile(self._system.get()[1]):
            raise InputError(f"{url}: no such file; check the URL and that you may read it")

    def opened(self) -> Any:
        """Give an open file."""
        system, path = self._system.get()
        return system.open(path, "rb")

    def fetch(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read ranges of bytes; those past the end come short."""
        system, path = self._system.get()
        starts, ends = [offset for offset, _ in ranges], [offset + count for offset, count in ranges]
        return list(system.cat_ranges([path] * len(ranges), starts, ends, on_error="raise"))

    def close(self) -> None:
        """Do nothing: between two calls nothing is open."""


def open_source(path: str) -> Source:
    """Find a file's bytes.

    Raises:
        InputError: there is no such file, or nothing installed can open the URL.
    """
    if is_url(path):
        return RemoteFile(path)
    try:
        return LocalFile(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {os.strerror(error.errno or 0).lower()}; check the file") from error


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it.

    Raises:
        InputError: fsspec, or what it needs for this kind of URL, is not installed; or the URL cannot be reached.
    """
    try:
        import fsspec  # type: ignore[import-untyped]

        system, path = fsspec.core.url_to_fs(url)
    except Exception as error:  # what connects at once throws anything
        raise InputError(
            f"{url}: cannot be opened ({' '.join(str(error).split())}); pip install fsspec and what it names "
            "(s3fs for s3://, gcsfs for gs://), or copy the file here"
        ) from error
    return system, path


class PerProcess(Generic[T]):
    """Something that does not survive a fork, made anew in each process that asks for it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[int, T] = {}

    def get(self) -> T:
        """Give this process's own."""
        process = os.getpid()
        if process not in self._made:
            self._made.setdefault(process, self._make())
        return self._made[process]

    def drop(self) -> T | None:
        """Give up this process's own, so that the next `get` makes another."""
        return self._made.pop(os.getpid(), None)
