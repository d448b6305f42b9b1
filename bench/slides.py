"""Slide in a file -> patches, reading what is opened, against decoding all of level 0 and refining from all of it."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from bench import common
from bench.common import Case, Result, clock, fresh, table
from bench.make_slide import make_slide
from numpy.typing import NDArray

import patchtree
from patchtree.io.slides import Slide, open_slide
from patchtree.slides import cut_slide, patch_slide, refine_dense, refine_slide

# Glass is lighter than this in green, on a slide of `make_slide`.
_TISSUE = 220
_BLOCK = 4096


def measure(case: Case) -> Result:
    """Measure one thing in this process: ``"lazy"``, ``"dense"`` or ``"quality"``."""
    common.set_threads(1)
    return {"lazy": measure_lazy, "dense": measure_dense, "quality": measure_quality}[case["what"]](case)


def measure_lazy(case: Case) -> Result:
    """Time refining and cutting, before and after all is decoded; count what is decoded; the memory of the process."""
    path, workers = case["path"], case["workers"]
    patcher = patchtree.Patcher(case["patch_size"], case["budget"], detail=case["detail"])
    decoded, tokens = 0, 0

    def patch() -> None:
        nonlocal decoded, tokens
        with open_slide(path) as slide:
            count = count_decoded(slide)
            tokens, decoded = len(patch_slide(patcher, slide, workers=workers)), count[0]

    times = [clock(patch) for _ in range(case["repeats"])]
    memory = common.peak_memory()
    whole = decode(path, workers)
    times += [clock(patch) for _ in range(case["repeats"])]
    height, width = case["shape"]
    return {
        "seconds": statistics.median(times),
        "decode": whole,
        "read": decoded / (height * width),
        "memory": memory,
        "tokens": tokens,
    }


def measure_dense(case: Case) -> Result:
    path, workers = case["path"], case["workers"]

    def refine() -> None:
        with open_slide(path) as slide:
            refine_dense(slide, case["patch_size"], case["budget"], detail=case["detail"], workers=workers)

    seconds = clock(refine)
    memory = common.peak_memory()
    return {"seconds": seconds, "decode": decode(path, workers), "alone": decode(path, 1), "memory": memory}


def measure_quality(case: Case) -> Result:
    """Peak signal-to-noise ratio on tissue of the slide painted from its patches, by how the tree was grown."""
    p, budget, detail = case["patch_size"], case["budget"], case["detail"]
    with open_slide(case["path"]) as slide:
        trees = [grow(slide, p, budget, detail=detail) for grow in (refine_slide, refine_dense)]
        pixels = [cut_slide(slide, tree) for tree in trees]
        errors, count = np.zeros(2), 0
        for box in blocks(slide):
            image = slide.read(0, *box)
            tissue = image[..., 1] < _TISSUE
            if not tissue.any():
                continue
            count += int(tissue.sum()) * slide.channels
            for i, (tree, values) in enumerate(zip(trees, pixels, strict=True)):
                errors[i] += squared_error(tree.paint(values, region=box), image, tissue)
    lazy, dense = (10 * math.log10(255**2 * count / error) for error in errors.tolist())
    return {"lazy": lazy, "dense": dense, "tissue": count / slide.channels / np.prod(slide.shape)}


def squared_error(painted: NDArray[np.uint8], image: NDArray[np.uint8], where: NDArray[np.bool_]) -> float:
    return sum(
        float(np.square(a[w].astype(np.float32) - b[w]).sum(dtype=np.float64))
        for a, b, w in zip(painted, image, where, strict=True)
    )


def blocks(slide: Slide) -> Iterator[tuple[int, int, int, int]]:
    height, width = slide.shape
    for y in range(0, height, _BLOCK):
        for x in range(0, width, _BLOCK):
            yield y, x, min(y + _BLOCK, height), min(x + _BLOCK, width)


def decode(path: str, workers: int) -> float:
    """Time reading all of level 0 once, a row of tiles at a time."""
    with open_slide(path) as slide, ThreadPoolExecutor(workers) as pool:
        height, width = slide.shape
        rows = slide.levels[0].tile[0]

        def read(top: int) -> int:
            return slide.read(0, top, 0, min(top + rows, height), width).nbytes

        return clock(lambda: sum(pool.map(read, range(0, height, rows))))


def count_decoded(slide: Slide) -> list[int]:
    """Count, from now on, the pixels of the tiles that are read from a slide."""
    total, read = [0], slide._read

    def counted(level: int, box: tuple[int, int, int, int]) -> NDArray[Any]:
        (height, width), (y0, x0, y1, x1) = slide.levels[level].tile, box
        tiles = (-(-y1 // height) - y0 // height) * (-(-x1 // width) - x0 // width)
        total[0] += tiles * height * width
        return read(level, box)

    slide._read = counted  # type: ignore[method-assign]
    return total


def seconds(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.0f}"


def gib(number: int) -> str:
    return f"{number / 2**30:.2f}"


def percent(number: float) -> str:
    return f"{100 * number:.1f} %" if number < 0.1 else f"{100 * number:.0f} %"


class Bench:
    """The slides of one run and what is asked of them."""

    def __init__(self, args: Any, folder: Path) -> None:
        self.args, self.folder = args, folder

    def slide(self, side: int) -> Path:
        path = self.folder / f"slide-{side}.tif"
        if not path.exists():
            common.progress(f"writing {path}")
            make_slide(path, shape=(side, side), tissue=self.args.tissue)
        return path

    def run(self, what: str, side: int, budget: int | None = None, detail: str | None = None) -> Result:
        case = {
            "what": what,
            "path": str(self.slide(side)),
            "shape": (side, side),
            "patch_size": self.args.patch_size,
            "budget": budget or self.args.budget,
            "detail": detail or self.args.detail,
            "workers": self.args.workers,
            "repeats": self.args.repeats,
        }
        common.progress(f"{what}, {side} x {side}, N = {case['budget']}, {case['detail']}")
        return fresh(__file__, case, timeout=self.args.timeout)

    def lazy(self, name: str, side: int, budget: int | None = None, detail: str | None = None) -> tuple[object, ...]:
        result = self.run("lazy", side, budget, detail)
        if "failed" in result:
            return (name, result["failed"], *[""] * 5)
        return (
            name,
            f"{result['tokens']:,}",
            seconds(result["seconds"]),
            seconds(result["decode"]),
            percent(result["seconds"] / result["decode"]),
            percent(result["read"]),
            gib(result["memory"]),
        )

    def by_size(self) -> str:
        header = ("slide", "N", "refine + cut, s", "decode level 0, s", "share", "pixels read", "peak memory, GiB")
        return table(header, [self.lazy(f"{side:,} x {side:,}", side) for side in self.args.sides])

    def by_detail(self) -> str:
        header = ("detail", "N", "refine + cut, s", "decode level 0, s", "share", "pixels read", "peak memory, GiB")
        side = self.args.sides[-1]
        rows = [self.lazy(self.args.detail, side, budget) for budget in self.args.budgets]
        rows += [self.lazy(name, side, detail=name) for name in ("edges", "variance")]
        return table(header, rows)

    def dense(self) -> str:
        rows = []
        for side in self.args.sides:
            result = self.run("dense", side)
            name = f"{side:,} x {side:,}"
            if "failed" in result:
                rows.append((name, result["failed"], *[""] * 5))
                continue
            taken, whole, alone = result["seconds"], result["decode"], result["alone"]
            times = [seconds(number) for number in (taken, whole, alone)]
            rows.append((name, *times, f"{taken / whole:.2f}", f"{taken / alone:.2f}", gib(result["memory"])))
        threads = f"decode, {self.args.workers} threads"
        header = ("slide", "refine, s", f"{threads}, s", "one thread, s", "ratio", "to one thread", "peak memory, GiB")
        return table(header, rows)

    def quality(self) -> str:
        rows = []
        for side in self.args.quality_sides:
            for budget in self.args.budgets:
                result = self.run("quality", side, budget)
                name = f"{side:,} x {side:,}"
                if "failed" in result:
                    rows.append((name, f"{budget:,}", result["failed"], "", ""))
                    continue
                gain = result["lazy"] - result["dense"]
                rows.append((name, f"{budget:,}", f"{result['lazy']:.2f}", f"{result['dense']:.2f}", f"{gain:+.2f}"))
        return table(("slide", "N", "read as opened, dB", "from all pixels, dB", "difference"), rows)


def report(args: Any, folder: Path) -> list[str]:
    bench = Bench(args, folder)
    threads = f"{args.workers} threads each, for decoding too"
    about = f"p = {args.patch_size}, {args.detail}; JPEG slides of `make_slide.py`, {percent(args.tissue)} tissue"
    return [
        "### Slide in a file to patches, reading what is opened",
        f"{about}; {threads}. Refining and cutting are timed before and after level 0 is decoded, by the median. "
        "Pixels are those of all tiles that are decoded, of any level, over those of level 0.",
        bench.by_size(),
        f"### By detail and N, {args.sides[-1]:,} x {args.sides[-1]:,}",
        bench.by_detail(),
        "### The reference: a tree from every pixel of level 0",
        bench.dense(),
        "### How well trees of both kinds show the tissue",
        f"PSNR of the slide painted from its patches, where green is below {_TISSUE}.",
        bench.quality(),
    ]


def main(argv: Sequence[str]) -> None:
    parser = common.options(__doc__)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--budget", type=int, default=16384, help="of the tables by size")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[1024, 4096, 16384, 65536], help="of the other tables"
    )
    parser.add_argument("--detail", default="residual", choices=("residual", "edges", "variance"))
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--quality-sides", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--tissue", type=float, default=0.15, help="share of the slides' area")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="before decoding, and after it")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for a row of a table")
    parser.add_argument("--folder", type=Path, help="where slides are kept for the next time; without it, nowhere")
    args = parser.parse_args(argv)
    if args.quick:
        args.sides = args.quality_sides = [1024]
        args.budget, args.budgets, args.repeats = 256, [256], 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        common.publish("slides", report(args, folder), args.save)


if __name__ == "__main__":
    common.start(main, measure)
