"""Training: a folder of images and masks in, a run folder out, on Lightning."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track

from patchtree.announce import announce, announce_weights
from patchtree.budget import FRACTIONS, distinct_fractions
from patchtree.data import DataModule, Whole, warn_unmet
from patchtree.datasets import DataSet, check_data, check_patch_size, choose, find_data, split_data
from patchtree.detail import Detail, from_dict
from patchtree.ema import Average
from patchtree.errors import InputError
from patchtree.image_data import ImageData
from patchtree.labelled import check_labelled, find_labelled
from patchtree.machines import check_machines, choose_workers, exit_code_of_sigterm, faults_in_one_line, quiet
from patchtree.models.choose import Built, build
from patchtree.models.mesh import set_reach
from patchtree.models.precision import choose_precision
from patchtree.models.tuning import add_lora, freeze, freeze_unused, trial_tokens
from patchtree.models.weights import Origin
from patchtree.options import (
    HELD_OUT,
    Options,
    check_same,
    choose_options,
    choose_reach,
    look_at_data,
)
from patchtree.patcher import Patcher
from patchtree.runs import (
    CACHE,
    CHECKPOINT,
    LOGS,
    METRICS,
    WEIGHTS,
    RunConfig,
    check_free,
    load_checkpoint,
    load_config,
    nothing_left,
    save_config,
    weights_metadata,
)
from patchtree.schedule import Bar, Course
from patchtree.slide_data import SlideModule
from patchtree.slide_sources import check_slides, median_mpp
from patchtree.tasks import ImageTask, MaskedTask, Task
from patchtree.unlabelled import find_unlabelled
from patchtree.volume_data import VolumeModule

_DEFAULT_TIME = 3600.0
_CLIP = 1.0
_DECAY = 0.999


def train(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    task: str | None = None,
    max_time: float | None = None,
    max_epochs: int | None = None,
    resume: bool = False,
    patch_size: int | None = None,
    budget: int | None = None,
    detail: str | Detail | None = None,
    model: str | None = None,
    head: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    freeze: int | None = None,
    lora: int | None = None,
    window: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    seed: int | None = None,
    workers: int | None = None,
    accelerator: str = "auto",
    devices: int | str = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: str | None = None,
    progress: bool | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train a segmenter or a classifier on a data set and leave all that prediction needs in a run folder.

    The last average weights that had the best Dice on whole validation images, within 0.005 (mean of the foreground
    classes, exact, with as many of their patches as suits them), are kept in ``weights.safetensors``, all that a
    resumed training needs in ``last.ckpt`` (renewed every minute), one row a validation in ``metrics.csv``,
    TensorBoard's files in ``logs/``. Ctrl-C saves after the step that is under way.

    A run that goes by epochs ends with the same weights whether or not it was killed and resumed on the way. One that
    goes by time remembers how much it had used.

    Without labels, the best weights explain most of the variance of hidden pixels. They are where another run starts
    that is given them as `weights`, its head included.

    A classifier sees whole images within the budget, and its best weights are those with the best balanced accuracy.

    The loss of a step is that of the windows of all processes together, so ``R`` processes with batches of ``b`` train
    as one with batches of ``R * b`` does.

    Args:
        data: a data set's folder, see `find_data`; to classify, see `patchtree.labelled.find_labelled`; without labels,
            `patchtree.unlabelled.find_unlabelled`.
        out: the run folder.
        task: ``"segment"``, a class for every pixel; ``"classify"``, one for every image; or ``"pretrain"``, none: the
            pixels of hidden leaves are learned from images alone. None: ``"segment"``.
        max_time: seconds to train for, from this call to the last validation; None: an hour, unless `max_epochs` is
            given.
        max_epochs: epochs to train for; an epoch draws as many windows as cover the training images once.
        resume: go on with the run in `out`, if there is one. It keeps its patches, model, split and optimizer, and what
            it was given of `max_time` and `max_epochs` unless one of them is given anew.
        patch_size: pixels on a side of a patch, ``p``; None: 16, of volumes 8, or what the weights of a run have.
        budget: tokens for an image of median area, others in proportion; None chooses by what the images and the labels
            need, and prediction may take a half or a quarter of it, see `patchtree.tasks.Task`. To
            classify, larger images get no more, and None chooses by the area and the machine.
        detail: where leaves are small, see `Patcher`; None: ``"residual"``.
        model: by name, see `build_model`; None: that of `weights` if they are a run's, else ``"patchtree:small"`` on a
            GPU, ``"patchtree:tiny"`` without, or ``"patchtree:nano"`` if `max_time` is short.
        head: by name, see `build_model`.
        weights: a file, or ``"pretrained"``, see `build_model`. Images are then normalised as those weights expect: a
            run's as in that run, a library's if they have three 8-bit channels. A run's head goes with them, but for
            the last layer where the classes are others.
        freeze: how many of the encoder's first blocks stay as they are, with what comes before them; -1: all of it.
        lora: rank of low-rank adapters, which are trained instead of the encoder; None: none. They are merged into the
            matrices of ``weights.safetensors``.
        window: side of the training windows in pixels, smaller images are seen whole; None chooses by the budget.
        batch_size: windows a step and process; None: 8 on a GPU, 4 without.
        lr: highest learning rate; None chooses by the model, less for trained weights.
        layer_decay: what the rate of a block is multiplied by from one block down to the next; None: 0.75 for trained
            weights, else 1.
        seed: of everything random; None: 0.
        workers: processes that make samples; None chooses by the number of cores.
        accelerator: ``"cpu"``, ``"gpu"``, ...; ``"auto"``: a CUDA GPU where there is one, else the CPU.
        devices: how many, or which; this and the next three as Lightning's ``Trainer`` takes them.
        num_nodes: how many machines.
        strategy: such as ``"ddp"``.
        precision: None: on a GPU bfloat16 where it has that, else float16, with float32 weights; on a CPU
            bfloat16 where it has instructions for it, else float32.
        progress: whether to show a progress bar; None: if standard error is a terminal.
        report: takes lines on what was chosen and how it goes.

    Returns:
        The run folder.

    Raises:
        InputError: the data set is at fault, see `check_data`; `out` holds a run and `resume` is not set, or that run
            was made with other options; an argument is not possible; the loss is no longer finite.
        KeyboardInterrupt: after Ctrl-C, once all is saved.
    """
    started = time.monotonic()
    out = Path(out)
    if (max_time is not None and max_time <= 0) or (max_epochs is not None and max_epochs < 1):
        raise InputError("max_time and max_epochs are more than 0, or left out")
    if any(name in strategy for name in ("fsdp", "deepspeed", "model_parallel")):
        raise InputError(f"strategy {strategy} shards the weights, whose average cannot be sharded; give ddp")
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if workers is not None and workers < 0:
        raise InputError(f"workers {workers} is not possible; give 0 or more")
    if seed is not None and seed < 0:
        raise InputError(f"seed {seed} is not possible; give 0 or more")
    precision = precision or choose_precision(accelerator)
    check_machines(accelerator, devices, num_nodes, strategy, precision)
    main = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    say = report if main else (lambda line: None)
    asked = {
        "task": task,
        "patch_size": patch_size,
        "budget": budget,
        "detail": detail,
        "model": model,
        "head": head,
        "weights": None if weights is None else os.fspath(weights),
        "freeze": freeze,
        "lora": lora,
        "window": window,
        "batch_size": batch_size,
        "lr": lr,
        "layer_decay": layer_decay,
        "seed": seed,
    }
    checkpoint = load_checkpoint(out) if resume else None
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a folder for the run")
    if main and checkpoint is None:
        check_free(out, resume)
    if resume and checkpoint is None:
        say(f"nothing to resume in {out}, begins anew")
    config = None if checkpoint is None else load_config(out)
    if max_time is None and max_epochs is None:
        max_time, max_epochs = (config.max_time, config.max_epochs) if config else (_DEFAULT_TIME, None)
    if config and "pretrain" in (task, config.task) and task != config.task:
        verb = "pretrain" if config.task == "pretrain" else "train"
        raise InputError(f"{out}: is a run of `patchtree {verb}`; resume it with that, or choose another folder")
    task = config.task if config else task
    classify = task == "classify"
    dataset = _find(data, task, config.labels if config else None)
    if config is None:
        if task != "pretrain":
            (check_labelled if classify else check_slides if dataset.slides else check_data)(dataset)
        options = choose_options(dataset, asked, accelerator, max_time)
        shapes = {pair.image: pair.shape() for pair in dataset.pairs if not pair.slide}
        check_patch_size(shapes, options.patch_size)
        # What the model refuses is told before all images are decoded.
        built = _build(dataset, options)
        if not built.depths:
            if layer_decay is not None:
                raise InputError("layer_decay needs a model with blocks in a row, which this one has not; leave it out")
            options = replace(options, layer_decay=1.0)
        with nothing_left(out):
            options = look_at_data(dataset, options, asked, accelerator, out / CACHE)
        config = replace(_plan(dataset, options), max_time=max_time, max_epochs=max_epochs)
    else:
        options = Options(**config.options)
        check_same(out, asked, options)
        built = _tune(build(labels=config.labels, **config.model, classify=classify), options)
    shown = main and (sys.stderr.isatty() if progress is None else progress)
    parts = _open_data(dataset, config, options, out / CACHE, choose_workers(workers), max_time, shown)
    with nothing_left(out):
        parts.prepare_data()
        parts.setup()
    if main and options.asked_budget and isinstance(parts.whole, Whole):
        warn_unmet(replace(parts.whole, images=parts.images))
    if checkpoint is None:
        if built.norm is not None and parts.dtype == built.dtype:
            parts.mean, parts.std = built.norm
        config = _with_measured(config, parts, built)
        if main:
            for name in (WEIGHTS, METRICS):
                (out / name).unlink(missing_ok=True)
            save_config(out, config)
    elif main and (max_time, max_epochs) != (config.max_time, config.max_epochs):
        save_config(out, replace(config, max_time=max_time, max_epochs=max_epochs))
    parts.grids = built.model.grids
    set_reach(built.model, config.reach)
    module = _task(dataset, config, built, options, parts)
    goal = (
        f"{max_epochs} epoch{'s' * (max_epochs != 1)}"
        if max_time is None
        else f"{int(max_time // 60)} min {max_time % 60:.0f} s"
    )
    announce(say, config, options, parts, module, f"on {accelerator} for {goal}")
    if checkpoint is None and (built.weights or not options.model.startswith("patchtree:")):
        announce_weights(say, built, options, parts)
    average = Average(_DECAY)
    max_samples = None if max_epochs is None else max_epochs * options.samples
    timing = (options.samples, max_time, max_samples, started)
    course = Course(out, average, options.lr, *timing, say, module.score, _origin(config).to_metadata())
    if checkpoint is not None:
        course.resume(checkpoint)
        if course.progress >= 1:
            if main:
                shutil.rmtree(out / CACHE, ignore_errors=True)
            say(f"{out} is complete; to go on, give a longer max_time or more max_epochs")
            return out
        parts.start = course.samples
    del checkpoint
    with quiet():
        trainer = Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=-1,
            val_check_interval=sys.maxsize,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            gradient_clip_val=_CLIP,
            log_every_n_steps=10,
            logger=TensorBoardLogger(out, name=LOGS, version="", default_hp_metric=False, purge_step=course.first_step),
            callbacks=[average, course, *([Bar(course)] if shown else [])],
            default_root_dir=out,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        with course.interruptible(), faults_in_one_line(), exit_code_of_sigterm(trainer):
            trainer.fit(module, parts, ckpt_path=out / CHECKPOINT if course.first_step else None, weights_only=True)
    if course.interrupted:
        say(f"stopped after {trainer.global_step} steps, all is saved; go on with --resume")
        raise KeyboardInterrupt
    best = f"best {course.score} {course.best:.3f} at step {course.best_step}"
    say(f"{best} of {trainer.global_step}; the run is in {out}")
    if main:
        _say_fraction(out, _budgets(dataset, config, options), config.kind, say)
        shutil.rmtree(out / CACHE, ignore_errors=True)
    return out


