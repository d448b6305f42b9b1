"""`patchtree train`: a folder of images and masks in, a run out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from patchtree.cli.common import DetailName, given, parse_time, verb

_PATCHES, _TRAINING, _MACHINE = "Patches and model", "Training", "Machines"


class SizeName(str, Enum):
    """The sizes of the model."""

    tiny = "tiny"
    small = "small"
    base = "base"


@verb
def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder with images/ and masks/ of the same names.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder for the run.")],
    max_time: Annotated[
        float | None,
        typer.Option(parser=parse_time, metavar="HH:MM:SS", help="How long to train, all included. (default 01:00:00)"),
    ] = None,
    max_epochs: Annotated[int | None, typer.Option(help="How many epochs to train.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in RUN; it keeps its patches, model and training.")
    ] = False,
    patch_size: Annotated[
        int | None, typer.Option(help="Pixels on a side of a patch.", rich_help_panel=_PATCHES)
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(help="Patches for an image of the median area (default: by the area).", rich_help_panel=_PATCHES),
    ] = None,
    detail: Annotated[
        DetailName | None, typer.Option(help="Where patches are small.", rich_help_panel=_PATCHES)
    ] = None,
    size: Annotated[
        SizeName | None,
        typer.Option(help="Of the model (default: small on a GPU, else tiny).", rich_help_panel=_PATCHES),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Pixels on a side of a training window.", rich_help_panel=_TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows a step, in each process.", rich_help_panel=_TRAINING)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate (default: by size).", rich_help_panel=_TRAINING)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", rich_help_panel=_TRAINING)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make samples.", rich_help_panel=_MACHINE)] = None,
    devices: Annotated[
        str | None, typer.Option(help="As Lightning's Trainer: a number, 0,1 or auto.", rich_help_panel=_MACHINE)
    ] = None,
    num_nodes: Annotated[int | None, typer.Option(help="Machines.", rich_help_panel=_MACHINE)] = None,
    strategy: Annotated[
        str | None, typer.Option(help="As Lightning's Trainer: ddp, ... (none that shards).", rich_help_panel=_MACHINE)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="As Lightning's Trainer: 32-true, bf16-mixed, ...", rich_help_panel=_MACHINE)
    ] = None,
) -> None:
    """Train a transformer on the adaptive patches of images and their masks.

    Masks hold class ids; DATA/dataset.json may name them: {"labels":
    {"background": 0, "tumour": 1}}. nnU-Net's imagesTr/ and labelsTr/ do as
    well. A fifth of the images is kept for validation, unless
    DATA/splits.json says otherwise. RUN receives all that prediction needs.

    Example: patchtree train glands --out runs/glands --max-time 00:20:00
    """
    from patchtree.training import train

    options = given(
        max_time=max_time,
        max_epochs=max_epochs,
        resume=resume,
        patch_size=patch_size,
        budget=budget,
        detail=detail,
        size=size,
        window=window,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        workers=workers,
        devices=int(devices) if devices is not None and devices.isdecimal() else devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
    )
    train(data, out, report=lambda line: typer.echo(line, err=True), **options)
