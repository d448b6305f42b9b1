"""Class map of a whole slide: windows painted over each other and written, against writing zeros."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from bench import common
from bench.common import Case, Result, clock, fresh, table
from bench.make_slide import LABELS, make_slide
from numpy.typing import NDArray

from patchtree import Patcher, Patches
from patchtree.io.pyramids import write_class_map
from patchtree.io.slides import Slide, open_slide
from patchtree.slide_inference import predict_slide
from patchtree.slides import cut_slide


class FromTruth:
    """Predicts the truth as it is seen in patches, in no time: what is left is the cost of all the rest."""

    smooth = True

    def __init__(self, truth: Slide, density: float, patch_size: int) -> None:
        self.truth = truth
        self.config = SimpleNamespace(
            labels=LABELS, density=density, most=1 << 20, patcher=Patcher(patch_size, detail="residual").to_dict()
        )
        self.tokens = 0

    def in_patches(self, patches: Patches) -> NDArray[np.float32]:
        self.tokens += len(patches)
        share = cut_slide(self.truth, patches.tree, workers=1)[..., 0].astype(np.float32)
        return np.stack([1 - share, share], axis=-1)

    def check(self, channels: int, dtype: np.dtype[Any]) -> None:
        pass


def measure(case: Case) -> Result:
    """Measure one thing in this process: ``"zeros"``, ``"map"`` or ``"slide"``."""
    common.set_threads(1)
    return {"zeros": measure_zeros, "map": measure_map, "slide": measure_slide}[case["what"]](case)


def measure_zeros(case: Case) -> Result:
    shape = tuple(case["shape"])

    def write(out: str) -> None:
        write_class_map(out, shape, lambda y0, x0, y1, x1: np.zeros((y1 - y0, x1 - x0), np.uint8))

    return repeat(case, write)


def measure_map(case: Case) -> Result:
    """Time painting and writing a map from given logits: a slide that was killed after its only window goes on."""
    import patchtree.slide_inference as module

    with open_slide(case["path"]) as slide, open_slide(case["truth"]) as truth:
        predictor = FromTruth(truth, case["budget"] / np.prod(slide.shape), case["patch_size"])
        seconds: list[float] = []
        write = module._Work.write

        def timed(*args: Any) -> list[int]:
            found: list[list[int]] = []
            for _ in range(case["repeats"]):
                seconds.append(clock(lambda: found.append(write(*args))))
            return found[-1]

        module._Work.write = timed  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory() as folder:
            options = {"tokens": 1 << 20, "workers": case["workers"]}
            predict_slide(predictor, slide, Path(folder, "ids.tif"), **options)  # type: ignore[arg-type]
        return {"seconds": statistics.median(seconds), "tokens": predictor.tokens, "memory": common.peak_memory()}


def measure_slide(case: Case) -> Result:
    """Time all of the prediction of a slide but the model."""
    with open_slide(case["path"]) as slide, open_slide(case["truth"]) as truth:
        predictor = FromTruth(truth, case["density"], case["patch_size"])
        found: list[dict[str, Any]] = []

        def write(out: str) -> None:
            predictor.tokens = 0
            found.append(predict_slide(predictor, slide, out, workers=case["workers"]))  # type: ignore[arg-type]

        result = repeat({**case, "repeats": 1}, write)
        return {**result, "tokens": predictor.tokens, "windows": found[-1]["windows"]}


def repeat(case: Case, write: Any) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        seconds = [clock(lambda: write(str(Path(folder, "ids.tif")))) for _ in range(case["repeats"])]
    return {"seconds": statistics.median(seconds), "memory": common.peak_memory()}


def report(args: Any, folder: Path) -> list[str]:
    maps, slides = [], []
    for side in args.sides:
        path, truth = folder / f"slide-{side}.tif", folder / f"truth-{side}.tif"
        if not (path.exists() and truth.exists()):
            common.progress(f"writing {path}")
            make_slide(path, truth, shape=(side, side), tissue=args.tissue)
        case = {
            "path": str(path),
            "truth": str(truth),
            "shape": (side, side),
            "patch_size": args.patch_size,
            "budget": args.budget,
            "density": args.density,
            "workers": args.workers,
            "repeats": args.repeats,
        }
        name = f"{side:,} x {side:,}"
        results = {}
        for what in ("zeros", "map", "slide"):
            common.progress(f"{what}, {name}")
            results[what] = fresh(__file__, {**case, "what": what}, timeout=args.timeout)
            if "failed" in results[what]:
                return [f"{what} failed: {results[what]['failed']}"]
        zeros, ids, whole = results["zeros"], results["map"], results["slide"]
        maps.append(
            (
                name,
                f"{ids['tokens']:,}",
                f"{zeros['seconds']:.2f}",
                f"{ids['seconds']:.2f}",
                f"{zeros['seconds'] / ids['seconds']:.2f}",
                f"{ids['memory'] / 2**30:.2f}",
            )
        )
        slides.append(
            (
                name,
                f"{whole['windows']:,}",
                f"{whole['tokens']:,}",
                f"{whole['seconds']:.1f}",
                f"{whole['memory'] / 2**30:.2f}",
            )
        )
    about = f"p = {args.patch_size}; JPEG slides of `make_slide.py`, {100 * args.tissue:.0f} % tissue"
    return [
        "### Class map from given logits, of one sequence",
        f"{about}; {args.workers} threads.",
        table(("slide", "N", "zeros, s", "map, s", "speed over zeros'", "peak memory, GiB"), maps),
        "### Whole slide in windows, all but the model",
        f"A token for {1 / args.density:,.0f} pixels of tissue. The truth, from its own file, takes the model's place.",
        table(("slide", "windows", "tokens", "all, s", "peak memory, GiB"), slides),
    ]


def main(argv: Sequence[str]) -> None:
    parser = common.options(__doc__)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--budget", type=int, default=65536, help="tokens that all of the slide's area would get")
    parser.add_argument("--density", type=float, default=1 / 4096, help="tokens a pixel of tissue, in windows")
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--tissue", type=float, default=0.15, help="share of the slides' area")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one measurement")
    parser.add_argument("--folder", type=Path, help="where slides are kept for the next time; without it, nowhere")
    args = parser.parse_args(argv)
    if args.quick:
        args.sides, args.budget, args.repeats = [1024], 256, 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        common.publish("predict_slide", report(args, folder), args.save)


if __name__ == "__main__":
    common.start(main, measure)
