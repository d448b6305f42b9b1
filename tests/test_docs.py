"""The Python in the documents runs as it stands, block after block, in a folder that holds the files they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import patchtree as pt
from patchtree.io.images import write_image, write_mask
from patchtree.io.volumes import write_volume
from untrained import untrained_run

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if BLOCK.search(path.read_text("utf-8"))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents take for granted: a photograph, a slide, their masks, patches and a run."""
    root = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (170, 200, 3), np.uint8).repeat(3, axis=0).repeat(3, axis=1)
    Image.fromarray(image).save(root / "photo.jpg")
    write_image(root / "slide.tif", image)
    for name in ("photo", "slide"):
        write_mask(root / f"{name}_mask.png", image[..., 0] // 100)
    scan = rng.integers(-200, 200, (12, 14, 16)).astype(np.int16)
    write_volume(root / "liver.nii.gz", scan.repeat(3, axis=0).repeat(3, axis=1).repeat(3, axis=2))
    (root / "patches").mkdir()
    pt.Patcher(budget=50)(image).save(root / "patches" / "photo.npz")
    untrained_run(root / "runs" / "glands")
    untrained_run(root / "runs" / "patches", task="classify")
    return root


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_run(document: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text = document.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in BLOCK.finditer(text):
        # Empty lines in front, so that a traceback names the document's own line.
        before = "\n" * text[: block.start(1)].count("\n")
        exec(compile(before + block[1], document, "exec"), names)
