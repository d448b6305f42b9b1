"""The mosaic door: how many neighbours in the mosaic are neighbours in the image, and what laying the mosaic costs."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import warnings
from collections.abc import Sequence

import numpy as np
from bench import common
from bench.common import Case, Result, fresh, millis, table
from numpy.typing import NDArray

import patchtree

CLASSES = 3
PATCH_SIZE = 16


def measure(case: Case) -> Result:
    """Time a light model on the mosaic of so many leaves, and the door around it alone."""
    import torch
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    common.set_threads(1)
    warnings.simplefilter("ignore")
    image = common.fill(common.load_picture("ihc"), (case["side"],) * 2)
    tokens = patchtree.collate([patchtree.Patcher(PATCH_SIZE, case["tokens"], detail="residual")(image)])
    torch.manual_seed(0)
    model = deeplabv3_mobilenet_v3_large(weights_backbone=None, num_classes=CLASSES).eval()
    door = patchtree.through_mosaic(model)
    images = patchtree.mosaic(tokens)
    values = torch.zeros(1, CLASSES, *images.shape[2:])
    calls = {
        "mosaic": lambda: patchtree.mosaic(tokens),
        "unmosaic": lambda: patchtree.unmosaic(values, tokens).contiguous(),
        "model": lambda: model(images),
        "door": lambda: door(tokens),
    }
    with torch.inference_mode():
        for call in calls.values():
            call()
        times = common.interleave(calls, case["repeats"])
    tiles = (images.shape[-1] // PATCH_SIZE) ** 2
    return {"tokens": tokens.valid.shape[1], "tiles": tiles, **{name: time.median for name, time in times.items()}}


def borders(tree: patchtree.Tree) -> tuple[float, float]:
    """Give the shares of the borders between tiles of the mosaic that are borders in the image.

    First those between leaves of one size, each on the other's same side as in the mosaic, whole edge to whole edge;
    then those between leaves that touch at all.
    """
    side = 1
    while side * side < len(tree):
        side *= 2
    place = patchtree.Tree.uniform((side, side), patch_size=1).index[: len(tree)]
    laid = np.full((side, side), -1)
    laid[tuple(place.T)] = np.arange(len(tree))
    boxes = tree.boxes()
    alike, touching, all_ = 0, 0, 0
    for axis in (0, 1):
        first, second = (np.moveaxis(laid, axis, 0)[part].ravel() for part in (slice(None, -1), slice(1, None)))
        both = (first >= 0) & (second >= 0)
        one, other = boxes[first[both]], boxes[second[both]]
        alike += np.count_nonzero(next_to(one, other, axis))
        touching += np.count_nonzero(touch(one, other))
        all_ += len(one)
    return alike / all_, touching / all_


def next_to(one: NDArray[np.int64], other: NDArray[np.int64], axis: int) -> NDArray[np.bool_]:
    """Say of pairs of boxes ``(M, 4)`` whether the other is the one moved by its own side along an axis."""
    step = np.zeros_like(one)
    step[:, axis] = step[:, axis + 2] = one[:, axis + 2] - one[:, axis]
    return np.asarray((other == one + step).all(axis=1))


def touch(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say of pairs of disjoint boxes ``(M, 4)`` whether they share a part of an edge."""
    shared = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    return np.asarray((shared.min(axis=1) == 0) & (shared.max(axis=1) > 0))


def neighbours(counts: Sequence[int], patch_size: int) -> str:
    """Make the table of what neighbours in the mosaic are in the image."""
    warnings.simplefilter("ignore")
    rows: list[Sequence[object]] = []
    for name in ("retina", "ihc"):
        image = common.load_picture(name)
        uniform = patchtree.Tree.uniform(image.shape[:2], patch_size)
        trees = [("uniform", uniform)]
        for detail in ("edges", "residual"):
            # With most cells at the finest level there is little left that is adaptive.
            few = [count for count in counts if 4 * count <= len(uniform)]
            trees += [(detail, patchtree.Patcher(patch_size, count, detail=detail).plan(image)) for count in few]
        for label, tree in trees:
            shape = " x ".join(map(str, image.shape[:2]))
            rows.append((f"{name}, {shape}", label, f"{len(tree):,}", *(f"{share:.0%}" for share in borders(tree))))
    return table(("image", "tree", "N", "same size, same side", "touch at all"), rows)


def cost(counts: Sequence[int], side: int, repeats: int) -> str:
    """Make the table of times."""
    rows: list[Sequence[object]] = []
    for count in counts:
        common.progress(f"{count} tokens")
        result = fresh(__file__, {"tokens": count, "side": side, "repeats": repeats})
        if "failed" in result:
            rows.append((f"{count:,}", *[""] * 5, result["failed"]))
            continue
        laying = result["mosaic"] + result["unmosaic"]
        rows.append(
            (
                f"{result['tokens']:,}",
                f"{result['tiles']:,}",
                millis(result["mosaic"]),
                millis(result["unmosaic"]),
                millis(result["model"]),
                millis(result["door"]),
                f"{laying / result['model']:.1%}",
            )
        )
    header = ("N", "tiles", "mosaic, ms", "unmosaic, ms", "model, ms", "through the door, ms", "laying / model")
    return table(header, rows)


def main(argv: Sequence[str]) -> None:
    parser = common.options(__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[256, 1024, 4096], help="tokens")
    parser.add_argument("--odd", type=int, default=1500, help="tokens that do not fill their mosaic, for the times")
    parser.add_argument("--patch-size", type=int, default=8, help="for the neighbours, pixels")
    parser.add_argument("--side", type=int, default=4096, help="of the image, for the times, pixels")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    if args.quick:
        args.counts, args.odd, args.side, args.repeats = [64], 70, 512, 1
    about_neighbours = (
        "Of all borders between two tiles of the mosaic, those between leaves that lie the same way in the image, "
        "whole edge to whole edge, and those between leaves that touch there at all; "
        f"p = {args.patch_size}. On the uniform tree of a square of p x 2^k pixels all do, for the mosaic is the image."
    )
    about_cost = (
        f"torchvision's DeepLabV3 on MobileNetV3, a light model, p = {PATCH_SIZE}, one image, one thread. "
        "A mosaic has 4^k tiles, and the model pays for those beyond N too."
    )
    common.publish(
        "mosaic",
        [
            "### What neighbours in the mosaic are in the image",
            about_neighbours,
            neighbours(args.counts, args.patch_size),
            "### What the mosaic door costs",
            about_cost,
            cost(sorted({*args.counts, args.odd}), args.side, args.repeats),
        ],
        args.save,
        ["torch", "torchvision"],
    )


if __name__ == "__main__":
    common.start(main, measure)
