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

    from patchtree.data import Batch
    from patchtree.models.segmenter import Segmenter

CLASSES = 3
# A step that takes longer than this many seconds is not repeated.
SLOW = 10.0


def measure(case: Case) -> Result:
    """Make the patches of one image, then train on them for a few steps."""
    import torch

    from patchtree.models.choose import build_model

    warnings.simplefilter("ignore")
    common.set_threads(case["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    picture = common.load_picture("ihc")
    image, mask = (common.fill(part, (case["side"],) * 2) for part in (picture, common.stain_labels(picture)))
    torch.manual_seed(0)
    model = build_model(f"patchtree:{case['size']}", CLASSES, patch_size=case["patch_size"]).to(device)
    step = make_step(model, device)
    corner = (slice(8 * case["patch_size"]),) * 2
    step(prepare({**case, "budget": 16}, image[corner], mask[corner], model))

    batch = None
    preparing = []
    for _ in range(case["repeats"]):
        start = time.perf_counter()
        batch = prepare(case, image, mask, model)
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
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "the CPU",
    }


def prepare(case: Case, image: NDArray[Any], mask: NDArray[Any], model: Segmenter) -> Batch:
    """Do what a data loader does: patches, labels, ghost cells, batch."""
    from patchtree.data import Sample, collate_samples

    if case["way"] == "uniform":
        tree = patchtree.Tree.uniform(mask.shape, case["patch_size"])
        patches = patchtree.Patches(patchtree.cut(image, tree), tree)
    else:
        patches = patchtree.Patcher(case["patch_size"], case["budget"], detail=case["detail"])(image)
    counts = patchtree.count_labels(mask, patches.tree, CLASSES)
    return collate_samples([Sample(patches, counts, "")], (0.5,) * 3, (0.25,) * 3, model.grids)


def make_step(model: Segmenter, device: torch.device) -> Callable[[Batch], None]:
    """Make a step: forward, loss, backward, optimiser; bfloat16 on a GPU, as training does."""
    import torch

    from patchtree.losses import segmentation_loss

    optimiser = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step(batch: Batch) -> None:
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
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


HEADER = (
    "image",
    "N uniform",
    "N adaptive",
    "step uniform, s",
    "step adaptive, s",
    "faster",
    "with patches made, faster",
    "memory uniform, MB",
    "memory adaptive, MB",
    "less memory",
)


def row(side: int, adaptive: Result, uniform: Result, patch_size: int) -> tuple[object, ...]:
    name, tokens = f"{side} x {side}", f"{math.ceil(side / patch_size) ** 2:,}"
    if "failed" in adaptive:
        return (name, tokens, "", uniform.get("failed", ""), adaptive["failed"], *[""] * 5)
    mine = (f"{adaptive['step']:.3g}", f"{adaptive['memory'] / 1e6:.0f}", f"{adaptive['tokens']:,}")
    if "failed" in uniform:
        return (name, tokens, mine[2], uniform["failed"], mine[0], "", "", "", mine[1], "")
    return (
        name,
        tokens,
        mine[2],
        f"{uniform['step']:.3g}",
        mine[0],
        ratio(uniform["step"] / adaptive["step"]),
        ratio(end_to_end(uniform, adaptive)),
        f"{uniform['memory'] / 1e6:.0f}",
        mine[1],
        ratio(uniform["memory"] / max(1, adaptive["memory"])),
    )


def end_to_end(uniform: Result, adaptive: Result) -> float:
    return (uniform["step"] + uniform["prepare"]) / (adaptive["step"] + adaptive["prepare"])


def compare(args: Any) -> list[tuple[int, Result, Result]]:
    """Measure both ways at each size; once uniform patches do not fit, larger sizes are not tried."""
    results = []
    uniform: Result = {}
    for side in args.sides:
        case = {
            "side": side,
            "patch_size": args.patch_size,
            "budget": max(16, side**2 // args.pixels_per_token),
            "detail": args.detail,
            "size": args.size,
            "repeats": args.repeats,
            "threads": args.threads,
        }

        def run(way: str, case: Case = case) -> Result:
            common.progress(f"{way}, {case['side']} x {case['side']}")
            memory = int(args.memory * common.free_memory())
            return fresh(__file__, {**case, "way": way}, args.threads, args.timeout, memory)

        adaptive = run("adaptive")
        uniform = {"failed": "not tried"} if "failed" in uniform else run("uniform")
        results.append((side, adaptive, uniform))
    return results


def summary(results: list[tuple[int, Result, Result]]) -> str:
    both = [(adaptive, uniform) for _, adaptive, uniform in results if "failed" not in adaptive | uniform]
    if not both:
        return "No size ran both ways."
    step = statistics.geometric_mean(uniform["step"] / adaptive["step"] for adaptive, uniform in both)
    whole = statistics.geometric_mean(end_to_end(uniform, adaptive) for adaptive, uniform in both)
    return (
        f"Geometric mean over the {len(both)} sizes that ran both ways: the step is {ratio(step)} times as fast, "
        f"{ratio(whole)} times with making the patches, labels and ghost cells."
    )


def main(argv: Sequence[str]) -> None:
    parser = common.options(__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="of the image, pixels")
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
    device = next((one["device"] for _, *both in results for one in both if "device" in one), "no device")
    about = (
        f"patchtree:{args.size}, p = {args.patch_size}, batch of 1, on {device}, {args.threads} thread(s); adaptive: "
        f"detail {args.detail!r}, {args.pixels_per_token} pixels a token. A step is forward, loss, backward and AdamW; "
        "memory is what it adds to model and patches (on a GPU: what torch allocated)."
    )
    rows = [row(side, adaptive, uniform, args.patch_size) for side, adaptive, uniform in results]
    common.publish(
        "train_step", ["### A training step", about, table(HEADER, rows), summary(results)], args.save, ["torch"]
    )


if __name__ == "__main__":
    common.start(main, measure)
