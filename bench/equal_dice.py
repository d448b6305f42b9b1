"""How much sooner the same model is as good on adaptive patches of whole images as on uniform ones.

The images show the same at every size, so adaptive patches need be no more at any.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import copy
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench import common, train_step
from bench.common import Case, Result, fresh, ratio, table
from bench.segmentation import pictures, scores
from numpy.typing import NDArray

from patchtree.turns import turn

if TYPE_CHECKING:  # torch is left to the processes that measure
    from patchtree.models.segmenter import Segmenter
    from patchtree.samples import Batch

# Highest learning rate of Muon, that of `patchtree train`, and the steps in which it is reached.
RATE = 3e-3
WARMUP = 10
# Parts of the picture that are held out.
HELD_OUT = (0, 4)
# The model is scored whenever so much more time has passed.
GROWTH = 1.1
Pair = tuple[NDArray[Any], NDArray[Any]]


def measure(case: Case) -> Result:
    """Train on random images, turned and mirrored at random, until the images held out are predicted well enough."""
    import torch
    from torch.optim.swa_utils import AveragedModel

    from patchtree.models.choose import build_model

    warnings.simplefilter("ignore")
    common.set_threads(case["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(case["seed"])
    classes = len(pictures.PICTURES[case["picture"]][1])
    model = build_model(f"patchtree:{case['size']}", classes, patch_size=case["patch_size"])
    seen, held_out = [], []
    for at in range(pictures.PARTS**2):
        part = [np.load(Path(case["data"]) / f"{what}{at}.npy", mmap_mode="r") for what in ("image", "mask")]
        (held_out if at in HELD_OUT else seen).append(part)
    tests = [train_step.prepare(case, [(image[:], mask[:])], model).to(device) for image, mask in held_out]

    # What libraries set up at their first step is no part of a training.
    warm = copy.deepcopy(model).to(device)
    train_step.make_step(warm, optimiser_of(warm), device)(tests[0])
    del warm
    batches = load(case, seen, model)
    begin = time.perf_counter()
    model = model.to(device)
    average = AveragedModel(model, multi_avg_fn=move_average)
    optimiser = optimiser_of(model)
    step = train_step.make_step(model, optimiser, device)
    course, next_look, steps = [], 0.0, 0
    while time.perf_counter() - begin < case["seconds"]:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (steps + 1) / WARMUP)
        batch = next(batches)
        step(batch)
        average.update_parameters(model)
        steps += 1
        spent = time.perf_counter() - begin
        if spent >= next_look or spent >= case["seconds"]:
            dice = score(average.module, tests)
            course.append((time.perf_counter() - begin, steps, dice))
            if dice >= case["target"]:
                break
            next_look = GROWTH * spent
    return {
        "tokens": batch.tokens.valid.shape[1],
        "course": course,
        "device": train_step.name_device(device),
    }


def optimiser_of(model: Segmenter) -> Any:
    from patchtree.tasks import Task

    return Task(model, RATE, muon=True).configure_optimizers()


def load(case: Case, seen: list[Pair], model: Segmenter) -> Iterator[Batch]:
    """Make batches of random images, turned and mirrored at random, by as many processes as the case says."""
    import cv2
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Drawn(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Batch]:
            worker = get_worker_info()
            if worker is not None:
                cv2.setNumThreads(0)  # not 1: that waits for threads of the process that this one was forked from
            rng = np.random.default_rng([case["seed"], 0 if worker is None else worker.id])
            while True:
                drawn = [turn_both(seen[at], rng) for at in rng.integers(len(seen), size=case["batch"])]
                yield train_step.prepare(case, drawn, model)

    # No process makes more than one batch ahead: a batch of all of the largest images takes gigabytes.
    ahead = 1 if case["workers"] else None
    return iter(DataLoader(Drawn(), batch_size=None, num_workers=case["workers"], prefetch_factor=ahead))


def turn_both(pair: Pair, rng: np.random.Generator) -> Pair:
    """Turn and mirror an image and its mask at random."""
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    image, mask = (turn(np.asarray(part), mirrored, turns) for part in pair)
    return image, mask


def move_average(average: Any, weights: Any, steps: Any) -> None:
    """Move the average of the weights as `patchtree train` does at first: it is about that of the last tenth."""
    import torch

    torch._foreach_lerp_(average, weights, 9 / (int(steps) + 10))


def score(model: Segmenter, tests: Sequence[Batch]) -> float:
    """Give the mean Dice of the classes but the background over all pixels of the images.

    An image pixel has the class that its patch pixel is given, and how many pixels of each true class lie under a
    patch pixel is known, so nothing is painted.
    """
    import torch

    from patchtree.models.precision import half_where_quick

    confusion: Any = 0
    model.eval()
    for batch in tests:
        with torch.inference_mode(), half_where_quick(batch.counts.device):
            ids = model(batch.tokens, batch.ghosts).argmax(-1)
        classes = batch.counts.shape[-1]
        found = [batch.counts[ids == given].sum(0, dtype=torch.float64) for given in range(classes)]
        confusion = confusion + torch.stack(found, 1).cpu().numpy()
    return float(scores.mean(scores.dice(confusion)))


@dataclass(frozen=True)
class Way:
    """What became of the trainings on one kind of patches: what `measure` gave, one a seed."""

    results: list[Result]

    @property
    def failed(self) -> str | None:
        return next((one["failed"] for one in self.results if "failed" in one), None)

    @property
    def step(self) -> float:
        """Seconds of a step, patches made, from when the first had been made."""
        paces = []
        for one in self.results:
            (begun, first, _), (ended, last, _) = one["course"][0], one["course"][-1]
            paces.append((ended - begun) / (last - first) if last > first else ended / last)
        return statistics.median(paces)

    def reach(self, target: float, what: int = 0) -> float | None:
        """Give the median of the seconds (or the steps) until a Dice; None if a run did not get there."""
        when = [next((look[what] for look in one["course"] if look[2] >= target), None) for one in self.results]
        reached = [value for value in when if value is not None]
        return statistics.median(reached) if len(reached) == len(when) else None

    @property
    def spent(self) -> float:
        return statistics.median(one["course"][-1][0] for one in self.results)


@dataclass(frozen=True)
class Row:
    """Both ways at one size; the same where the budget has room for all uniform patches."""

    side: int
    uniform: Way
    adaptive: Way

    @property
    def name(self) -> str:
        return f"{self.side:,} x {self.side:,}"

    @property
    def ways(self) -> tuple[Way, Way]:
        return self.uniform, self.adaptive

    @property
    def failed(self) -> str | None:
        return self.uniform.failed or self.adaptive.failed

    @property
    def faster(self) -> float:
        return self.uniform.step / self.adaptive.step

    def sooner(self, target: float) -> float | None:
        """How many times sooner adaptive patches reached a Dice; a lower bound where uniform ones never did."""
        adaptive = self.adaptive.reach(target)
        return None if adaptive is None else (self.uniform.reach(target) or self.uniform.spent) / adaptive

    def pace(self) -> tuple[object, ...]:
        """Give the cells on steps."""
        if self.failed:
            return (self.name, *(way.failed or f"{way.results[0]['tokens']:,}" for way in self.ways), *[""] * 5)
        return (
            self.name,
            *(f"{way.results[0]['tokens']:,}" for way in self.ways),
            *(f"{way.step:.3g}" for way in self.ways),
            ratio(self.faster),
            *(" ".join(f"{max(dice for *_, dice in one['course']):.3f}" for one in way.results) for way in self.ways),
        )

    def times(self, target: float) -> tuple[object, ...]:
        """Give the cells on the way to a Dice."""
        cells: list[str] = []
        for way in self.ways:
            seconds, steps = way.reach(target), way.reach(target, 1)
            known = seconds is not None and steps is not None
            cells += [f"{steps:.0f}", f"{seconds:.3g}"] if known else ["", f"over {way.spent:.0f}"]
        sooner = self.sooner(target)
        least = "" if self.uniform.reach(target) is not None else "at least "
        return (self.name, *cells, f"{least}{ratio(sooner)}" if sooner else "")


PACE = (*train_step.STEPS, "best Dice uniform", "best Dice adaptive")
TIMES = ("image", "steps uniform", "after uniform, s", "steps adaptive", "after adaptive, s", "sooner")


def compare(args: Any, side: int, data: str) -> Row:
    """Train both ways at one size."""
    for at, (image, mask) in enumerate(pictures.parts(args.picture, side)):
        np.save(Path(data) / f"image{at}.npy", image)
        np.save(Path(data) / f"mask{at}.npy", mask)

    def train(way: str) -> Way:
        results = []
        for seed in range(args.seeds):
            common.progress(f"{way}, {side} x {side}, seed {seed}")
            case = {
                "data": data,
                "way": way,
                "seconds": args.seconds,
                "target": max(args.targets),
                "budget": args.budget,
                "picture": args.picture,
                "patch_size": args.patch_size,
                "detail": "residual",
                "size": args.size,
                "batch": args.batch,
                "threads": args.threads,
                "workers": args.workers,
                "seed": seed,
            }
            results.append(fresh(__file__, case, args.threads, args.timeout))
            common.progress(f"    {results[-1]}")
        return Way(results)

    adaptive = train("adaptive")
    same = math.ceil(side / args.patch_size) ** 2 <= args.budget
    return Row(side, adaptive if same else train("uniform"), adaptive)


def summary(rows: list[Row], target: float) -> str:
    """Give the geometric mean over the sizes at which adaptive patches got there."""
    ran = [row for row in rows if not row.failed and row.sooner(target)]
    if not ran:
        return "At no size were adaptive patches good enough."
    sizes = ", ".join(f"{row.side:,}" for row in ran)
    bound = "" if all(row.uniform.reach(target) for row in ran) else "at least "
    sooner = statistics.geometric_mean(row.sooner(target) or 1 for row in ran)
    return f"Geometric mean over {sizes} px: {bound}{ratio(sooner)} times sooner."


def main(argv: Sequence[str]) -> None:
    parser = common.options((__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048], help="of the images")
    parser.add_argument("--picture", default="retina", choices=list(pictures.PICTURES))
    parser.add_argument("--budget", type=int, default=1024, help="adaptive patches of an image")
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--size", default="tiny", choices=("nano", "tiny", "small", "base"), help="of the model")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.6, 0.7], help="Dice to be reached")
    parser.add_argument("--seconds", type=float, default=900, help="that a training has at most")
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches; 0: the one that trains")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds that a run may take")
    args = parser.parse_args(argv)
    if args.quick:
        args.sides, args.budget, args.seconds, args.targets = [128], 16, 4, [0.01]
    rows = []
    for side in args.sides:
        with tempfile.TemporaryDirectory() as data:
            rows.append(compare(args, side, data))
    report(args, rows)


def report(args: Any, rows: list[Row]) -> None:
    """Print and keep what was found."""
    results = [one for row in rows for way in (row.uniform, row.adaptive) for one in way.results]
    device = next((one["device"] for one in results if "device" in one), "no device")
    workers = f", {args.workers} processes that prepare batches" if args.workers else ""
    about = (
        f"patchtree:{args.size}, p = {args.patch_size}, on {device}, {args.threads} thread(s){workers}. Each run "
        f"trains from random weights, by the optimiser of `patchtree train`, until the Dice of the held-out images is "
        f"{max(args.targets)} or {args.seconds:.4g} s have passed; a step takes {args.batch} whole images, turned and "
        "mirrored at random, one sequence each, of uniform patches or of adaptive ones (residual, "
        f"{args.budget:,} an image at most, at every size: where all uniform ones fit in, both ways are the same). "
        f"Seven of nine parts of scikit-image's picture {args.picture!r} are trained on, two held out, all resized to "
        "the row's size. The learning rate is constant after the first ten steps, and the weights' average over the "
        "last tenth of the steps is scored, at the images' full size, whenever a tenth more time has passed. Times "
        "hold everything: patches, labels and ghost cells made, waiting for them, steps and scores. "
        f"{args.seeds} seed(s); times are the median."
    )
    parts = ["### How much sooner the same Dice is reached", about, table(PACE, [row.pace() for row in rows])]
    for target in args.targets:
        times = table(TIMES, [row.times(target) for row in rows if not row.failed])
        parts += [f"#### Until a Dice of {target}", times, summary(rows, target)]
    common.publish("equal_dice", parts, args.save, ["torch"])


if __name__ == "__main__":
    common.start(main, measure)
