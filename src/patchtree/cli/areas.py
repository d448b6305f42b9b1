"""A table of the areas of classes, for spreadsheets."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from patchtree.files import replacing

TABLE = "areas.csv"
_DIGITS = 6  # of square millimetres: to a square micrometre


def measure_areas(pixels: Mapping[str, int], mpp: Sequence[float] | None) -> dict[str, float] | None:
    """Give the area of each class in square millimetres; None where nobody knows how large a pixel is.

    >>> measure_areas({"background": 0, "tumour": 4_000_000}, (0.25, 0.5))
    {'background': 0.0, 'tumour': 0.5}
    """
    if mpp is None:
        return None
    return {name: round(count * math.prod(mpp) / 1e6, _DIGITS) for name, count in pixels.items()}


def write_areas(out: Path) -> None:
    """Write ``areas.csv`` to a folder of outputs: a row for each slide that is done, by whatever part of a job.

    Columns are name, image, and for each class its square millimetres (empty without a pixel size) and pixels.

    Raises:
        InputError: the file cannot be written.
    """
    from patchtree.jobs import States

    states = [state for state in States.find(out) or () if state["state"] == "done" and "mm2" in state["result"]]
    if not states:
        return
    classes = dict.fromkeys(name for state in states for name in state["result"]["pixels"])
    with replacing(out / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "image", *(f"{name} {unit}" for name in classes for unit in ("mm2", "px"))])
        for state in states:
            result = state["result"]
            areas, pixels = result["mm2"] or {}, result["pixels"]
            values = (kind.get(name, "") for name in classes for kind in (areas, pixels))
            rows.writerow([state["name"], state["input"], *values])
