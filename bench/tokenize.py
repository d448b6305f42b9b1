"""Image in memory -> patches, against OpenCV's edges alone, the published way, and itself at other sizes."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from bench import common
from bench.common import Case, Result, fresh, millis, ratio, table
from bench.peers import quadtree
from numpy.typing import NDArray

import patchtree

DEFAULT = (100.0, 200.0)


def make_patcher(name: str, patch_size: int, budget: int, thresholds: Sequence[float]) -> patchtree.Patcher:
    low, high = thresholds
    detail = patchtree.Edges(low, high) if name == "edges" else name
    return patchtree.Patcher(patch_size, budget, detail=detail)


def filling_thresholds(image: NDArray[np.uint8], patch_size: int, budget: int) -> tuple[float, float]:
    """Halve Canny's thresholds until its edges could use up the budget."""
    low, high = DEFAULT
    while low > 1:
        every = patchtree.Patcher(patch_size, None, threshold=0, detail=patchtree.Edges(low, high))
        if len(every.plan(image)) > budget - 3:
            break
        low, high = low / 2, high / 2
    return low, high


def measure(case: Case) -> Result:
    """Time one way and OpenCV alone, in turn; the memory of the first call."""
    common.set_threads(1)
    warnings.simplefilter("ignore")
    image = open_image(case)
    call, alone = make_call(case, image), partial(quadtree.find_edges, image, *case["thresholds"])
    warm_up(case)
    memory, patches = common.extra_memory(call)
    alone()
    times = common.interleave({"opencv": alone, "patches": call}, case["repeats"])
    return {
        "tokens": len(patches),
        "memory": memory / image.nbytes,
        **{name: (timing.median, timing.least) for name, timing in times.items()},
    }


def open_image(case: Case) -> NDArray[Any]:
    image = common.load_picture(case["image"])
    return common.fill(image, tuple(case["shape"])) if case["shape"] else image


def make_call(case: Case, image: NDArray[Any]) -> Callable[[], Any]:
    if case["way"].startswith("published"):
        split = quadtree.split_by_heap if case["way"].endswith("heap") else quadtree.split_by_list
        size, budget, (low, high) = case["patch_size"], case["budget"], case["thresholds"]
        return partial(quadtree.tokenize, image, size, budget, low, high, split)
    return partial(make_patcher(case["way"], case["patch_size"], case["budget"], case["thresholds"]), image)


def warm_up(case: Case) -> None:
    """Import what is imported late and start what is started once, on a small image: none of it grows with images."""
    small = common.fill(common.load_picture("ihc"), (256, 256))
    make_call({**case, "budget": 64}, small)()
    quadtree.find_edges(small, *DEFAULT)


HEADER = ("way", "N", "ms", "OpenCV alone, ms", "ratio of medians", "ratio of minima", "extra memory / image")


def row(name: str, result: Result) -> tuple[object, ...]:
    if "failed" in result:
        return (name, "", result["failed"], "", "", "", "")
    (median, least), (alone, alone_least) = result["patches"], result["opencv"]
    return (
        name,
        f"{result['tokens']:,}",
        millis(median),
        millis(alone),
        ratio(median / alone),
        ratio(least / alone_least),
        ratio(result["memory"]),
    )