def _say_fraction(out: Path, budgets: Mapping[float, int], kind: str, say: Callable[[str], None]) -> None:
    """Say with how many patches the best weights predict the images, or volumes, to validate on best."""
    about = weights_metadata(out)
    if "fraction" in about:
        each = ", ".join(f"{float(about[f'dice at {part:g}']):.3f} with {budget}" for part, budget in budgets.items())
        most = budgets[float(about["fraction"])]
        one = "a volume" if kind == "volume" else "an image"
        say(f"prediction: up to {most} patches {one}; Dice of the validation {kind}s {each}")


def _find(data: str | os.PathLike[str], task: str | None, labels: Mapping[str, int] | None) -> DataSet:
    """Find what is learned from."""
    if task == "pretrain":
        return find_unlabelled(data)
    return find_labelled(data, labels) if task == "classify" else find_data(data)


def _outputs(dataset: DataSet) -> dict[str, int]:
    """Name what the model gives a pixel: classes or, where nothing is labelled, the channels that it paints."""
    return dataset.labels or {f"channel {channel}": channel for channel in range(dataset.pairs[0].look()[0][-1])}


def _open_data(
    dataset: DataSet,
    config: RunConfig,
    options: Options,
    cache: Path,
    workers: int,
    max_time: float | None,
    shown: bool,
) -> DataModule:
    """Make the data of a run; a bar tells how far the decoding is, where it is shown."""
    bar = partial(track, description="Reading", console=Console(stderr=True), transient=True)
    if options.task == "classify":
        kind: type[DataModule] = ImageData
    else:
        kind = SlideModule if dataset.slides else VolumeModule if dataset.ndim == 3 else DataModule
    return kind(
        choose(dataset, config.train),
        choose(dataset, config.val),
        Patcher.from_dict(config.patcher),
        cache,
        window=config.window,
        density=options.density,
        least=config.least,
        most=config.most,
        spread=1.0 if options.asked_budget else 1 / min(FRACTIONS),
        fractions=tuple(_budgets(dataset, config, options)),
        samples=options.samples,
        batch_size=options.batch_size,
        workers=workers,
        seed=options.seed,
        time=max_time,
        mean=config.mean or None,
        std=config.std or None,
        progress=bar if shown else None,
    )


