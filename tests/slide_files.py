"""Slides that tests write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))

from bench.make_slide import LABELS, make_slide  # noqa: E402


def small_slide(folder: Path, size: int | tuple[int, int] = 2048, **options: Any) -> tuple[Path, Path]:
    """Write `slide.tif` and its truth `truth.tif`: JPEG tiles, 15% tissue, 0.25 µm a pixel, see `make_slide`."""
    slide, truth = folder / "slide.tif", folder / "truth.tif"
    make_slide(slide, truth, (size, size) if isinstance(size, int) else size, **options)
    return slide, truth


def slide_set(root: Path, names: str = "ab", size: tuple[int, int] = (1100, 1300), **options: Any) -> Path:
    """Write a data set of slides, with masks of the same size and names for the classes."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(names):
        made = {"tissue": 0.4, **options}
        make_slide(root / "images" / f"{name}.tif", root / "masks" / f"{name}.tif", size, seed=seed, **made)
    (root / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    return root
