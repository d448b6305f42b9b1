"""`patchtree predict`: a run and images in, masks out."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchtree.cli.common import (
    Device,
    Flips,
    Images,
    Json,
    Run,
    check_outputs,
    find_images,
    given,
    make_folder,
    print_json,
    progress,
    tell_error,
    verb,
)
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
    (STEM.tif where the image is too large for PNG).

    Example: patchtree predict runs/glands slide.tif photos/ --out masks
    """
    from patchtree.inference import load
    from patchtree.io.images import image_size, mask_suffix

    predictor = load(run, **given(device=device))
    paths, failed = find_images(images)
    sized: list[Path] = []
    outputs: list[tuple[Path, ...]] = []
    for path in paths:
        try:
            mask = out / f"{path.stem}{mask_suffix(image_size(path))}"
        except InputError as error:
            failed += 1
            tell_error(error)
            continue
        sized.append(path)
        outputs.append((mask, out / f"{path.stem}_probabilities.tif") if probabilities else (mask,))
    check_outputs(sized, outputs)
    if sized:
        make_folder(out)
    results = []
    with progress("Predicting", len(sized)) as step:
        for path, files in zip(sized, outputs, strict=True):
            try:
                result = predict_image(path, predictor, files[0], files[1] if probabilities else None, flips)
            except InputError as error:
                failed += 1
                tell_error(error)
            else:
                results.append(result)
                if not json:
                    typer.echo(_describe(result))
            step()
    if json:
        print_json(results)
    if failed:
        raise typer.Exit(1)


def predict_image(
    path: Path, predictor: Predictor, mask: Path, probabilities: Path | None = None, flips: bool = False
) -> dict[str, Any]:
    """Predict one image and write what was asked for.

    Args:
        path: the image.
        predictor: a loaded run.
        mask: where the class ids go.
        probabilities: where the probabilities go, if anywhere.
        flips: average over flipped images.

    Returns:
        What ``predict --json`` prints of an image.
    """
    import numpy as np

    from patchtree.io.images import read_image, write_image, write_mask

    started = perf_counter()
    image = read_image(path)
    try:
        if probabilities is None:
            ids = predictor(image, flips=flips)
        else:
            shares = predictor.probabilities(image, flips=flips)
            ids = shares.argmax(-1)
            write_image(probabilities, shares)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    write_mask(mask, ids)
    labels = predictor.config.labels
    pixels = np.bincount(ids.reshape(-1), minlength=len(labels))
    return {
        "image": str(path),
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
