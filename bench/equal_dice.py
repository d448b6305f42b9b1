"""How much sooner the same model is as good on adaptive patches of whole images as on uniform ones.

The images show the same at every size, so adaptive patches are as many at every size.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench import common, train_step
from bench.common import Case, Result, fresh, ratio, table
from bench.quality import split_test
from bench.segmentation import pictures, scores
from numpy.typing import NDArray

from patchtree.slides.turned import turn

if TYPE_CHECKING:  # torch is left to the processes that measure
    from patchtree.models.segmenter import Segmenter

# Highest learning rate of Muon, that of `patchtree train`.
RATE = 3e-3
Pair = tuple[NDArray[Any], NDArray[Any]]
# Dice that differs by less is equal.
EQUAL = 0.01


def measure(case: Case) -> Result:
    """Train on random images, turned and mirrored at random, then score the images held out."""
    import torch

    from patchtree.models.choose import build_model
    from patchtree.schedule import rate
    from patchtree.tasks import Task

    warnings.simplefilter("ignore")
    common.set_threads(case["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        root = pictures.make_data(Path(scratch) / "data", case["picture"], case["side"])
        train, test = split_test(root)
        seen, held_out = ([(pair.read_image(), pair.read_mask()) for pair in part.pairs] for part in (train, test))
    torch.manual_seed(case["seed"])
    rng = np.random.default_rng(case["seed"])
    model = build_model(f"patchtree:{case['size']}", train.labels, patch_size=case["patch_size"]).to(device)
    optimiser = Task(model, RATE, muon=True).configure_optimizers()
    step = train_step.make_step(model, optimiser, device)
    preparing, stepping = [], []
    while (spent := sum(preparing) + sum(stepping)) < case["seconds"]:
        for group in optimiser.param_groups:
            group["lr"] = RATE * rate(spent / case["seconds"])
        begin = time.perf_counter()
        batch = train_step.prepare(
            case, [turn_both(seen[at], rng) for at in rng.integers(len(seen), size=case["batch"])], model
        )
        preparing.append(time.perf_counter() - begin)
        stepping.append(common.clock(partial(step, batch)))
    tables = [scores.confusion(predict(case, image, model), mask, test) for image, mask in held_out]
    return {
        "tokens": batch.tokens.valid.shape[1],
        "steps": len(stepping),
        # The first is not like the others: what it needs is set up.
        "step": statistics.median(stepping[1:] or stepping) + statistics.median(preparing[1:] or preparing),
        "dice": float(scores.mean(scores.dice(np.sum(tables, 0)))),
        "device": train_step.name_device(device),
    }


def turn_both(pair: Pair, rng: np.random.Generator) -> Pair:
    """Turn and mirror an image and its mask at random."""
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    image, mask = (turn(part, mirrored, turns) for part in pair)
    return image, mask


def predict(case: Case, image: NDArray[Any], model: Segmenter) -> NDArray[Any]:
    """Give class ids ``(H, W)``, painted as `patchtree.inference` paints them."""
    import torch

    from patchtree.models.precision import half_where_quick

    device = next(model.parameters()).device
    batch = train_step.prepare(case, [(image, np.zeros(image.shape[:2], np.uint8))], model).to(device)
    with torch.inference_mode(), half_where_quick(device):
        probabilities = model.eval()(batch.tokens, batch.ghosts)[0].float().softmax(-1)
    return np.asarray(batch.tokens.trees[0].paint(probabilities.cpu().numpy(), smooth=True).argmax(-1))


HEADER = (
    "image",
    "N uniform",
    "N adaptive",
    "step uniform, s",
    "step adaptive, s",
    "faster",
    "Dice uniform",
    "Dice adaptive",
    "as good after, s",
    "sooner",
)


@dataclass(frozen=True)
class Row:
    """What was found at one size.

    Attributes:
        side: of the images, in pixels.
        uniform: a result of each seed.
        adaptive: the same for each time that a training had, in seconds, the longest first.
    """

    side: int
    uniform: list[Result]
    adaptive: dict[float, list[Result]]

    @property
    def ran(self) -> bool:
        return all("dice" in one for results in (self.uniform, *self.adaptive.values()) for one in results)

    @property
    def seconds(self) -> float:
        """What uniform patches had."""
        return next(iter(self.adaptive))

    @property
    def enough(self) -> float | None:
        """The least time after which adaptive patches were as good; None if they never were."""
        least = mean(self.uniform) - EQUAL
        good = [seconds for seconds, results in self.adaptive.items() if mean(results) >= least]
        return min(good, default=None)

    @property
    def sooner(self) -> float | None:
        return self.seconds / self.enough if self.enough else None

    @property
    def faster(self) -> float:
        return median(self.uniform, "step") / median(self.adaptive[self.seconds], "step")

    def cells(self) -> tuple[object, ...]:
        name = f"{self.side:,} x {self.side:,}"
        if not self.ran:
            results = (self.uniform, *self.adaptive.values())
            return (name, next(one["failed"] for some in results for one in some if "failed" in one), *[""] * 8)
        ways = (self.uniform, self.adaptive[self.seconds])
        return (
            name,
            *(f"{results[0]['tokens']:,}" for results in ways),
            *(f"{median(results, 'step'):.3g}" for results in ways),
            ratio(self.faster),
            *(" ".join(f"{one['dice']:.3f}" for one in results) for results in ways),
            f"{self.enough:.3g}" if self.enough else "never",
            ratio(self.sooner) if self.sooner else "",
        )


def mean(results: list[Result]) -> float:
    return statistics.mean(one["dice"] for one in results)


def median(results: list[Result], what: str) -> float:
    return statistics.median(one[what] for one in results)


def compare(args: Any, side: int) -> Row:
    """Train on uniform patches for the time given, and on adaptive ones for less and less while they are as good."""

    def train(way: str, seconds: float) -> list[Result]:
        results = []
        for seed in range(args.seeds):
            common.progress(f"{way}, {side} x {side}, {seconds:.3g} s, seed {seed}")
            case = {
                "side": side,
                "way": way,
                "seconds": seconds,
                "budget": args.budget,
                "picture": args.picture,
                "patch_size": args.patch_size,
                "detail": "residual",
                "size": args.size,
                "batch": args.batch,
                "threads": args.threads,
                "seed": seed,
            }
            results.append(fresh(__file__, case, args.threads, args.timeout))
            common.progress(f"    {results[-1]}")
        return results

    found = Row(side, train("uniform", args.seconds), {})
    seconds = args.seconds
    while seconds >= args.shortest:
        found.adaptive[seconds] = train("adaptive", seconds)
        if not found.ran or found.enough != seconds:
            break
        seconds /= 2
    return found


def by_time(rows: list[Row]) -> str:
    """Give the Dice on adaptive patches after each time."""
    ran = [row for row in rows if row.ran]
    times = sorted({seconds for row in ran for seconds in row.adaptive}, reverse=True)
    cells = [
        (f"{row.side:,} x {row.side:,}", *(f"{mean(row.adaptive[s]):.3f}" if s in row.adaptive else "" for s in times))
        for row in ran
    ]
    return table(("image", *(f"after {seconds:.3g} s" for seconds in times)), cells)


def summary(rows: list[Row]) -> str:
    """Give the geometric means, of the sizes that ran both ways."""
    ran = [row for row in rows if row.ran and row.enough]
    if not ran:
        return "At no size were adaptive patches as good."
    sizes = ", ".join(f"{row.side:,}" for row in ran)
    sooner = statistics.geometric_mean(row.sooner for row in ran if row.sooner)
    return (
        f"Geometric mean over {sizes} px: as good {ratio(sooner)} times sooner, and a step, patches made, is "
        f"{ratio(statistics.geometric_mean(row.faster for row in ran))} times as fast."
    )


def main(argv: Sequence[str]) -> None:
    parser = common.options((__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048], help="of the images")
    parser.add_argument("--picture", default="retina", choices=list(pictures.PICTURES))
    parser.add_argument("--budget", type=int, default=1024, help="adaptive patches of an image")
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--size", default="tiny", choices=("nano", "tiny", "small", "base"), help="of the model")
    parser.add_argument("--seconds", type=float, default=600, help="that a training on uniform patches has")
    parser.add_argument("--shortest", type=float, default=4, help="seconds that a training has at least")
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=7200, help="seconds that a run may take")
    args = parser.parse_args(argv)
    if args.quick:
        args.sides, args.budget, args.seconds, args.shortest, args.seeds = [128], 16, 2, 1, 1
    rows = [compare(args, side) for side in args.sides]
    device = next((one["device"] for row in rows for one in row.uniform if "device" in one), "no device")
    about = (
        f"patchtree:{args.size}, p = {args.patch_size}, on {device}, {args.threads} thread(s). On uniform patches each "
        f"run has {args.seconds:.4g} s, patches made, of steps of {args.batch} whole images, one sequence each, by the "
        "optimiser and the schedule of `patchtree train`, from random weights; seven of nine parts of scikit-image's "
        f"picture {args.picture!r} are trained on, two held out, all enlarged to the size of the row. On adaptive "
        f"patches (residual, {args.budget:,} an image at most, at every size) runs have as much, half of that, ..., "
        f"each with its own schedule, while their Dice is no more than {EQUAL} below that of uniform patches. Dice is "
        "of the held-out images at their size, of each seed, after the whole time. A step is that of all the batch: "
        "patches, labels and ghost cells, forward, loss, backward and optimiser."
    )
    parts = ["### How much sooner the same Dice is reached", about, table(HEADER, [row.cells() for row in rows])]
    common.publish("equal_dice", [*parts, by_time(rows), summary(rows)], args.save, ["torch"])


if __name__ == "__main__":
    common.start(main, measure)
