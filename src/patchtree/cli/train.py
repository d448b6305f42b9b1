"""`patchtree train`: a folder of images and masks in, a run out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from patchtree.cli.common import DetailName, Json, given, parse_time, print_json, verb

_PATCHES, _TRAINING, _MACHINE = "Patches and model", "Training", "Machines"


class TaskName(str, Enum):
    """What is learned."""

    segment = "segment"
    classify = "classify"


class HeadName(str, Enum):
    """The heads that have a name."""

    linear = "linear"
    reference = "reference"
    depths = "depths"


def parse_blocks(text: str) -> int:
    """Read how many blocks: a number, or ``all``, which is -1.

    Raises:
        typer.BadParameter: it is neither.
    """
    try:
        return -1 if text == "all" else int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no number of blocks; give one, or all") from error


MaxTime = Annotated[
    float | None,
    typer.Option(
        parser=parse_time,
        metavar="HH:MM:SS",
        help="How long to train, from looking at DATA to the last validation. (default 01:00:00)",
    ),
]
MaxEpochs = Annotated[int | None, typer.Option(min=1, help="How many epochs to train.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in RUN; it keeps its patches, model, training and time.")
]
PatchSize = Annotated[int | None, typer.Option(min=1, help="Pixels on a side of a patch.", rich_help_panel=_PATCHES)]
Budget = Annotated[
    int | None,
    typer.Option(
        min=1, help="Patches for an image of the median area (default: by labels and area).", rich_help_panel=_PATCHES
    ),
]
DetailOption = Annotated[DetailName | None, typer.Option(help="Where patches are small.", rich_help_panel=_PATCHES)]
Model = Annotated[
    str | None,
    typer.Option(
        help="patchtree:nano, :tiny, :small, :base; timm:NAME, hf:FOLDER, torchvision:NAME, monai:NAME, smp:NAME "
        "(default: that of --weights RUN/weights.safetensors; else patchtree:small on a GPU, :tiny on a CPU, or :nano "
        "if time is short).",
        rich_help_panel=_PATCHES,
    ),
]
Head = Annotated[
    HeadName | None, typer.Option(help="From features to pixels (default: reference).", rich_help_panel=_PATCHES)
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The encoder's, or a run's: safetensors or a torch file; pretrained: the library's own, downloaded.",
        rich_help_panel=_PATCHES,
    ),
]
Window = Annotated[
    int | None, typer.Option(min=1, help="Pixels on a side of a training window.", rich_help_panel=_TRAINING)
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Windows a step, in each process.", rich_help_panel=_TRAINING)
]
Rate = Annotated[
    float | None, typer.Option(help="Highest learning rate (default: by model).", rich_help_panel=_TRAINING)
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything random.", rich_help_panel=_TRAINING)]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that make samples.", rich_help_panel=_MACHINE)]
Accelerator = Annotated[
    str | None,
    typer.Option(
        help="As Lightning's Trainer: cpu, gpu, ... (default: a GPU if there is one).", rich_help_panel=_MACHINE
    ),
]
Devices = Annotated[
    str | None, typer.Option(help="As Lightning's Trainer: a number, 0,1 or auto.", rich_help_panel=_MACHINE)
]
Nodes = Annotated[int | None, typer.Option(help="Machines.", rich_help_panel=_MACHINE)]
Strategy = Annotated[
    str | None, typer.Option(help="As Lightning's Trainer: ddp, ... (none that shards).", rich_help_panel=_MACHINE)
]
Precision = Annotated[
    str | None, typer.Option(help="As Lightning's Trainer: 32-true, bf16-mixed, ...", rich_help_panel=_MACHINE)
]


def as_devices(text: str | None) -> int | str | None:
    """Give a number of devices as such; Lightning takes words for a list of them."""
    return int(text) if text is not None and text.isdecimal() else text


def print_run(out: Path) -> None:
    """Print what `info` says of a run as JSON, from one of its processes."""
    from lightning.pytorch.utilities import rank_zero_only

    from patchtree.cli.info import describe_run

    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        print_json({"path": str(out), **describe_run(str(out))})


@verb
def train(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder with images/ and masks/ of the same names, or slides.")
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder for the run.")],
    task: Annotated[
        TaskName | None,
        typer.Option(help="A class for every pixel (default), or for every image: DATA/labels.csv has name,label."),
    ] = None,
    max_time: MaxTime = None,
    max_epochs: MaxEpochs = None,
    resume: Resume = False,
    patch_size: PatchSize = None,
    budget: Budget = None,
    detail: DetailOption = None,
    model: Model = None,
    head: Head = None,
    weights: Weights = None,
    freeze: Annotated[
        int | None,
        typer.Option(
            parser=parse_blocks,
            metavar="N",
            help="Leave the embeddings and the first N blocks as they are; all: the whole encoder.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of a block over that of the next (default: 0.75 for trained weights, else 1).",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="R", help="Train adapters of rank R and the head only; needs peft.", rich_help_panel=_TRAINING
        ),
    ] = None,
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
    """Train a transformer on the adaptive patches of images and their masks.

    Masks hold class ids; DATA/dataset.json may name them: {"labels":
    {"background": 0, "tumour": 1}}. nnU-Net's imagesTr/ and labelsTr/ do as
    well. A fifth of the images is kept for validation, unless
    DATA/splits.json says otherwise. RUN receives all that prediction needs.

    Whole slides in images/ are read window by window; their labels are TIFFs in
    masks/ or polygons (GeoJSON, ASAP, ImageScope) in annotations/. PAIP 2019's
    folder is read as it is.

    With --task classify every image has one class, which DATA/labels.csv names
    in lines of name,label; masks/ is not looked at.

    Example: patchtree train glands --out runs/glands --max-time 00:20:00

    Example: patchtree train glands --out runs/vit --model timm:vit_small_patch16_224 --weights pretrained
    """
    from patchtree.training import train

    options = given(
        task=task,
        max_time=max_time,
        max_epochs=max_epochs,
        resume=resume,
        patch_size=patch_size,
        budget=budget,
        detail=detail,
        model=model,
        head=head,
        weights=weights,
        freeze=freeze,
        layer_decay=layer_decay,
        lora=lora,
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
    train(data, out, report=lambda line: typer.echo(line, err=True), **options)
    if json:
        print_run(out)
