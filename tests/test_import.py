"""`import patchtree` is light: a script that only plans trees pays for no deep-learning framework."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "cv2", "lightning", "timm", "pandas", "rich", "PIL", "tifffile", "skimage")


@pytest.mark.parametrize("use", ["patchtree", "patchtree.Patcher", "patchtree.Patcher(budget=16)", "patchtree.Tree"])
def test_import_is_light(use: str) -> None:
    code = f"import sys, patchtree; {use}; print(*sorted(sys.modules.keys() & {set(HEAVY)!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout.split(), run.stderr) == ([], "")
