"""What the command line asks of the system for all of its process."""

from __future__ import annotations

import ctypes
import os
import platform

# Numbers of glibc's options, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# The arrays of a layer are smaller; older releases of glibc take no more than the second.
_LARGEST, _LARGEST_ONCE = 1 << 27, 1 << 25
_KEPT = 1 << 29
# Turns of a loop, some 50 microseconds.
_TURNS = 2000


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


def wait_briefly() -> None:
    """Let torch's threads on a CPU wait for each other in a loop no longer than a step from one call to the next takes.

    GNU's OpenMP, which torch comes with, waits for milliseconds otherwise, and on cores that the processes need that
    make samples. It reads the number as torch is imported; who has set it, or how to wait, is left alone.

    >>> wait_briefly()
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_TURNS))
