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
    labels = {name: at for at, name in enumerate(pictures.PICTURES[case["picture"]][1])}
    model = build_model(f"patchtree:{case['size']}", labels, patch_size=case["patch_size"])
    seen, held_out = [], []
    for at in range(pictures.PARTS**2):
        part = [np.load(Path(case["data"]) / f"{what}{at}.npy", mmap_mode="r") for what in ("image", "mask")]
        (held_out if at in HELD_OUT else seen).append(part)
    tests = [train_step.prepare(case, [(image[:], mask[:])], model).to(device) for image, mask in held_out]

    # What libraries set up at their first step is no part of a training.
    warm = copy.deepcopy(model).to(device)
    train_step.make_step(warm, optimiser_of(warm), device)(tests[0])
    del warm
    batches = iter(load(case, seen, model))
    begin = time.perf_counter()
    model = model.to(device)
    average = AveragedModel(model, multi_avg_fn=move_average)
    optimiser = optimiser_of(model)
    step = train_step.make_step(model, optimiser, device)
    course, next_look, steps, dice = [], 0.0, 0, 0.0
    while (spent := time.perf_counter() - begin) < case["seconds"]:
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
        "memory": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
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
    """What became of the trainings on one kind of patches, one a seed.

    Attributes:
        results: what `measure` gave.
        target: Dice that was to be reached.
        seconds: that there were for it.
    """

    results: list[Result]
    target: float
    seconds: float

    @property
    def failed(self) -> str | None:
        return next((one["failed"] for one in self.results if "failed" in one), None)

    @property
    def tokens(self) -> int:
        return int(self.results[0]["tokens"])

    @property
    def step(self) -> float:
        """Seconds of a step, patches made, from when the first had been made."""
        paces = []
        for one in self.results:
            first, last = one["course"][0], one["course"][-1]
            many = last[1] > first[1]
            paces.append((last[0] - first[0]) / (last[1] - first[1]) if many else last[0] / last[1])
        return statistics.median(paces)

    @property
    def best(self) -> list[float]:
        return [max(dice for *_, dice in one["course"]) for one in self.results]

    @property
    def reached(self) -> bool:
        return all(dice >= self.target for dice in self.best)

    @property
    def needed(self) -> float:
        """Median of the seconds that were needed, or spent."""
        return statistics.median(one["course"][-1][0] for one in self.results)

    @property
    def steps(self) -> str:
        return " ".join(f"{one['course'][-1][1]:,}" for one in self.results)


HEADER = (
    "image",
    "N uniform",
    "N adaptive",
    "step uniform, s",
    "step adaptive, s",
    "faster",
    "steps uniform",
    "steps adaptive",
    "Dice uniform",
    "Dice adaptive",
    "after uniform, s",
    "after adaptive, s",
    "sooner",
)


@dataclass(frozen=True)
class Row:
    """Both ways at one size; the same where the budget has room for all uniform patches."""

    side: int
    uniform: Way
    adaptive: Way

    @property
    def faster(self) -> float:
        return self.uniform.step / self.adaptive.step

    @property
    def sooner(self) -> float | None:
        """How many times sooner adaptive patches were good enough; a lower bound where uniform ones never were."""
        ran = self.uniform.failed is None and self.adaptive.failed is None
        return self.uniform.needed / self.adaptive.needed if ran and self.adaptive.reached else None

    def cells(self) -> tuple[object, ...]:
        ways = (self.uniform, self.adaptive)

        def both(show: Any) -> tuple[str, ...]:
            return tuple(show(way) if way.failed is None else "" for way in ways)

        least = "" if self.uniform.failed is None and self.uniform.reached else "at least "
        ran = all(way.failed is None for way in ways)
        return (
            f"{self.side:,} x {self.side:,}",
            *(f"{way.tokens:,}" if way.failed is None else way.failed for way in ways),
            *both(lambda way: f"{way.step:.3g}"),
            ratio(self.faster) if ran else "",
            *both(lambda way: way.steps),
            *both(lambda way: " ".join(f"{dice:.3f}" for dice in way.best)),
            *both(lambda way: f"{way.needed:.3g}" if way.reached else f"over {way.seconds:.0f}"),
            f"{least}{ratio(self.sooner)}" if self.sooner else "",
        )


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
                "target": args.target,
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
        return Way(results, args.target, args.seconds)

    adaptive = train("adaptive")
    same = math.ceil(side / args.patch_size) ** 2 <= args.budget
    return Row(side, adaptive if same else train("uniform"), adaptive)


def summary(rows: list[Row]) -> str:
    """Give the geometric means, of the sizes that ran both ways."""
    ran = [row for row in rows if row.sooner]
    if not ran:
        return "At no size were adaptive patches good enough."
    sizes = ", ".join(f"{row.side:,}" for row in ran)
    bound = "" if all(row.uniform.reached for row in ran) else "at least "
    sooner = statistics.geometric_mean(row.sooner for row in ran if row.sooner)
    return (
        f"Geometric mean over {sizes} px: as good {bound}{ratio(sooner)} times sooner, and a step, patches made, is "
        f"{ratio(statistics.geometric_mean(row.faster for row in ran))} times as fast."
    )


def main(argv: Sequence[str]) -> None:
    parser = common.options((__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048], help="of the images")
    parser.add_argument("--picture", default="retina", choices=list(pictures.PICTURES))
    parser.add_argument("--budget", type=int, default=1024, help="adaptive patches of an image")
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--size", default="tiny", choices=("nano", "tiny", "small", "base"), help="of the model")
    parser.add_argument("--target", type=float, default=0.7, help="Dice to be reached")
    parser.add_argument("--seconds", type=float, default=900, help="that a training has at most")
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches; 0: the one that trains")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds that a run may take")
    args = parser.parse_args(argv)
    if args.quick:
        args.sides, args.budget, args.seconds, args.target = [128], 16, 4, 0.01
    rows = []
    for side in args.sides:
        with tempfile.TemporaryDirectory() as data:
            rows.append(compare(args, side, data))
    results = [one for row in rows for way in (row.uniform, row.adaptive) for one in way.results]
    device = next((one["device"] for one in results if "device" in one), "no device")
    workers = f", {args.workers} processes that prepare batches" if args.workers else ""
    about = (
        f"patchtree:{args.size}, p = {args.patch_size}, on {device}, {args.threads} thread(s){workers}. Each run "
        f"trains from random weights, by the optimiser of `patchtree train`, until the Dice of the held-out images is "
        f"{args.target} or {args.seconds:.4g} s have passed; a step takes {args.batch} whole images, turned and "
        "mirrored at random, one sequence each, of uniform patches or of adaptive ones (residual, "
        f"{args.budget:,} an image at most, at every size: where all uniform ones fit in, both ways are the same). "
        f"Seven of nine parts of scikit-image's picture {args.picture!r} are trained on, two held out, all resized to "
        "the row's size. The learning rate is constant after the first ten steps, and the weights' average over the "
        "last tenth of the steps is scored, at the images' full size, whenever a tenth more time has passed. Times "
        "hold everything: patches, labels and ghost cells made, waiting for them, steps and scores. 'Dice' is the best "
        f"that was seen. {args.seeds} seed(s); times are the median."
    )
    parts = ["### How much sooner the same Dice is reached", about, table(HEADER, [row.cells() for row in rows])]
    common.publish("equal_dice", [*parts, summary(rows)], args.save, ["torch"])


if __name__ == "__main__":
    common.start(main, measure)
