"""Losses and metrics on patches against the same on the painted full-resolution image: equality, time, memory."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bench import common
from bench.common import Case, Result, fresh, millis, ratio, table
from numpy.typing import NDArray

import patchtree

if TYPE_CHECKING:  # torch is left to the processes that measure
    from torch import Tensor

CLASSES = 3


def measure(case: Case) -> Result:
    """Make an image with labels, its tree and logits, and compute everything one way."""
    common.set_threads(1)
    warnings.simplefilter("ignore")
    side = case["side"]
    picture = common.load_picture("ihc")
    image, mask = (common.fill(part, (side, side)) for part in (picture, common.stain_labels(picture)))
    budget = max(64, side**2 // case["pixels_per_token"])
    tree = patchtree.Patcher(16, budget, detail="residual").plan(image)
    logits = np.random.default_rng(0).normal(size=(len(tree), 16, 16, CLASSES)).astype(np.float32)
    call = on_patches(tree, mask, logits) if case["way"] == "patches" else on_image(tree, mask, logits)
    del image, logits
    warm_up()
    memory, values = common.extra_memory(call)
    times = common.interleave({"all": call}, case["repeats"])
    return {
        "tokens": len(tree),
        "seconds": times["all"].median,
        "memory": memory,
        "values": {name: value.double().flatten().tolist() for name, value in values.items()},
    }


def on_patches(tree: patchtree.Tree, mask: NDArray[Any], logits: NDArray[Any]) -> Callable[[], dict[str, Tensor]]:
    import torch

    from patchtree import losses, metrics

    counts = torch.from_numpy(patchtree.count_labels(mask, tree, CLASSES))[None]
    given = torch.from_numpy(logits)[None].requires_grad_()

    def call() -> dict[str, Tensor]:
        values = {
            "cross-entropy": losses.cross_entropy(given, counts),
            "Dice loss": losses.dice_loss(given, counts),
        }
        given.grad = None
        sum(values.values()).backward()  # type: ignore[union-attr]
        confusion = metrics.confusion(given.argmax(-1), counts)
        return _finish(values, confusion)

    return call


def on_image(tree: patchtree.Tree, mask: NDArray[Any], logits: NDArray[Any]) -> Callable[[], dict[str, Tensor]]:
    """Compute the same the usual way, on logits painted beforehand."""
    import torch
    import torch.nn.functional as F

    target = torch.from_numpy(mask.astype(np.int64))[None]
    given = torch.from_numpy(tree.paint(logits)).movedim(-1, 0)[None].contiguous().requires_grad_()

    def call() -> dict[str, Tensor]:
        values = {"cross-entropy": F.cross_entropy(given, target), "Dice loss": dice_of_image(given, target)}
        given.grad = None
        sum(values.values()).backward()  # type: ignore[union-attr]
        pairs = target * CLASSES + given.argmax(1)
        confusion = torch.bincount(pairs.flatten(), minlength=CLASSES**2).view(CLASSES, CLASSES)
        return _finish(values, confusion.double())

    return call


def dice_of_image(logits: Tensor, target: Tensor) -> Tensor:
    """MONAI's DiceLoss(softmax=True, to_onehot_y=True), ``(B, K, H, W)`` and ``(B, H, W)``."""
    import torch.nn.functional as F

    share = logits.softmax(1)
    truth = F.one_hot(target, CLASSES).movedim(-1, 1).float()
    both, sums = (share * truth).sum((2, 3)), (share + truth).sum((2, 3))
    return (1 - (2 * both + 1e-5) / (sums + 1e-5)).mean()


def _finish(values: dict[str, Tensor], confusion: Tensor) -> dict[str, Tensor]:
    from patchtree import metrics

    return {
        **{name: value.detach() for name, value in values.items()},
        "confusion": confusion,
        "Dice": metrics.dice(confusion),
        "IoU": metrics.iou(confusion),
    }


def warm_up() -> None:
    """Start what torch starts once, on a small image."""
    mask = np.zeros((64, 64), np.uint8)
    tree = patchtree.Tree.uniform(mask.shape, 16)
    logits = np.zeros((len(tree), 16, 16, CLASSES), np.float32)
    on_patches(tree, mask, logits)()
    on_image(tree, mask, logits)()


def largest_difference(one: Result, other: Result) -> float:
    """Give the largest relative difference of all values; where both are nan (an absent class) there is none."""
    a, b = (np.concatenate([result["values"][name] for name in one["values"]]) for result in (one, other))
    differences = np.where(np.isnan(a) & np.isnan(b), 0, np.abs(a - b) / np.maximum(np.abs(b), 1e-30))
    return float(differences.max())


HEADER = (
    "image",
    "N",
    "largest relative difference",
    "image, ms",
    "patches, ms",
    "times faster",
    "image, MB",
    "patches, MB",
    "times less memory",
)


def row(side: int, patches: Result, image: Result) -> tuple[object, ...]:
    name = f"{side} x {side}"
    for result, what in ((patches, "patches"), (image, "image")):
        if "failed" in result:
            return (name, *[""] * (len(HEADER) - 2), f"{what}: {result['failed']}")
    return (
        name,
        f"{patches['tokens']:,}",
        f"{largest_difference(patches, image):.1e}",
        millis(image["seconds"]),
        millis(patches["seconds"]),
        ratio(image["seconds"] / patches["seconds"]),
        f"{image['memory'] / 1e6:.0f}",
        f"{patches['memory'] / 1e6:.1f}",
        ratio(image["memory"] / max(1, patches["memory"])),
    )


def main(argv: Sequence[str]) -> None:
    parser = common.options(__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="of the image, pixels")
    parser.add_argument("--pixels-per-token", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", type=float, default=0.75, help="share of the free memory that a run may take")
    args = parser.parse_args(argv)
    if args.quick:
        args.sides, args.repeats = [256], 1
    rows = []
    for side in args.sides:
        results = []
        for way in ("patches", "image"):
            common.progress(f"{way}, {side} x {side}")
            case = {"way": way, "side": side, "pixels_per_token": args.pixels_per_token, "repeats": args.repeats}
            results.append(fresh(__file__, case, memory=int(args.memory * common.free_memory())))
        rows.append(row(side, *results))
    about = (
        f"Cross-entropy and Dice loss with their gradients, then confusion, Dice and IoU; {CLASSES} classes, p = 16, "
        f"{args.pixels_per_token} pixels a token, one thread. Painting the logits is not timed; memory is what the "
        "computation adds to logits and labels."
    )
    common.publish(
        "loss",
        ["### Losses and metrics on patches and on the painted image", about, table(HEADER, rows)],
        args.save,
        ["torch"],
    )


if __name__ == "__main__":
    common.start(main, measure)
