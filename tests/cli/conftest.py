"""The real command line, in process (quick) or as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patchtree.cli import main
from patchtree.io.images import write_image, write_mask


@dataclass(frozen=True)
class Result:
    """What a command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def failed_with(self, *words: str) -> bool:
        """Exit code 1, one line `error: ...` with these words, and nothing else anywhere."""
        assert (self.code, self.out) == (1, ""), self
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert "a bug in" not in self.err, self.err
        for word in words:
            assert word in self.err, self.err
        return True


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process; on a slow machine nothing is told of how far it is."""
    monkeypatch.setattr("patchtree.cli.progress._LINE_EVERY", float("inf"))

    def call(*words: object) -> Result:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Result(int(stop.value.code or 0), out, err)

    return call


def run_process(*words: object, **options: Any) -> Result:
    """Run a command line in a process of its own."""
    command = [sys.executable, "-c", "from patchtree.cli import main; main()", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)
    return Result(done.returncode, done.stdout, done.stderr)


def outputs(folder: Path) -> list[str]:
    """What a job wrote, by name, but for its states; nothing where there is no folder."""
    return sorted(path.name for path in folder.glob("*") if path.name != ".patchtree")


def picture(height: int = 200, width: int = 300, seed: int = 0) -> NDArray[np.uint8]:
    """A tissue-like image: a textured disc on an even ground, (H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2
    image = np.full((height, width, 3), 240, np.uint8)
    image[disc] = rng.integers(60, 200, (int(disc.sum()), 3))
    return image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disc.png"
    write_image(path, picture())
    return path


def write_data(root: Path, names: str = "abcd", labels: dict[str, int] | None = None, seed: int = 0) -> Path:
    """A data set of dark textured discs on bright ground, 96 x 128."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for at, name in enumerate(names):
        rng = np.random.default_rng((seed, at))
        y, x = np.mgrid[:96, :128]
        cy, cx = rng.integers(30, 66, 2)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < 20**2
        image = np.full((96, 128, 3), 220, np.uint8)
        image[disc] = rng.integers(0, 200, (int(disc.sum()), 3))
        write_image(root / "images" / f"{name}.png", image)
        write_mask(root / "masks" / f"{name}.png", disc.astype(np.uint8))
    if labels:
        (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return root


SMALL = ("--model", "patchtree:nano", "--patch-size", 8, "--workers", 0)
TRAIN = (*SMALL, "--max-epochs", 4, "--budget", 100, "--window", 64)


@dataclass(frozen=True)
class Trained:
    """A data set and a run made from it by the command line."""

    data: Path
    run: Path
    result: Result


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    data = write_data(root / "data", labels={"background": 0, "disc": 1})
    result = run_process("train", data, "--out", root / "run", *TRAIN)
    assert result.code == 0, result
    return Trained(data, root / "run", result)