def _task(dataset: DataSet, config: RunConfig, built: Built, options: Options, parts: DataModule) -> Task:
    """Make what is done in a run."""
    common = (built.model, options.lr, built.depths, options.layer_decay)
    if config.task == "pretrain":
        return MaskedTask(*common, options.muon)
    if config.task != "classify":
        sources = parts.slides if isinstance(parts, SlideModule) else parts.images
        pixels = np.array([source.pixels for source in sources], float).sum(0)
        return Task(*common, options.muon, (pixels / pixels.sum()).tolist(), parts.fractions)
    counts = Counter(pair.label for pair in choose(dataset, config.train).pairs)
    return ImageTask(*common, [counts[label] / counts.total() for label in config.labels.values()])


def _budgets(dataset: DataSet, config: RunConfig, options: Options) -> dict[float, int]:
    """Give the fractions of the density to validate at, and the budgets that they are of an image of median area."""
    # Who asks for a budget means it.
    if options.task == "segment" and not dataset.slides and not options.asked_budget:
        return distinct_fractions(options.budget, config.least, config.most)
    return {1.0: options.budget}


def _plan(dataset: DataSet, options: Options) -> RunConfig:
    """Describe the run, but for what is measured on the images."""
    train, val = split_data(dataset, HELD_OUT, options.seed)
    libraries = ["patchtree", "torch", "lightning", "numpy", "opencv-python-headless", "timm"]
    libraries += ["SimpleITK"] if dataset.ndim == 3 else []
    return RunConfig(
        labels=_outputs(dataset),
        task=options.task,
        ignore=dataset.ignore,
        channels=0,
        mean=(),
        std=(),
        patcher=Patcher(
            options.patch_size, options.budget, detail=from_dict(options.detail), ndim=dataset.ndim
        ).to_dict(),
        density=options.density,
        model={},
        window=options.window,
        reach=choose_reach(dataset, options),
        # Who asks for less on an image of median area means it.
        least=min(RunConfig.least, options.budget) if options.asked_budget else RunConfig.least,
        most=options.budget if options.task == "classify" else RunConfig.most,
        train=tuple(pair.name for pair in train.pairs),
        val=tuple(pair.name for pair in val.pairs),
        options=asdict(options),
        versions={"python": platform.python_version()} | {name: version(name) for name in libraries},
    )


