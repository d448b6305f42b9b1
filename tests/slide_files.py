"""Slides that tests write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))

from bench.make_slide import make_slide  # noqa: E402


def small_slide(folder: Path, size: int | tuple[int, int] = 2048, **options: Any) -> tuple[Path, Path]:
    """Write `slide.tif` and its truth `truth.tif`: JPEG tiles, 15% tissue, 0.25 µm a pixel, see `make_slide`."""
    slide, truth = folder / "slide.tif", folder / "truth.tif"
    make_slide(slide, truth, (size, size) if isinstance(size, int) else size, **options)
    return slide, truth
