"""`patchtree pretrain`: a folder of images without labels in, weights to train from out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchtree.cli.common import Json, given, verb
from patchtree.cli.train import (
    Accelerator,
    BatchSize,
    Budget,
    DetailOption,
    Devices,
    Head,
    MaxEpochs,
    MaxTime,
    Model,
    Nodes,
    PatchSize,
    Precision,
    Rate,
    Resume,
    Seed,
    Strategy,
    Weights,
    Window,
    Workers,
    as_devices,
    print_run,
)


@verb
def pretrain(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of images, or with images/ in it.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder for the run.")],
    max_time: MaxTime = None,
    max_epochs: MaxEpochs = None,
    resume: Resume = False,
    patch_size: PatchSize = None,
    budget: Budget = None,
    detail: DetailOption = None,
    model: Model = None,
    head: Head = None,
    weights: Weights = None,
    window: Window = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    seed: Seed = None,
    workers: Workers = None,
    accelerator: Accelerator = None,
    devices: Devices = None,
    num_nodes: Nodes = None,
    strategy: Strategy = None,
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Learn from images without labels: paint hidden patches from the others.

    RUN/weights.safetensors is where train starts that is given it as --weights,
    with the same model, patch size and head. It is meant for many images with
    few masks, and for hours. Masks beside the images are not looked at. A fifth
    of the images is kept for validation, unless DATA/splits.json says otherwise.

    Example: patchtree pretrain scans --out runs/scans --max-time 01:00:00

    Example: patchtree train glands --out runs/glands --weights runs/scans/weights.safetensors
    """
    from patchtree.training import train

    options = given(
        max_time=max_time,
        max_epochs=max_epochs,
        resume=resume,
        patch_size=patch_size,
        budget=budget,
        detail=detail,
        model=model,
        head=head,
        weights=weights,
        window=window,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        workers=workers,
        accelerator=accelerator,
        devices=as_devices(devices),
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
    )
    train(data, out, task="pretrain", report=lambda line: typer.echo(line, err=True), **options)
    if json:
        print_run(out)
