"""`patchtree info`: what a file is."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from patchtree.cli.common import Json, print_json, tell, tell_error, verb
from patchtree.cli.progress import progress
from patchtree.errors import InputError, say_size

_SHOWN = 8  # of a long list
_MOST_IDS = 32  # a picture has more greys than a mask has classes


@verb
def info(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Images, volumes, slides, masks, folders of them, data folders, runs, trees, patches (.npz), outputs.",
        ),
    ],
    json: Json = False,
) -> None:
    """Say what a file, a data folder or a run is; of a folder of images, each.

    Of an image or a volume: shape, type, range and noise (the standard
    deviation, estimated from the finest details); of a mask also the share of
    each id. Of a slide: what it is and what reads it, its levels with their
    true downsamples, its pixel size. Of a data folder: images, labels and their shares of the pixels
    (of the images, where labels.csv gives each a class), the split that
    training makes, and all that training would refuse, with exit code 1. Of
    patches and trees: how many leaves of which size. Of a run: labels, patches,
    model, validation score. Of a folder that patch or predict wrote to: how
    many inputs are done, and why others failed, with exit code 1.

    Example: patchtree info image.png slide.svs slide.npz glands runs/glands
    """
    results = []
    failed = False
    waiting = paths[::-1]
    while waiting:
        path = waiting.pop()
        try:
            read = _reader(path)
            if read is describe_run and (inside := _images_in(path)):
                waiting += inside[::-1]
                continue
            result = read(path)
        except Exception as error:
            failed = True
            tell_error(error, path)
            continue
        results.append({"path": path, **result})
        if not json:
            typer.echo("\n".join([path, *_describe(result)]))
        for problem in result.get("problems", ()):
            failed = True
            tell(problem, kind="error")
    if json:
        print_json(results)
    if failed:
        raise typer.Exit(1)


def _images_in(folder: str) -> list[str]:
    """List the images and slides in a folder that is no run."""
    from patchtree.jobs import find_inputs
    from patchtree.runs import CONFIG

    inputs, _ = ([], []) if Path(folder, CONFIG).exists() else find_inputs([folder])
    return [one.path for one in inputs]


def _reader(path: str) -> Callable[[str], dict[str, Any]]:
    """Choose how to read a file or a folder by what it is; a damaged slide by its suffix."""
    from patchtree.datasets import IMAGE_FOLDERS
    from patchtree.io.paip import holds_cases
    from patchtree.io.slides import is_slide
    from patchtree.io.slides.source import is_url
    from patchtree.jobs import SLIDE_SUFFIXES, States
    from patchtree.runs import CONFIG

    if is_url(path) or Path(path).suffix.lower() in SLIDE_SUFFIXES or is_slide(path):
        return _slide
    if Path(path).is_dir():
        if any(Path(path, name).is_dir() for name in IMAGE_FOLDERS):
            return _data
        if Path(path, CONFIG).exists():
            return describe_run
        return _outputs if States.find(path) else _data if holds_cases(path) else describe_run
    head = b""
    if Path(path).is_file():
        with suppress(OSError), Path(path).open("rb") as file:
            head = file.read(4)
    return {b"PTRE": _tree, b"PK\x03\x04": _patches}.get(head, _image)


def _slide(path: str) -> dict[str, Any]:
    from patchtree.io.slides import open_slide

    with open_slide(path) as slide:
        told = slide.info()
    if slide.mpp is None:
        warnings.warn(f"{path}: has no pixel size; --mpp of other commands sets it", stacklevel=2)
    return {"kind": "slide", "format": told.pop("kind"), **told}


def _outputs(path: str) -> dict[str, Any]:
    from patchtree.jobs import States

    states = list(States.find(path) or ())
    return {
        "kind": "outputs",
        **{name: sum(state["state"] == name for state in states) for name in ("done", "failed")},
        "problems": [state["reason"] for state in states if state["state"] == "failed"],
    }


def _data(path: str) -> dict[str, Any]:
    from patchtree.datasets import check_patch_size, find_data, split_data, survey_data
    from patchtree.labelled import TABLE, find_labelled, survey_labelled
    from patchtree.patcher import PATCH_SIZES
    from patchtree.slide_sources import survey_slides

    # Beside masks the table may be of something else.
    classify = Path(path, TABLE).is_file() and not Path(path, "masks").is_dir()
    dataset = (find_labelled if classify else find_data)(path)
    survey = survey_labelled if classify else survey_slides if dataset.slides else survey_data
    problems, pixels = survey(dataset)
    channels: Counter[str] = Counter()
    types: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    shapes: dict[Path, list[int]] = {}
    with progress("Reading", len(dataset)) as step:
        for pair in dataset.pairs:
            try:
                (*shape, count), dtype = pair.look()
            except InputError as error:
                problems.append(str(error))
            else:
                channels[str(count)] += 1
                types[dtype] += 1
                kinds.setdefault(f"{count} channel{'s' if count > 1 else ''} of {dtype}", pair.image.name)
                shapes[pair.image] = shape
            step()
    # What training refuses: 8 and 16 bits mean different things, floats may be anything.
    if not dataset.slides and (len(channels) > 1 or (len(types) > 1 and types.keys() & {"uint8", "uint16"})):
        found = ", ".join(f"{name} has {kind}" for kind, name in kinds.items())
        problems.append(f"{path}: {found}; give all images the same channels and type")
    if not dataset.slides:
        try:
            check_patch_size(shapes, PATCH_SIZES[dataset.ndim])
        except InputError as error:
            problems.append(str(error))
    parts: dict[str, list[str]] = {"train": [], "val": []}
    try:
        split = split_data(dataset)
        parts = {name: [pair.name for pair in part.pairs] for name, part in zip(parts, split, strict=True)}
    except InputError as error:
        problems.append(str(error))
    sizes = sorted(shapes.values(), key=math.prod)
    total = max(1, sum(pixels.values()))
    return {
        "kind": "data",
        "images": len(dataset),
        "smallest": sizes[0] if sizes else None,
        "largest": sizes[-1] if sizes else None,
        "channels": dict(channels),
        "dtype": dict(types),
        "labels": dataset.labels,
        "ignore": dataset.ignore,
        "shares": {name: _round(count / total) for name, count in pixels.items()},
        **parts,
        "problems": list(dict.fromkeys(problems)),
    }


def _image(path: str) -> dict[str, Any]:
    import numpy as np

    from patchtree.channels import read_channels
    from patchtree.io.images import is_volume
    from patchtree.io.slides import pixel_size
    from patchtree.io.volumes import read_grid
    from patchtree.noise import estimate_noise

    image = read_channels([Path(path)])
    kind, axes = ("volume", (0, 1, 2)) if is_volume(path) else ("image", (0, 1))
    name, lengths = ("spacing", read_grid(path).spacing) if kind == "volume" else ("mpp", pixel_size(path))
    pixels = image if image.ndim > len(axes) else image[..., None]
    return {
        "kind": kind,
        "shape": list(image.shape),
        "dtype": str(image.dtype),
        "bytes": image.nbytes,
        **({} if lengths is None else {name: [_round(size) for size in lengths]}),
        "lowest": [_round(value) for value in pixels.min(axes)],
        "mean": [_round(value) for value in pixels.mean(axes, dtype=np.float64)],
        "highest": [_round(value) for value in pixels.max(axes)],
        "noise": [_round(value) for value in estimate_noise(pixels)],
        **_ids(path),
    }


def _ids(path: str) -> dict[str, Any]:
    """Give the share of each id, if the image may be a mask."""
    from patchtree.datasets import count_ids

    try:
        counts = count_ids(Path(path))
    except InputError:
        return {}
    total = sum(counts.values())
    return (
        {"ids": {str(label): _round(count / total) for label, count in counts.items()}}
        if len(counts) <= _MOST_IDS
        else {}
    )


def _patches(path: str) -> dict[str, Any]:
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


def _tree(path: str) -> dict[str, Any]:
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


def describe_run(path: str) -> dict[str, Any]:
    """Say what a run is and how far it came, as ``--json`` prints it.

    Raises:
        InputError: it is none, or is damaged.
    """
    from patchtree.runs import CONFIG, METRICS, SCORES, WEIGHTS, best_fraction, load_config, weights_metadata

    if not Path(path, CONFIG).exists():
        raise InputError(
            f"{path}: neither a run ({CONFIG}) nor a data folder (images/ or imagesTr/), and holds no images; name one"
        )
    config = load_config(path)
    score = SCORES[config.task]
    scores = _validations(Path(path, METRICS), score)
    weights = Path(path, WEIGHTS).is_file()
    about = weights_metadata(path) if weights else {}
    return {
        "kind": "run",
        "task": config.task,
        # What pretraining restores are channels, no classes.
        "labels": None if config.task == "pretrain" else config.labels,
        "channels": config.channels,
        "model": config.model["name"],
        "patch_size": config.patcher["patch_size"],
        "detail": config.patcher["detail"]["name"],
        "pixels_a_patch": round(1 / (config.density * best_fraction(about))),
        "window": config.window,
        "train": len(config.train),
        "val": len(config.val),
        score.replace(" ", "_"): float(about[score]) if score in about else None,
        "best_step": int(about["step"]) if "step" in about else None,
        "steps": int(scores[-1]["step"]) if scores else 0,
        "seconds": float(scores[-1]["seconds"]) if scores else 0.0,
        "weights": weights,
        "versions": config.versions,
    }


def _validations(path: Path, score: str) -> list[dict[str, str]]:
    """Read a run's validations, none if there are none yet.

    Raises:
        InputError: the file is damaged.
    """
    import csv

    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            float(row[score]), int(row["step"]), float(row["seconds"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); copy the run folder again") from error
    return rows


def _round(value: float) -> float:
    """Give four digits, which is what a reader wants."""
    return float(f"{value:.4g}")


def _describe(result: dict[str, Any]) -> list[str]:
    """Say in lines what a file is."""
    lines = {name: [_say(value)] for name, value in result.items()}
    if "problems" in result:
        lines["problems"] = [str(len(result["problems"]) or "none")]
    if result["kind"] == "slide":
        lines["levels"] = _describe_levels(result["levels"])
        lines["mpp"] = [f"{_say(result['mpp'])} µm" if result["mpp"] else "none"]
    elif "mpp" in result:
        lines["mpp"] = [f"{_say(result['mpp'])} µm"]
    elif "spacing" in result:
        lines["spacing"] = [f"{_say(result['spacing'])} mm"]
    width = max(map(len, lines))
    return [
        f"  {name if at == 0 else '':{width}}  {line}" for name, part in lines.items() for at, line in enumerate(part)
    ]


def _describe_levels(levels: Sequence[dict[str, Any]]) -> list[str]:
    """Say in a line each how large the levels of a slide are, how coarse, and how they are tiled."""
    rows = []
    for level in levels:
        down = " x ".join(dict.fromkeys(f"{factor:g}" for factor in level["downsample"]))
        rows.append((say_size(level["shape"]), f"1 : {down}", f"tiles of {say_size(level['tile'])}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _say(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_say(item)}" for name, item in value.items())
    if isinstance(value, list):
        more = f", ... ({len(value):,} in all)" if len(value) > _SHOWN else ""
        return ", ".join(map(_say, value[:_SHOWN])) + more
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
