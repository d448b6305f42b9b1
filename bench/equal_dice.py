"""Dice and time of a step, the same model trained for as many steps on adaptive and on uniform patches of whole images.

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
# What of a step's time is compared.
PARTS = (("step",), ("step", "prepare"))
# Steps that are made where only their time is asked for, the first not counted.
TIMED = 3


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
    steps = case["steps"] or TIMED
    preparing, stepping = [], []
    for done in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * rate(done / steps)
        begin = time.perf_counter()
        batch = train_step.prepare(
            case, [turn_both(seen[at], rng) for at in rng.integers(len(seen), size=case["batch"])], model
        )
        preparing.append(time.perf_counter() - begin)
        stepping.append(common.clock(partial(step, batch)))
    result: Result = {
        "tokens": batch.tokens.valid.shape[1],
        "prepare": statistics.median(preparing[1:] or preparing),
        "step": statistics.median(stepping[1:] or stepping),
        "device": train_step.name_device(device),
    }
    if case["steps"]:
        tables = [scores.confusion(predict(case, image, model), mask, test) for image, mask in held_out]
        result["dice"] = float(scores.mean(scores.dice(np.sum(tables, 0))))
    return result


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
    "Dice uniform",
    "Dice adaptive",
    "step uniform, s",
    "step adaptive, s",
    "faster",
    "with patches made, faster",
)
WAYS = ("uniform", "adaptive")


def row(side: int, found: dict[str, list[Result]]) -> tuple[object, ...]:
    """Compare both ways at one size: Dice of each seed, medians of the times."""
    ways = [found[way] for way in WAYS]
    return (
        f"{side:,} x {side:,}",
        *(f"{results[0]['tokens']:,}" if "tokens" in results[0] else "" for results in ways),
        *(
            " ".join(f"{one['dice']:.3f}" if "dice" in one else one.get("failed", "not trained") for one in results)
            for results in ways
        ),
        *(f"{seconds(results, 'step'):.3g}" if "step" in results[0] else results[0]["failed"] for results in ways),
        *(ratio(gain(found, *parts)) if both_ran(found) else "" for parts in PARTS),
    )


def both_ran(found: dict[str, list[Result]]) -> bool:
    return all("step" in found[way][0] for way in WAYS)


def seconds(results: list[Result], *parts: str) -> float:
    """Give the seconds that parts of a step take together, the median over seeds that ran."""
    return statistics.median(sum(one[part] for part in parts) for one in results if "step" in one)


def gain(found: dict[str, list[Result]], *parts: str) -> float:
    return seconds(found["uniform"], *parts) / seconds(found["adaptive"], *parts)


def compare(args: Any) -> dict[int, dict[str, list[Result]]]:
    """Train both ways at each size, or only time them where that would take too long."""
    found: dict[int, dict[str, list[Result]]] = {}
    for side in args.sides:
        for way in WAYS:
            steps = args.steps if way == "adaptive" or side <= args.trained else 0
            case = {
                "side": side,
                "way": way,
                "budget": args.budget,
                "picture": args.picture,
                "patch_size": args.patch_size,
                "detail": "residual",
                "size": args.size,
                "batch": args.batch,
                "steps": steps,
                "threads": args.threads,
            }
            for seed in range(args.seeds if steps else 1):
                common.progress(f"{way}, {side} x {side}, seed {seed}")
                result = fresh(__file__, {**case, "seed": seed}, args.threads, args.timeout)
                common.progress(f"    {result}")
                found.setdefault(side, {}).setdefault(way, []).append(result)
    return found


def summary(found: dict[int, dict[str, list[Result]]]) -> str:
    """Give the geometric mean of how much faster steps are, of the sizes that ran both ways."""
    ran = {side: both for side, both in found.items() if both_ran(both)}
    if not ran:
        return "No size ran both ways."
    means = [statistics.geometric_mean(gain(both, *parts) for both in ran.values()) for parts in PARTS]
    sizes = ", ".join(f"{side:,}" for side in ran)
    return (
        f"Geometric mean over {sizes} px: the step is {ratio(means[0])} times as fast, "
        f"{ratio(means[1])} times with making the patches, labels and ghost cells."
    )


def main(argv: Sequence[str]) -> None:
    parser = common.options((__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="of the images")
    parser.add_argument("--trained", type=int, default=4096, help="largest side at which uniform patches are trained")
    parser.add_argument("--picture", default="retina", choices=list(pictures.PICTURES))
    parser.add_argument("--budget", type=int, default=1024, help="adaptive patches of an image")
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--size", default="tiny", choices=("nano", "tiny", "small", "base"), help="of the model")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that a run may take")
    args = parser.parse_args(argv)
    if args.quick:
        args.sides, args.budget, args.steps, args.seeds = [128], 16, 2, 1
    found = compare(args)
    device = next(
        (one["device"] for both in found.values() for one in both["adaptive"] if "device" in one), "no device"
    )
    about = (
        f"patchtree:{args.size}, p = {args.patch_size}, on {device}, {args.threads} thread(s). Each run makes "
        f"{args.steps} steps of {args.batch} whole images, one sequence each, by the optimiser and the schedule of "
        "`patchtree train`, from random weights; seven of nine parts of scikit-image's picture "
        f"{args.picture!r} are trained on, two held out, all enlarged to the size of the row. Adaptive patches are by "
        f"residual, {args.budget:,} an image at most, at every size. Dice is of the held-out images at their size, of "
        "each seed. A step is forward, loss, backward and optimiser."
    )
    parts = ["### A training step at equal Dice", about, table(HEADER, [row(side, found[side]) for side in found])]
    common.publish("equal_dice", [*parts, summary(found)], args.save, ["torch"])


if __name__ == "__main__":
    common.start(main, measure)
