"""`patchtree evaluate`: a run and a data set in, Dice and IoU or accuracies out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchtree.cli.classify import print_scores, score_labels
from patchtree.cli.common import Device, Flips, Json, Run, as_number, given, print_json, print_table, verb
from patchtree.cli.progress import progress
from patchtree.errors import InputError

if TYPE_CHECKING:
    from patchtree.datasets import DataSet, Pair
    from patchtree.inference import Predictor
    from patchtree.runs import RunConfig


@verb
def evaluate(
    run: Run,
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder with images/ and masks/ of the same names, or slides.")
    ],
    everything: Annotated[
        bool, typer.Option("--all", help="Also images named as those that the run was trained on.")
    ] = False,
    flips: Flips = False,
    device: Device = None,
    json: Json = False,
) -> None:
    """Compare a run's predictions with masks: Dice and IoU of each class.

    Pixels are those of the original images. Dice and IoU are of the pixels of
    all images together; the means are over images, of those that have the
    class or were given it. Of a run that labels whole images: accuracy,
    balanced accuracy (mean recall) and macro F1, precision and recall of each
    class, and how many images of it were given each class.

    Images with the name of one that the run was trained on are left out, and
    their number is told; --all takes them too. The best weights were chosen on
    the held-out images of the training, so a test on other images says more.

    Example: patchtree evaluate runs/glands glands --json
    """
    from patchtree.datasets import choose, find_data
    from patchtree.inference import load
    from patchtree.labelled import find_labelled
    from patchtree.runs import load_config

    classify = load_config(run).task == "classify"
    predictor = load(run, task="classify" if classify else "segment", **given(device=device))
    config = predictor.config
    if classify:
        dataset = find_labelled(data, config.labels)
    else:
        dataset = find_data(data, config.labels, config.ignore)
        _check_labels(data, dataset, config)
    trained = {pair.name for pair in dataset.pairs} & set(config.train)
    left_out = 0 if everything else len(trained)
    if left_out:
        others = [pair.name for pair in dataset.pairs if pair.name not in trained]
        if not others:
            raise InputError(
                f"{data}: every image has the name of one that {run} was trained on; give --all to take them"
            )
        dataset = choose(dataset, others)
    with progress("Evaluating", len(dataset)) as step:
        result = (score_labels if classify else score)(predictor, dataset.pairs, flips, step)
    trained_on = sum(pair.name in config.train for pair in dataset.pairs)
    chosen_on = sum(pair.name in config.val for pair in dataset.pairs)
    if json:
        place = {"run": str(run), "data": str(data)}
        print_json({**place, "trained_on": trained_on, "chosen_on": chosen_on, "left_out": left_out, **result})
        return
    notes = [
        (left_out, "left out, named as images that were trained on (--all takes them)"),
        (trained_on, "trained on"),
        (chosen_on, "named as images that chose the best weights"),
    ]
    seen = "".join(f"; {number} {what}" for number, what in notes if number)
    typer.echo(f"{run} on {data}: {len(dataset)} {config.kind}{'s' if len(dataset) > 1 else ''}{seen}")
    (print_scores if classify else _print_table)(result)


def score(
    predictor: Predictor, pairs: Sequence[Pair], flips: bool = False, step: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Predict images and compare with their masks.

    Args:
        predictor: a loaded run.
        pairs: images and masks.
        flips: average over flipped images.
        step: called after each image.

    Returns:
        What ``evaluate --json`` prints: Dice and IoU of each class over all pixels and as a mean over images, the means
        over the classes that are in the masks without the first (background), and each image's own. None where a class
        is neither in the masks nor predicted.
    """
    import torch

    from patchtree.inference import evaluate
    from patchtree.metrics import dice, iou

    labels = list(predictor.config.labels)
    tables = []
    for table in evaluate(predictor, pairs, flips=flips):
        tables.append(table)
        step()
    stacked = torch.stack(tables)
    total = stacked.sum(0)
    dices = torch.stack([dice(table) for table in tables])
    ious = torch.stack([iou(table) for table in tables])
    # As in training: a class that no mask has would count 0, or not at all, by whether a pixel is given to it.
    foreground = 1 + total[1:].sum(1).nonzero().flatten()
    return {
        "images": len(pairs),
        "classes": {
            label: {
                "dice": as_number(dice(total)[at]),
                "iou": as_number(iou(total)[at]),
                "mean_dice": as_number(dices[:, at].nanmean()),
                "mean_iou": as_number(ious[:, at].nanmean()),
                "pixels": int(total[at].sum()),
            }
            for at, label in enumerate(labels)
        },
        "dice": as_number(dice(total)[foreground].nanmean()),
        "iou": as_number(iou(total)[foreground].nanmean()),
        "mean_dice": as_number(dices[:, foreground].nanmean(0).nanmean()),
        "mean_iou": as_number(ious[:, foreground].nanmean(0).nanmean()),
        "by_image": {
            pair.name: {
                label: {"dice": as_number(dices[row, at]), "iou": as_number(ious[row, at])}
                for at, label in enumerate(labels)
            }
            for row, pair in enumerate(pairs)
        },
    }


def _check_labels(data: Path, dataset: DataSet, config: RunConfig) -> None:
    """Refuse masks whose ids mean something else than the run's.

    Raises:
        InputError: they do.
    """
    known = {label: name for name, label in config.labels.items()}
    for name, label in dataset.labels.items():
        # Ids that no dataset.json names are called "class 1" and so on: those fit any name.
        unnamed = f"class {label}" if label else "background"
        if label not in known or (name != known[label] and unnamed not in (name, known[label])):
            raise InputError(
                f"{data}: its id {label} is {name!r}, but the run knows "
                f"{', '.join(f'{label} {name!r}' for label, name in known.items())}; give data with the run's labels"
            )


def _print_table(result: dict[str, Any]) -> None:
    """Print the scores for a person."""
    from rich.table import Table

    names = ("dice", "iou", "mean_dice", "mean_iou")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class")
    for heading in ("Dice", "IoU", "mean Dice", "mean IoU", "pixels"):
        table.add_column(heading, justify="right")
    for label, scores in result["classes"].items():
        table.add_row(label, *(_say(scores[name]) for name in names), f"{scores['pixels']:,}")
    table.add_row("mean of classes but the first", *(_say(result[name]) for name in names), style="bold")
    print_table(table)


def _say(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"
