from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from .conftest import Run


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source checkout with two benchmarks and what they share."""
    folder = tmp_path / "bench"
    monkeypatch.setattr(import_module("patchtree.cli.bench"), "_FOLDER", folder)
    folder.mkdir()
    (folder / "common.py").touch()
    (folder / "loss.py").write_text("import sys; print('loss', *sys.argv[1:]); sys.exit(3)")
    (folder / "cut.py").write_text('"""Patches of all sizes.\n\nMore."""\nprint("cut")')
    return folder


def test_names_are_listed(checkout: Path, run: Run) -> None:
    result = run("bench")
    expected = "cut   Patches of all sizes.\nloss\nRun one with: patchtree bench NAME\n"
    assert (result.code, result.out, result.err) == (0, expected, "")


def test_one_is_run_with_its_own_words_and_exit_code(checkout: Path, run: Run) -> None:
    result = run("bench", "loss", "--size", "4096", "more")
    assert (result.code, result.out, result.err) == (3, "loss --size 4096 more\n", "")


def test_an_unknown_one(checkout: Path, run: Run) -> None:
    assert run("bench", "speed").failed_with("speed", "cut, loss")


def test_without_a_checkout(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("patchtree.cli.bench"), "_FOLDER", tmp_path / "bench")
    assert run("bench").failed_with("clone the repository")
