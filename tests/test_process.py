"""What the command line asks of the system takes effect, and what its user asked for is left alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from patchtree.process import wait_briefly


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    program = """
import resource, sys
import numpy as np
from patchtree.process import keep_memory

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


def test_threads_wait_as_their_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as context:
        context.setenv("OMP_WAIT_POLICY", "active")
        wait_briefly()
        assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_a_command_waits_briefly_before_torch_is_there() -> None:
    program = """
import os, sys
from patchtree.cli.common import verb

@verb
def command():
    assert "torch" not in sys.modules
    print(os.environ["GOMP_SPINCOUNT"])

command()
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
