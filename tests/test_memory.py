from __future__ import annotations

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    program = """
import resource, sys
import numpy as np
from patchtree.memory import keep_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    keep_memory()
np.ones(3 << 20).sum()
before = faults()
for _ in range(4):
    arrays = [np.ones(3 << 20) for _ in range(4)]
    del arrays
print(faults() - before)
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "give back")
    )
    assert kept < given_back / 2
