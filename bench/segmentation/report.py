"""The tables: a row a method, the best input scale of those that have several."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from bench.common import Result, table
from bench.segmentation import scores
from numpy.typing import NDArray

COSTS = (
    "method",
    "training, s",
    "steps",
    "training memory, GB",
    "prediction, s an image",
    "tokens an image",
    "multiply-adds, G",
    "parameters",
)


def report(head: str, runs: dict[str, dict[str, list[Result]]], labels: Sequence[str]) -> list[str]:
    """Write what there is of a data set.

    Args:
        head: its title.
        runs: the runs of each variant of each method.
        labels: names of the classes, the background first.
    """
    rows, costs, notes, failed = [], [], [], []
    for variants in runs.values():
        done = {name: [one for one in results if "failed" not in one] for name, results in variants.items()}
        done = {name: results for name, results in done.items() if results}
        shown, note = choose(done)
        notes += note
        rows += [score_row(name, done[name]) for name in shown]
        costs += [cost_row(name, done[name]) for name in shown]
        for name, results in variants.items():
            failed += [f"{name} failed: {one['failed']}." for one in results if "failed" in one]
    header = ("method", "Dice", "of each seed", "micro Dice", "IoU", "HD95, px", *labels[1:])
    return [head, table(header, rows), table(COSTS, costs), *notes, *failed]


def choose(done: dict[str, list[Result]]) -> tuple[list[str], list[str]]:
    """Choose the variant that is best on the validation images; all, where a run did not record that."""
    if len(done) < 2:
        return list(done), []
    if any("validation" not in one for results in done.values() for one in results):
        return list(done), []
    found = {name: statistics.mean(validation(one) for one in results) for name, results in done.items()}
    best = max(found, key=lambda name: (found[name], name))
    return [best], ["Dice on validation images: " + "; ".join(f"{name} {score:.3f}" for name, score in found.items())]


def validation(result: Result) -> float:
    """Give the mean Dice of the foreground on all validation images together, 0 where there is none."""
    pooled = np.array(list(result["validation"].values())).sum(0)
    return float(np.nan_to_num(scores.mean(scores.dice(pooled))))


def score_row(name: str, results: Sequence[Result]) -> Sequence[object]:
    """Give scores of all pixels together, averaged over seeds."""
    tables = np.array([list(result["confusions"].values()) for result in results])
    pooled = tables.sum(1)
    low, high = scores.interval(tables)

    def spread(of: Callable[[NDArray[Any]], NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.asarray(of(pooled).mean(0))

    dice = spread(lambda some: scores.mean(scores.dice(some)))
    return (
        name,
        f"{dice:.3f} [{low:.2f}, {high:.2f}]",
        " ".join(f"{one:.3f}" for one in scores.mean(scores.dice(pooled))),
        f"{spread(scores.micro):.3f}",
        f"{spread(lambda some: scores.mean(scores.iou(some))):.3f}",
        border(results),
        *(f"{one:.3f}" for one in spread(scores.dice)[1:]),
    )


def border(results: Sequence[Result]) -> str:
    """Write the distance of borders, the mean of the classes' means; empty if a run did not measure it."""
    if any("hausdorff" not in result for result in results):
        return ""
    images = [image for result in results for image in result["hausdorff"].values()]
    classes = [[value for value in column if value is not None] for column in zip(*images, strict=True)]
    means = [statistics.mean(values) for values in classes if values]
    return f"{statistics.mean(means):.1f}" if means else ""


def cost_row(name: str, results: Sequence[Result]) -> Sequence[object]:
    def average(key: str) -> float:
        return float(statistics.mean(result[key] for result in results))

    tokens = [count for result in results for count in result["tokens"].values()]
    counted = all("multiply_adds" in result for result in results)
    seconds = [statistics.median(result["predict_seconds"].values()) for result in results]
    return (
        name,
        f"{average('train_seconds'):.0f}",
        f"{average('steps'):.0f}",
        f"{average('train_memory') / 1e9:.2f}",
        f"{statistics.mean(seconds):.2f}",
        f"{statistics.mean(tokens):,.0f}" if tokens else "",
        f"{average('multiply_adds') / 1e9:,.1f}" if counted else "",
        f"{results[0]['parameters'] / 1e6:.2f} M",
    )
