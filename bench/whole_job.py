"""The whole job on slides: train, predict one that was not seen, check the files with the programs that read them."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import common
from bench.common import Case, Result, clock, fresh, table
from bench.make_slide import LABELS, make_slide

# Of what is compared at once, in pixels on a side.
_SIDE = 4096


def measure(case: Case) -> Result:
    """Do one part in this process: a command of patchtree, or the check of what it wrote."""
    return check(case) if case["what"] == "check" else command(case)


def command(case: Case) -> Result:
    """Time a command, and give the most memory that its own process took."""
    from patchtree.cli import main

    def run() -> None:
        try:
            main(case["words"])
        except SystemExit as done:
            if done.code:
                raise RuntimeError(f"patchtree {case['what']} ended with {done.code}") from done

    return {"seconds": clock(run), "memory": common.peak_memory()}


def check(case: Case) -> Result:
    """Read the mask with tifffile and OpenSlide and the outlines with shapely, and compare both with the truth."""
    import openslide
    import shapely
    import tifffile
    import zarr

    stored = zarr.open_array(tifffile.imread(case["truth"], aszarr=True, level=0), mode="r")
    given = zarr.open_array(tifffile.imread(case["mask"], aszarr=True, level=0), mode="r")
    assert given.shape == stored.shape
    counts, differing = np.zeros(4, np.int64), 0
    with openslide.OpenSlide(case["mask"]) as slide:
        assert slide.dimensions == given.shape[::-1]
        for y in range(0, given.shape[0], _SIDE):
            for x in range(0, given.shape[1], _SIDE):
                ids = np.asarray(given[y : y + _SIDE, x : x + _SIDE])
                true = np.asarray(stored[y : y + _SIDE, x : x + _SIDE])
                counts += np.bincount((2 * true + ids).reshape(-1), minlength=4)
                seen = np.asarray(slide.read_region((x, y), 0, ids.shape[::-1]))[..., 0]
                differing += int((seen != ids).sum())
    shapes = [
        shapely.geometry.shape(each["geometry"]) for each in json.loads(Path(case["outlines"]).read_text())["features"]
    ]
    found, truth = counts[1] + counts[3], counts[2] + counts[3]
    return {
        "dice": float(2 * counts[3] / (found + truth)),
        "differing": differing,
        "outlines": len(shapes),
        "corners": int(sum(shapely.get_num_coordinates(shape) for shape in shapes)),
        "invalid": sum(not shape.is_valid for shape in shapes),
        "area": float(sum(shape.area for shape in shapes) / found - 1),
    }


def report(args: Any, folder: Path) -> list[str]:
    data, run, out = folder / "data", folder / "run", folder / "out"
    for part in ("images", "masks"):
        (data / part).mkdir(parents=True, exist_ok=True)
    for seed in range(1, 1 + args.slides):
        common.progress(f"writing slide {seed} to train on")
        sides = (args.training_side,) * 2
        make_slide(data / "images" / f"{seed}.tif", data / "masks" / f"{seed}.tif", sides, args.tissue, seed=seed)
    (data / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    unseen, truth = folder / "slide.tif", folder / "truth.tif"
    common.progress("writing the slide to predict")
    make_slide(unseen, truth, (args.side, args.side), args.tissue)
    commands = {
        "train": ["train", data, "--out", run, "--max-time", args.max_time],
        "predict": ["predict", run, unseen, "--out", out, "--geojson"],
    }
    rows = []
    for what, words in commands.items():
        common.progress(f"patchtree {what}")
        case = {"what": what, "words": [str(word) for word in words]}
        result = fresh(__file__, case, args.threads, args.timeout)
        if "failed" in result:
            return [f"patchtree {what} failed: {result['failed']}"]
        rows.append((f"patchtree {what}", f"{result['seconds']:.0f}", f"{result['memory'] / 2**30:.2f}"))
    common.progress("checking")
    places = {"truth": truth, "mask": out / "slide.tif", "outlines": out / "slide.geojson"}
    case = {"what": "check", **{name: str(path) for name, path in places.items()}}
    found = fresh(__file__, case, args.threads, args.timeout)
    if "failed" in found:
        return [f"the check failed: {found['failed']}"]
    checks = [
        ("Dice against the truth", f"{found['dice']:.3f}"),
        ("pixels that OpenSlide and tifffile read differently", f"{found['differing']:,}"),
        ("outlines, corners", f"{found['outlines']:,}, {found['corners']:,}"),
        ("outlines that shapely calls invalid", f"{found['invalid']:,}"),
        ("area of the outlines against the mask's", f"{100 * found['area']:+.3f} %"),
    ]
    side, training = (f"{length:,} x {length:,} px" for length in (args.side, args.training_side))
    return [
        "### The whole job on a slide that was not seen",
        f"{args.slides} slides of {training} to train on, one of {side} to predict, all of `make_slide.py`; "
        f"{args.threads} threads.",
        table(("command", "s", "peak memory of its process, GiB"), rows),
        table(("what was written", "found"), checks),
    ]


def main(argv: Sequence[str]) -> None:
    parser = common.options(__doc__)
    parser.add_argument("--side", type=int, default=65536, help="of the slide to predict, in pixels")
    parser.add_argument("--training-side", type=int, default=16384, help="of the slides to train on")
    parser.add_argument("--slides", type=int, default=3, help="to train and validate on")
    parser.add_argument("--max-time", default="00:03:00", metavar="HH:MM:SS", help="of the training")
    parser.add_argument("--tissue", type=float, default=0.15, help="share of the slides' area")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one part")
    args = parser.parse_args(argv)
    if args.quick:
        args.side, args.training_side, args.slides, args.max_time = 1024, 1024, 2, "00:00:05"
    with tempfile.TemporaryDirectory() as temporary:
        common.publish("whole_job", report(args, Path(temporary)), args.save, ["torch"])


if __name__ == "__main__":
    common.start(main, measure)
