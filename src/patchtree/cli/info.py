"""`patchtree info`: what a file is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from patchtree.cli.common import Json, print_json, tell_error, verb
from patchtree.errors import InputError


@verb
def info(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Images, runs, trees (.tree), patches (.npz).")
    ],
    json: Json = False,
) -> None:
    """Say what a file or a run is.

    Of an image: shape, type, range and noise (the standard deviation, estimated
    from the finest details). Of patches and trees: how many leaves of which
    size. Of a run: labels, patches, model, validation score.

    Example: patchtree info slide.tif slide.npz runs/glands
    """
    results = []
    failed = False
    for path in paths:
        try:
            result = _reader(path)(path)
        except InputError as error:
            failed = True
            tell_error(error)
            continue
        results.append({"path": str(path), **result})
        if not json:
            width = max(map(len, result))
            typer.echo("\n".join([str(path), *(f"  {name:{width}}  {_say(value)}" for name, value in result.items())]))
    if json:
        print_json(results)
    if failed:
        raise typer.Exit(1)


def _reader(path: Path) -> Callable[[Path], dict[str, Any]]:
    """Choose how to read a file by its first bytes."""
    if path.is_dir():
        return _run
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        head = b""
    return {b"PTRE": _tree, b"PK\x03\x04": _patches}.get(head, _image)


def _image(path: Path) -> dict[str, Any]:
    import numpy as np

    from patchtree.detail import estimate_noise
    from patchtree.io.images import read_image

    image = read_image(path)
    pixels = image if image.ndim == 3 else image[..., None]
    axes = (0, 1)
    return {
        "kind": "image",
        "shape": list(image.shape),
        "dtype": str(image.dtype),
        "bytes": image.nbytes,
        "lowest": _rounded(pixels.min(axes)),
        "mean": _rounded(pixels.mean(axes, dtype=np.float64)),
        "highest": _rounded(pixels.max(axes)),
        "noise": _rounded(estimate_noise(pixels)),
    }


def _patches(path: Path) -> dict[str, Any]:
    from patchtree.patcher import Patches

    patches = Patches.load(path)
    return {
        "kind": "patches",
        **_describe_tree(patches.tree),
        "pixels": list(patches.pixels.shape),
        "dtype": str(patches.pixels.dtype),
        "origin": list(patches.origin or (0,) * patches.tree.ndim),
        "extent": list(patches.extent or patches.tree.shape),
    }


def _tree(path: Path) -> dict[str, Any]:
    from patchtree.tree import Tree

    return {"kind": "tree", **_describe_tree(Tree.load(path))}


def _describe_tree(tree: Any) -> dict[str, Any]:
    import numpy as np

    sizes, counts = np.unique(tree.sizes(), return_counts=True)
    return {
        "shape": list(tree.shape),
        "patch_size": tree.patch_size,
        "leaves": len(tree),
        "sizes": {str(size): int(count) for size, count in zip(sizes, counts, strict=True)},
    }


def _run(path: Path) -> dict[str, Any]:
    from patchtree.runs import METRICS, WEIGHTS, load_config

    config = load_config(path)
    scores = _validations(path / METRICS)
    best = max(scores, key=lambda row: float(row["dice"]), default=None)
    return {
        "kind": "run",
        "labels": config.labels,
        "channels": config.channels,
        "model": config.model["size"],
        "patch_size": config.patcher["patch_size"],
        "detail": config.patcher["detail"]["name"],
        "pixels_a_patch": round(1 / config.density),
        "window": config.window,
        "train": len(config.train),
        "val": len(config.val),
        "dice": float(best["dice"]) if best else None,
        "best_step": int(best["step"]) if best else None,
        "steps": int(scores[-1]["step"]) if scores else 0,
        "seconds": float(scores[-1]["seconds"]) if scores else 0.0,
        "weights": (path / WEIGHTS).is_file(),
        "versions": config.versions,
    }


def _validations(path: Path) -> list[dict[str, str]]:
    """Read a run's validations, none if there are none yet.

    Raises:
        InputError: the file is damaged.
    """
    import csv

    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            float(row["dice"]), int(row["step"]), float(row["seconds"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); copy the run folder again") from error
    return rows


def _rounded(values: Any) -> list[float]:
    """Give four digits, which is what a reader wants."""
    return [float(f"{value:.4g}") for value in values]


def _say(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_say(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_say, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none yet"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
