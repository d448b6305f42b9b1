"""The options of a training: those asked for, and the rest chosen from the data and the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from patchtree.budget import choose_density, choose_window, usual_density
from patchtree.cache import cache_data
from patchtree.datasets import DataSet, split_data
from patchtree.detail import from_dict, to_dict
from patchtree.errors import InputError
from patchtree.models.choose import pretrained
from patchtree.models.precision import HALF, choose_precision
from patchtree.models.weights import read_origin
from patchtree.patcher import PATCH_SIZES, Patcher
from patchtree.slide_data import choose_side, density_of
from patchtree.slide_sources import look_at

# Of the images, those that a training validates on.
HELD_OUT = 0.2
# Of models that begin with random weights; trained ones are moved less, the more so the deeper they lie.
_RATES = {"patchtree:nano": 1e-3, "patchtree:tiny": 1e-3, "patchtree:small": 5e-4}
# A step of Adam is larger than one of Muon at the same rate, to begin with.
_MUON_RATE = 3.0
_RATE, _TRAINED_RATE, _TRAINED_LAYER_DECAY = 3e-4, 1e-4, 0.75
# Seconds on a CPU in which a smaller model gets further, as it makes twice the steps; twice that without bfloat16.
_SHORT_TIME = 600.0
# Of the images, to choose the budget by.
_LOOKED_AT = 4
# In a window: what attention and a step's time allow.
_TOKENS = {"cpu": 300, "gpu": 1024}
# Leaves that attention is among at least.
_LEAST_REACH = 512
# Of a small image, and the area that a token of a larger one covers, where only its class is wanted.
_FEW, _AREA = 64, 2400


@dataclass(frozen=True)
class Options:
    """What shapes a run, and what a resumed run therefore keeps; see `patchtree.training.train`."""

    patch_size: int
    budget: int
    detail: dict[str, Any]
    model: str
    head: str | None
    weights: str | None
    freeze: int
    lora: int
    window: int
    batch_size: int
    lr: float
    layer_decay: float
    seed: int
    density: float
    samples: int
    task: str = "segment"
    muon: bool = False
    asked_budget: bool = False


def choose_options(
    dataset: DataSet, asked: Mapping[str, Any], accelerator: str, max_time: float | None = None
) -> Options:
    """Fill in what was not asked for, from the data, the machine and the seconds there are."""
    classify = asked["task"] == "classify"
    for name in ("head", "window"):
        if classify and asked[name] is not None:
            raise InputError(f"{name} is for masks, images with one class each are seen whole; leave it out")
    origin = read_origin(asked["weights"]) if asked["weights"] is not None else None
    # Weights of a run fit its own model alone.
    usual = origin.name if origin and origin.name else f"patchtree:{_choose_size(accelerator, max_time)}"
    model = asked["model"] or usual
    # The reference model is small, and what it has learnt on masked leaves or other images is only where it starts.
    trained = pretrained(model, asked["weights"]) and not model.startswith("patchtree:")
    muon = not (classify or trained) and model.startswith("patchtree:")
    values: dict[str, Any] = {
        "task": "segment",
        "patch_size": origin.patch_size if origin and origin.patch_size else PATCH_SIZES[dataset.ndim],
        "budget": 1,  # and the window: see look_at_data
        "detail": "residual",
        "model": model,
        "head": None,
        "weights": None,
        "freeze": 0,
        "lora": 0,
        "window": 1024,
        # On a CPU time is short, and twice as many steps do more than twice as large batches.
        "batch_size": 4 if accelerator == "cpu" else 8,
        "lr": _TRAINED_RATE if trained else _RATES.get(model, _RATE) * (_MUON_RATE if muon else 1),
        "layer_decay": _TRAINED_LAYER_DECAY if trained else 1.0,
        "seed": 0,
        "muon": muon,
        "asked_budget": asked["budget"] is not None,
    }
    values |= {name: value for name, value in asked.items() if value is not None}
    for name in ("window", "batch_size", "lr", "layer_decay"):
        if not 0 < values[name] < math.inf:
            raise InputError(f"{name} {values[name]} is not possible; give more than 0")
    patcher = Patcher(values["patch_size"], values["budget"], detail=values["detail"], ndim=dataset.ndim)
    values["detail"] = patcher.to_dict()["detail"]
    return Options(**values, density=0.0, samples=0)


def _choose_size(accelerator: str, max_time: float | None) -> str:
    """Give the size of the reference model that is best at the end of the time.

    It does not depend on how fast the machine is just now: several processes have to choose the same.
    """
    if accelerator != "cpu":
        return "small"
    short = _SHORT_TIME * (1 if choose_precision(accelerator) == HALF else 2)
    return "nano" if max_time is not None and max_time < short else "tiny"


def look_at_data(
    dataset: DataSet, options: Options, asked: Mapping[str, Any], accelerator: str, cache: Path
) -> Options:
    """Choose budget and window, if they were not asked for, by a few of the images to train on and their masks."""
    if dataset.slides:
        return _look_at_slides(dataset, options, asked, accelerator)
    shapes = [pair.shape() for pair in dataset.pairs]
    areas = [prod(shape) for shape in shapes]
    if options.task == "classify":
        train, _ = split_data(dataset, HELD_OUT, options.seed)
        enough = min(_window_tokens(accelerator), max(_FEW, round(median(areas) / _AREA)))
        budget = options.budget if asked["budget"] is not None else enough
        return replace(options, budget=budget, window=0, density=budget / median(areas), samples=len(train))
    if asked["budget"] is None and options.task == "pretrain":
        density = usual_density(median(areas), options.patch_size, dataset.ndim)
        options = replace(options, budget=max(1, round(density * median(areas))))
    elif asked["budget"] is None:
        train, _ = split_data(dataset, HELD_OUT, options.seed)
        images = cache_data(replace(train, pairs=train.pairs[:_LOOKED_AT]), cache)
        patcher = Patcher(options.patch_size, detail=from_dict(options.detail), ndim=dataset.ndim)
        shown = [(image.image(), image.mask()) for image in images]
        density = choose_density(shown, patcher, len(dataset.labels), dataset.ignore)
        options = replace(options, budget=max(1, round(density * median(areas))))
    density = options.budget / median(areas)
    if asked["window"] is None:
        depth = None if dataset.ndim == 2 else median(shape[0] for shape in shapes)
        tokens = _window_tokens(accelerator)
        options = replace(options, window=choose_window(density, tokens, options.patch_size, depth))
    windows = sum(max(1.0, area / options.window**dataset.ndim) for area in areas) * (1 - HELD_OUT)
    return replace(options, density=density, samples=math.ceil(windows))


def _look_at_slides(dataset: DataSet, options: Options, asked: Mapping[str, Any], accelerator: str) -> Options:
    """Choose budget and window by the tissue and the labels of a few of the slides to train on."""
    train, _ = split_data(dataset, HELD_OUT, options.seed)
    slides = look_at(train)
    area = median(slide.area for slide in slides)
    if asked["budget"] is None:
        patcher = Patcher(options.patch_size, detail=from_dict(options.detail))
        options = replace(options, budget=max(1, round(density_of(slides, patcher) * area)))
    density = options.budget / area
    if asked["window"] is None:
        options = replace(options, window=choose_side(density, _window_tokens(accelerator)))
    windows = sum(max(1.0, slide.area / options.window**2) for slide in slides)
    return replace(options, density=density, samples=math.ceil(windows))


def _window_tokens(accelerator: str) -> int:
    """Give the tokens of a window."""
    return _TOKENS["cpu" if accelerator == "cpu" else "gpu"]


def choose_reach(dataset: DataSet, options: Options) -> int:
    """Give how many leaves attention is among when whole images are predicted: some more than it was trained with.

    A window of a slide, or an image that has a class, is predicted as it was trained with.
    """
    alike = options.task == "classify" or bool(dataset.slides)
    return 0 if alike else max(_LEAST_REACH, round(2 * options.density * options.window**dataset.ndim))


def check_same(out: Path, asked: Mapping[str, Any], options: Options) -> None:
    """Refuse options that the run was not started with."""
    started = asdict(options)
    for name, value in asked.items():
        if value is not None and (to_dict(value) if name == "detail" else value) != started[name]:
            raise InputError(f"{out}: was started with {name} {started[name]}; leave {name} out, or train another run")
