"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_runtest_setup() -> None:
    """One thread for torch, as soon as something has imported it: small tensors are slower on many."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PATCHTREE_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; set PATCHTREE_DATA to their folder")
    return folder
