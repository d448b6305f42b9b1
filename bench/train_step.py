"""One training step of one model on adaptive and on uniform patches of the same image: time, memory, tokens."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bench import common
from bench.common import Case, Result, fresh, ratio, table
from numpy.typing import NDArray

import patchtree

if TYPE_CHECKING:  # torch is left to the processes that measure
    import torch

    from patchtree.models.segmenter import Segmenter
    from patchtree.samples import Batch

CLASSES = 3
# Patch pixels of an image at least, as far as it has them: what training begins with, see `choose_density`.
ENOUGH = 1 << 20
# A step that takes longer than this many seconds is not repeated.
SLOW = 10.0


def measure(case: Case) -> Result:
    """Make the patches of one image, then train on them for a few steps."""
    import torch

    from patchtree.models.choose import build_model

    warnings.simplefilter("ignore")
    common.set_threads(case["threads"])
    if case["what"] == "count":
        return {"multiply_adds": count_step(case)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    picture = common.load_picture("ihc")
    image, mask = (common.fill(part, (case["side"],) * 2) for part in (picture, common.stain_labels(picture)))
    torch.manual_seed(0)
    model = build_model(f"patchtree:{case['size']}", CLASSES, patch_size=case["patch_size"]).to(device)
    step = make_step(model, torch.optim.AdamW(model.parameters(), 1e-4, fused=True), device)
    corner = (slice(8 * case["patch_size"]),) * 2
    step(prepare({**case, "budget": 16}, [(image[corner], mask[corner])], model))

    batch = None
    preparing = []
    for _ in range(case["repeats"]):
        start = time.perf_counter()
        batch = prepare(case, [(image, mask)], model)
        preparing.append(time.perf_counter() - start)
    assert batch is not None
    del image, mask
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        seconds = timed_steps(lambda: step(batch), case["repeats"])
        memory = torch.cuda.max_memory_allocated()
    else:
        memory, seconds = common.extra_memory(lambda: timed_steps(lambda: step(batch), case["repeats"]))
    return {
        "tokens": batch.tokens.valid.shape[1],
        "prepare": statistics.median(preparing),
        "step": statistics.median(seconds),
        "memory": memory,
        "device": name_device(device),
    }


def name_device(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"


def count_step(case: Case) -> int:
    """Count the multiply-adds of a step forward and backward by the shapes of what is multiplied, nothing computed."""
    import torch
    from bench.segmentation.methods import count_multiply_adds

    from patchtree.models.choose import build_model
    from patchtree.tokens import Tokens

    p, count, uniform = case["patch_size"], case["budget"], patchtree.Tree.uniform
    model = build_model(f"patchtree:{case['size']}", CLASSES, patch_size=p).to("meta")
    with torch.device("meta"):
        tokens = Tokens(
            pixels=torch.empty(1, count, 3, p, p),
            centre=torch.empty(1, count, 2),
            level=torch.empty(1, count, dtype=torch.long),
            valid=torch.empty(1, count, dtype=torch.bool),
            extent=torch.empty(1, 2),
            # Only how many leaves there are is asked of it.
            trees=(uniform((p, count * p), p),),
        )
        ghosts = {grid: torch.empty(count, (grid + 2) ** 2, dtype=torch.long) for grid in model.grids}

    def step() -> None:
        model(tokens, ghosts).sum().backward()

    return count_multiply_adds(step)


def prepare(case: Case, drawn: Sequence[tuple[NDArray[Any], NDArray[Any]]], model: Segmenter) -> Batch:
    """Do what a data loader does of images and masks: patches, labels, ghost cells, batch."""
    from patchtree.samples import Sample, collate_samples

    samples = []
    for image, mask in drawn:
        if case["way"] == "uniform":
            tree = patchtree.Tree.uniform(mask.shape, case["patch_size"])
            patches = patchtree.Patches(patchtree.cut(image, tree), tree)
        else:
            patches = patchtree.Patcher(case["patch_size"], case["budget"], detail=case["detail"])(image)
        samples.append(Sample(patches, patchtree.count_labels(mask, patches.tree, len(model.labels)), ""))
    return collate_samples(samples, (0.5,) * 3, (0.25,) * 3, model.grids)


def make_step(model: Segmenter, optimiser: torch.optim.Optimizer, device: torch.device) -> Callable[[Batch], None]:
    """Make a step: forward, loss, backward, optimiser; bfloat16 where it is quick, as training does."""
    import torch

    from patchtree.losses import segmentation_loss
    from patchtree.models.precision import half_where_quick

    def step(batch: Batch) -> None:
        batch = batch.to(device)
        with half_where_quick(device):
            logits = model(batch.tokens, batch.ghosts)
        loss = segmentation_loss(logits, batch.counts)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def timed_steps(step: Callable[[], None], repeats: int) -> list[float]:
    """Time steps after one to warm up, unless that one was so long that it will do."""
    first = common.clock(step)
    return [first] if first > SLOW else [common.clock(step) for _ in range(repeats)]


# What is said first of both ways at one size.
STEPS = ("image", "N uniform", "N adaptive", "step uniform, s", "step adaptive, s", "faster")
HEADER = (
    *STEPS,
    "with patches made, faster",
    "memory uniform, MB",
    "memory adaptive, MB",
    "less memory",
    "multiply-adds, less",
)


def row(side: int, adaptive: Result, uniform: Result) -> tuple[object, ...]:
    """Compare both ways at one size."""
    both = "step" in adaptive and "step" in uniform
    return (
        f"{side:,} x {side:,}",
        f"{uniform['budget']:,}",
        f"{adaptive['budget']:,}",
        f"{uniform['step']:.3g}" if "step" in uniform else uniform["failed"],
        f"{adaptive['step']:.3g}" if "step" in adaptive else adaptive["failed"],
        ratio(uniform["step"] / adaptive["step"]) if both else "",
        ratio(end_to_end(uniform, adaptive)) if both else "",
        f"{uniform['memory'] / 1e6:.0f}" if "step" in uniform else "",
        f"{adaptive['memory'] / 1e6:.0f}" if "step" in adaptive else "",
        ratio(uniform["memory"] / max(1, adaptive["memory"])) if both else "",
        ratio(uniform["multiply_adds"] / adaptive["multiply_adds"]),
    )


def end_to_end(uniform: Result, adaptive: Result) -> float:
    return float((uniform["step"] + uniform["prepare"]) / (adaptive["step"] + adaptive["prepare"]))


Pair = tuple[int, Result, Result]


def compare(args: Any) -> dict[str, list[Pair]]:
    """Measure uniform patches and two budgets at each size; what does not fit is not tried at larger sizes."""
    results: dict[str, list[Pair]] = {}
    failed: set[str] = set()
    for side in args.sides:
        finest = math.ceil(side / args.patch_size) ** 2
        sparse = max(16, side**2 // args.pixels_per_token)
        default = max(sparse, min(finest, ENOUGH // args.patch_size**2))
        budgets = {"uniform": finest, "sparse": sparse, "default": default}
        found: dict[str, Result] = {}
        for way, budget in budgets.items():
            case = {
                "side": side,
                "way": way,
                "budget": budget,
                "patch_size": args.patch_size,
                "detail": args.detail,
                "size": args.size,
                "repeats": args.repeats,
                "threads": args.threads,
            }
            same = next((other for other in found if budgets[other] == budget), None)
            if same is not None:
                found[way] = found[same]
                continue
            count = fresh(__file__, {**case, "what": "count"}, args.threads)
            result: Result = {"failed": "not tried"}
            if way not in failed:
                common.progress(f"{way}, {side} x {side}, N = {budget}")
                memory = int(args.memory * common.free_memory())
                result = fresh(__file__, {**case, "what": "time"}, args.threads, args.timeout, memory)
            if "failed" in result:
                failed.add(way)
            found[way] = {**result, **count, "budget": budget}
        for way in ("sparse", "default"):
            results.setdefault(way, []).append((side, found[way], found["uniform"]))
    return results


def summary(pairs: list[Pair]) -> str:
    """Give the geometric means, of what was timed and of what was counted."""
    counted = statistics.geometric_mean(
        uniform["multiply_adds"] / adaptive["multiply_adds"] for _, adaptive, uniform in pairs
    )
    sizes = f"from {pairs[0][0]:,} to {pairs[-1][0]:,} px"
    words = f"Geometric mean over all sizes, {sizes}: {ratio(counted)} times fewer multiply-adds"
    both = [(adaptive, uniform) for _, adaptive, uniform in pairs if "step" in adaptive and "step" in uniform]
    if not both:
        return f"{words}; no size ran both ways."
    step = statistics.geometric_mean(uniform["step"] / adaptive["step"] for adaptive, uniform in both)
    whole = statistics.geometric_mean(end_to_end(uniform, adaptive) for adaptive, uniform in both)
    return (
        f"{words}; over the {len(both)} sizes that ran both ways, the step is {ratio(step)} times as fast, "
        f"{ratio(whole)} times with making the patches, labels and ghost cells."
    )


def main(argv: Sequence[str]) -> None:
    parser = common.options(__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[512 << step for step in range(6)], help="of the image")
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--pixels-per-token", type=int, default=4096, help="of adaptive patches; decides the budget")
    parser.add_argument("--detail", default="residual", choices=("edges", "residual", "variance"))
    parser.add_argument("--size", default="tiny", choices=("tiny", "small", "base"), help="of the model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=float, default=0.75, help="share of the free memory that a run may take")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that a run may take")
    args = parser.parse_args(argv)
    if args.quick:
        args.sides, args.repeats = [128], 1
    results = compare(args)
    device = next((one["device"] for _, *both in results["sparse"] for one in both if "device" in one), "no device")
    about = (
        f"patchtree:{args.size}, p = {args.patch_size}, batch of 1, on {device}, {args.threads} thread(s), detail "
        f"{args.detail!r}. A step is forward, loss, backward and AdamW on the whole image as one sequence; memory is "
        "what it adds to model and patches (on a GPU: what torch allocated). Multiply-adds, forward and backward, are "
        "counted by torch from shapes, also where nothing ran."
    )
    titles = {
        "sparse": f"A token for {args.pixels_per_token:,} pixels",
        "default": "As many tokens as training takes where labels ask for no more: a million patch pixels an image at "
        f"least, as far as it has them, and a token for {args.pixels_per_token:,} pixels",
    }
    parts = ["### A training step", about]
    for way, title in titles.items():
        parts += [f"#### {title}", table(HEADER, [row(*pair) for pair in results[way]]), summary(results[way])]
    common.publish("train_step", parts, args.save, ["torch"])


if __name__ == "__main__":
    common.start(main, measure)
