"""Memory that a process has got from the system, kept for what it needs next."""

from __future__ import annotations

import ctypes
import platform

# Numbers of glibc's options, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# The arrays of a layer are smaller; older releases of glibc take no more than the second.
_LARGEST, _LARGEST_ONCE = 1 << 27, 1 << 25
_KEPT = 1 << 29


def keep_memory() -> None:
    """Let glibc's allocator keep the room of arrays of up to 128 MiB that are freed; others are left as they are.

    A model's layers each make large arrays and drop them. Without this their pages go back to the system, which clears
    them before it hands them out again. What is free at the heap's end goes back from 512 MiB on, and between arrays
    that are in use it stays.

    >>> keep_memory()
    """
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        # A limit for what is kept without one for what is large would make all arrays large.
        if any(allocator.mallopt(_MMAP_THRESHOLD, size) for size in (_LARGEST, _LARGEST_ONCE)):
            allocator.mallopt(_TRIM_THRESHOLD, _KEPT)