class Bench:
    """The cases of one run: where the image comes from, and how often each is timed."""

    def __init__(self, image: str, patch_size: int, repeats: int, timeout: float) -> None:
        self.image, self.patch_size, self.repeats, self.timeout = image, patch_size, repeats, timeout

    def run(
        self,
        way: str,
        shape: Sequence[int] | None,
        budget: int,
        thresholds: Sequence[float] = DEFAULT,
        repeats: int = 0,
    ) -> Result:
        case = {
            "way": way,
            "image": self.image,
            "shape": shape,
            "patch_size": self.patch_size,
            "budget": budget,
            "thresholds": thresholds,
            "repeats": repeats or self.repeats,
        }
        common.progress(f"{way}, {shape or self.image}, N = {budget}")
        return fresh(__file__, case, timeout=self.timeout)

    def thresholds(self, shape: tuple[int, int] | None, budget: int) -> tuple[float, float]:
        image = open_image({"image": self.image, "shape": shape})
        return filling_thresholds(image, self.patch_size, budget)

    def by_detail(self, shape: tuple[int, int] | None, budgets: Sequence[int]) -> str:
        """Every kind of detail, and Canny with its own thresholds and with those that use up the budget."""
        rows = []
        for budget in budgets:
            rows.append(row("edges, thresholds 100, 200", self.run("edges", shape, budget)))
            low, high = self.thresholds(shape, budget)
            if (low, high) != DEFAULT:
                rows.append(row(f"edges, thresholds {low:g}, {high:g}", self.run("edges", shape, budget, (low, high))))
            rows += [row(name, self.run(name, shape, budget)) for name in ("residual", "variance")]
        return table(HEADER, rows)

    def by_pixels(self, sides: Sequence[int], pixels_per_token: int) -> str:
        """Growth with the image, the detail a pixel and the pixels a token held equal."""
        rows = []
        low, high = self.thresholds((sides[0], sides[0]), sides[0] ** 2 // pixels_per_token)
        for side in sides:
            repeats = self.repeats if side <= 4096 else max(3, self.repeats // 4)
            for way in ("edges", "residual"):
                result = self.run(way, (side, side), side**2 // pixels_per_token, (low, high), repeats)
                pixel = "" if "failed" in result else f"{1e9 * result['patches'][0] / side**2:.1f}"
                rows.append((*row(f"{way}, {side} x {side}", result), pixel))
        return table((*HEADER, "ns a pixel"), rows)

    def by_tokens(self, shape: tuple[int, int], budgets: Sequence[int]) -> str:
        """Growth with the sequence on one image."""
        thresholds = self.thresholds(shape, max(budgets))
        rows = [
            row(way, self.run(way, shape, budget, thresholds)) for way in ("edges", "residual") for budget in budgets
        ]
        return table(HEADER, rows)

    def against_published(self, shape: tuple[int, int], budgets: Sequence[int]) -> str:
        rows = []
        for budget in budgets:
            thresholds = self.thresholds(shape, budget)
            rows.append(row("patchtree, edges", self.run("edges", shape, budget, thresholds)))
            for way in ("published, with a heap", "published, list"):
                rows.append(row(way, self.run(way, shape, budget, thresholds, repeats=1)))
        return table(HEADER, rows)


def report(args: Any) -> list[str]:
    if args.images:
        parts = []
        for name in args.images:
            own = Bench(name, args.patch_size, args.repeats, args.timeout)
            parts += [f"### {name}, p = {args.patch_size}", own.by_detail(None, args.budgets)]
        return parts
    bench = Bench(args.picture, args.patch_size, args.repeats, args.timeout)
    shape = (args.side, args.side)
    sides = [side for side in (512, 1024, 2048, 4096, 8192, 16384) if side <= args.largest]
    about = f"RGB, p = {args.patch_size}, one thread; the picture is scikit-image's {args.picture!r}, mirrored to size."
    most = (args.side // args.patch_size) ** 2
    growing = [budget for budget in (1024, 4096, 16384, 65536, 262144) if budget <= most]
    return [
        f"### Image in memory to patches, {args.side} x {args.side}",
        f"{about} OpenCV alone is grey, GaussianBlur(3) and Canny with the same thresholds, timed in turn with it.",
        bench.by_detail(shape, args.budgets),
        f"### Growth with pixels, {args.pixels_per_token} pixels a token",
        bench.by_pixels(sides, args.pixels_per_token),
        f"### Growth with N, {args.side} x {args.side}",
        bench.by_tokens(shape, growing),
        f"### The published way, {args.side} x {args.side}",
        "Written from the paper's description in Python and OpenCV: greedy splits, then one cubic resize a leaf.",
        bench.against_published(shape, args.peer_budgets),
    ]


def main(argv: Sequence[str]) -> None:
    parser = common.options(__doc__)
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="FILE", help="8-bit RGB or grey ones of your own instead"
    )
    parser.add_argument("--picture", default="ihc", choices=("ihc", "retina"), help="what the image is made of")
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--side", type=int, default=4096, help="of the image, in pixels")
    parser.add_argument("--budgets", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--peer-budgets", type=int, nargs="+", default=[16384, 65536], help="for the published way")
    parser.add_argument("--pixels-per-token", type=int, default=1024, help="in the growth with pixels")
    parser.add_argument("--largest", type=int, default=16384, help="side of the largest image")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for a row of a table")
    args = parser.parse_args(argv)
    if args.quick:
        args.side, args.largest, args.repeats = 512, 512, 1
        args.budgets, args.peer_budgets = [256], [256]
    common.publish("tokenize", report(args), args.save)


if __name__ == "__main__":
    common.start(main, measure)
