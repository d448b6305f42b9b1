"""`patchtree predict`: a run and images in, masks out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchtree.cli.common import Device, Flips, Images, Job, Json, Run, do_jobs, find_images, given, tell_error, verb
from patchtree.errors import InputError

if TYPE_CHECKING:
    from patchtree.inference import Predictor


@verb
def predict(
    run: Run,
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write STEM_probabilities.tif: float32, one channel a class.")
    ] = False,
    flips: Flips = False,
    device: Device = None,
    json: Json = False,
) -> None:
    """Predict the masks of images with a trained run.

    For each image writes STEM.png, a mask of class ids of the image's own size
    (STEM.tif where the image is too large for PNG). nnU-Net's CASE_0000.tif,
    CASE_0001.tif, ... are one image where the run was trained on as many
    channels; its mask is CASE.png.

    Example: patchtree predict runs/glands slide.tif photos/ --out masks
    """
    from patchtree.datasets import group_channels, split_channel
    from patchtree.inference import load
    from patchtree.io.images import image_size, mask_suffix

    predictor = load(run, **given(device=device))
    paths, failed = find_images(images)
    jobs = []
    for files in group_channels(paths, predictor.config.channels):
        stem, _ = split_channel(files[0]) if len(files) > 1 else (files[0].stem, 0)
        try:
            mask = out / f"{stem}{mask_suffix(image_size(files[0]))}"
        except InputError as error:
            failed += 1
            tell_error(error)
            continue
        shares = out / f"{stem}_probabilities.tif" if probabilities else None
        work = partial(predict_image, files, predictor, mask, shares, flips)
        jobs.append(Job(files, (mask, shares) if shares else (mask,), work))
    do_jobs("Predicting", jobs, out, _describe, json, failed)


def predict_image(
    files: Sequence[Path], predictor: Predictor, mask: Path, probabilities: Path | None = None, flips: bool = False
) -> dict[str, Any]:
    """Predict one image and write what was asked for.

    Args:
        files: the image, or its channels.
        predictor: a loaded run.
        mask: where the class ids go.
        probabilities: where the probabilities go, if anywhere.
        flips: average over flipped images.

    Returns:
        What ``predict --json`` prints of an image.
    """
    import numpy as np

    from patchtree.datasets import read_channels
    from patchtree.io.images import write_image, write_mask

    started = perf_counter()
    image = read_channels(files, at_least=predictor.config.channels)
    try:
        if probabilities is None:
            ids = predictor(image, flips=flips)
        else:
            shares = predictor.probabilities(image, flips=flips)
            ids = shares.argmax(-1)
    except InputError as error:
        raise InputError(f"{files[0]}: {error}") from error
    if probabilities is not None:
        write_image(probabilities, shares)
    write_mask(mask, ids)
    labels = predictor.config.labels
    pixels = np.bincount(ids.reshape(-1), minlength=len(labels))
    return {
        "image": str(files[0]),
        "shape": list(image.shape),
        "pixels": {name: int(pixels[label]) for name, label in labels.items()},
        "seconds": perf_counter() - started,
        "files": [str(file) for file in (mask, probabilities) if file is not None],
    }


def _describe(result: dict[str, Any]) -> str:
    """Say in a line what became of an image."""
    total = sum(result["pixels"].values())
    shares = ", ".join(f"{name} {count / total:.1%}" for name, count in result["pixels"].items())
    return f"{result['image']}: {shares}; {result['seconds']:.2f} s; wrote {', '.join(result['files'])}"
