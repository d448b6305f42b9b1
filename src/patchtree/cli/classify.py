"""What `patchtree predict` and `patchtree evaluate` do with a run that labels whole images."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import typer

from patchtree.cli.common import as_number, make_folder, print_json, print_table, tell_error
from patchtree.cli.progress import progress
from patchtree.errors import InputError

if TYPE_CHECKING:
    from patchtree.datasets import Pair
    from patchtree.inference import Predictor
    from patchtree.jobs import Input

TABLE = "predictions.csv"


def refuse(**options: Any) -> None:
    """Refuse options of masks.

    Raises:
        InputError: one is set.
    """
    for name, value in options.items():
        if value:
            raise InputError(f"--{name.replace('_', '-')} is for masks, but the run labels whole images; leave it out")


def predict_labels(
    predictor: Predictor, inputs: Sequence[Input], out: Path, flips: bool, json: bool, failed: int
) -> None:
    """Predict the classes of images and write them as one table, whole or not at all.

    Whatever is wrong with an image is told, and the rest is done.

    Args:
        predictor: a loaded run.
        inputs: the images.
        out: folder for the table.
        flips: average over flipped images.
        json: print JSON instead of lines for a person.
        failed: images that failed before.

    Raises:
        InputError: two images have one name, or the table cannot be written.
        typer.Exit: an image failed.
    """
    from patchtree.files import replacing

    paths: dict[str, str] = {}
    for one in inputs:
        if one.name in paths:
            raise InputError(
                f"{paths[one.name]} and {one.path} would both be {one.name!r} in {TABLE}; "
                "run them with different --out folders, or give them names in a --manifest"
            )
        paths[one.name] = one.path
    table = make_folder(out) / TABLE
    labels = list(predictor.config.labels)
    results = []
    with progress("Predicting", len(inputs)) as step:
        for one in inputs:
            try:
                results.append(_predict_label(one, predictor, labels, flips))
            except Exception as error:
                failed += 1
                tell_error(error, one.path)
            else:
                if not json:
                    typer.echo(_describe(results[-1]))
            step()
    if results:
        with replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "label", *(f"probability {label}" for label in labels)])
            for result in results:
                shares = (f"{share:.6g}" for share in result["probabilities"].values())
                writer.writerow([result["name"], result["label"], *shares])
    if json:
        print_json(results)
    elif results:
        typer.echo(f"wrote {table}")
    if failed:
        raise typer.Exit(1)


def score_labels(
    predictor: Predictor, pairs: Sequence[Pair], flips: bool = False, step: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Predict images and compare with their classes.

    Args:
        predictor: a loaded run.
        pairs: images with classes.
        flips: average over flipped images.
        step: called after each image.

    Returns:
        What ``evaluate --json`` prints: accuracy, balanced accuracy (mean recall) and macro F1, each class's precision,
        recall and F1, how many images of each class were given each, and each image's own. None where a class is
        neither in the data nor predicted.
    """
    import torch

    from patchtree.image_inference import classify_all
    from patchtree.metrics import classification_scores, dice, precision, recall

    labels = list(predictor.config.labels)
    table = torch.zeros(len(labels), len(labels), dtype=torch.float64)
    images = {}
    for pair, shares in zip(pairs, classify_all(predictor, pairs, flips=flips), strict=True):
        assert pair.label is not None
        found = int(shares.argmax())
        table[pair.label, found] += 1
        images[pair.name] = {"label": labels[pair.label], "predicted": labels[found]}
        step()
    scores = classification_scores(table)
    each = {"precision": precision(table), "recall": recall(table), "f1": dice(table)}
    return {
        "images": len(pairs),
        **{name.replace(" ", "_"): score for name, score in scores.items()},
        "classes": {
            label: {name: as_number(values[at]) for name, values in each.items()} | {"images": int(table[at].sum())}
            for at, label in enumerate(labels)
        },
        "confusion": {
            label: {other: int(table[at, to]) for to, other in enumerate(labels)} for at, label in enumerate(labels)
        },
        "by_image": images,
    }


def print_scores(result: dict[str, Any]) -> None:
    """Print the scores of `score_labels` for a person."""
    from rich.table import Table

    names = ("accuracy", "balanced_accuracy", "macro_f1")
    typer.echo(", ".join(f"{name.replace('_', ' ').replace('f1', 'F1')} {result[name]:.4f}" for name in names))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class")
    for heading in ("precision", "recall", "F1", "images", *(f"as {label}" for label in result["classes"])):
        table.add_column(heading, justify="right")
    for label, scores in result["classes"].items():
        each = ("-" if scores[name] is None else f"{scores[name]:.4f}" for name in ("precision", "recall", "f1"))
        given = (f"{count:,}" for count in result["confusion"][label].values())
        table.add_row(label, *each, f"{scores['images']:,}", *given)
    print_table(table)


def _predict_label(one: Input, predictor: Predictor, labels: Sequence[str], flips: bool) -> dict[str, Any]:
    """Predict one image; gives what ``predict --json`` prints of it."""
    from patchtree.image_inference import classify
    from patchtree.io.images import read_image
    from patchtree.io.slides import is_pyramid
    from patchtree.io.slides.source import is_url

    started = perf_counter()
    if is_url(one.path):
        raise InputError(f"{one.path}: images to be labelled are not read through URLs; copy the file here")
    if is_pyramid(one.path):
        raise InputError(f"{one.path}: is a slide, and the run labels images; give an image of it")
    image = read_image(one.path)
    try:
        shares = classify(predictor, image, flips=flips)
    except InputError as error:
        raise InputError(f"{one.path}: {error}") from error
    return {
        "image": one.path,
        "name": one.name,
        "label": labels[int(shares.argmax())],
        "probabilities": dict(zip(labels, shares.tolist(), strict=True)),
        "seconds": perf_counter() - started,
    }


def _describe(result: dict[str, Any]) -> str:
    """Say in a line what became of an image."""
    share = result["probabilities"][result["label"]]
    return f"{result['image']}: {result['label']} {share:.1%}; {result['seconds']:.2f} s"