def _with_measured(config: RunConfig, parts: DataModule, built: Built) -> RunConfig:
    assert parts.mean is not None
    assert parts.std is not None
    return replace(
        config,
        channels=parts.channels,
        dtype=parts.dtype,
        mpp=median_mpp(parts.slides) if isinstance(parts, SlideModule) else None,
        mean=tuple(parts.mean),
        std=tuple(parts.std),
        model=built.config,
    )


def _origin(config: RunConfig) -> Origin:
    """Describe what the run's weights are trained on."""
    channels = f"{config.channels} channel{'s' * (config.channels != 1)}"
    model = f"{config.model['name']} with patches of {config.model['patch_size']} px and {channels}"
    own = config.model["name"], config.model["patch_size"]
    return Origin(model, config.labels, config.mean, config.std, config.dtype, *own)


def _build(dataset: DataSet, options: Options) -> Built:
    """Make the model of a new run, for images as the first."""
    torch.manual_seed(options.seed)
    built = build(
        options.model,
        _outputs(dataset),
        channels=dataset.pairs[0].look()[0][-1],
        patch_size=options.patch_size,
        ndim=dataset.ndim,
        head=options.head,
        weights=options.weights,
        classify=options.task == "classify",
    )
    _tune(built, options)
    if (options.freeze or options.lora) and not built.weights:
        warnings.warn("what is not trained of the encoder stays random; give weights", stacklevel=3)
    return built


def _tune(built: Built, options: Options) -> Built:
    """Freeze and adapt what the options say."""
    if options.freeze and options.lora:
        raise InputError("freeze and lora exclude each other: lora trains nothing of the encoder but its adapters")
    freeze(built.model, built.depths, options.freeze)
    if options.lora:
        add_lora(built.model, built.depths, options.lora)
    freeze_unused(built.model, trial_tokens(*(built.config[name] for name in ("channels", "patch_size", "ndim"))))
    return built
