"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# One thread for torch, here and in the processes that tests start: small tensors are slower on many.
os.environ["OMP_NUM_THREADS"] = "1"
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PATCHTREE_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; set PATCHTREE_DATA to their folder")
    return folder
