"""What a training is about to do, in the few lines that are told before it begins."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from statistics import median

from patchtree.data import DataModule
from patchtree.errors import say_size
from patchtree.models.choose import Built
from patchtree.options import Options
from patchtree.runs import RunConfig
from patchtree.slide_data import SlideModule, SlideParts
from patchtree.tasks import Task


def announce(
    say: Callable[[str], None], config: RunConfig, options: Options, parts: DataModule, task: Task, how: str
) -> None:
    """Say in three lines what is about to happen."""
    slides = parts.slides if isinstance(parts, SlideModule) else ()
    shapes = [image.shape for image in slides or parts.images]
    shape = [round(median(lengths)) for lengths in zip(*shapes, strict=True)]
    area = median(slide.area for slide in slides) if slides else prod(shape)
    kind = "slide" if slides else "volume" if len(shape) == 3 else "image"
    what = kind + "s" * (len(config.train) != 1)
    least, most = min(shapes, key=prod), max(shapes, key=prod)
    size = say_size(shape, len(shape))
    if prod(most) > 2 * prod(least):
        size = f"{say_size(least, len(shape))} to {say_size(most, len(shape))}"
    images = f"{len(config.train)} {what} of {size} to train on, {len(config.val)} to validate on"
    if isinstance(parts.whole, SlideParts):
        images += f" by {len(parts.whole)} window{'s' * (len(parts.whole) != 1)}"
    say(f"data: {images}; {'no labels' if config.task == 'pretrain' else ', '.join(config.labels)}")
    p, detail = config.model["patch_size"], config.patcher["detail"]["name"]
    tokens = round(options.density * area)
    whole = not config.window or max(most) <= config.window
    seen = "seen whole" if whole else f"windows of {config.window} {'voxels' if kind == 'volume' else 'px'}"
    shown = "for the tissue of a slide" if slides else f"a {kind}" if kind == "volume" else "an image"
    say(f"patches: up to {tokens} of {say_size([p] * len(shape), len(shape))} {shown}, by {detail}; {seen}")
    counts = [(weight.numel() / 1e6, weight.requires_grad) for weight in task.model.parameters()]
    weights, trained = sum(count for count, _ in counts), sum(count for count, taught in counts if taught)
    some = f", {trained:.1f} M of them trained" if trained < 0.95 * weights else ""
    head = f" with the {config.model['head']} head" if config.model["head"] else " through the mosaic"
    head = "" if config.task == "classify" else head
    say(f"model: {options.model}{head}, {weights:.1f} M weights{some}; batches of {parts.batch_size} {how}")


def announce_weights(say: Callable[[str], None], built: Built, options: Options, parts: DataModule) -> None:
    """Say what the encoder begins with."""
    down = f", times {options.layer_decay:g} a block down" if options.layer_decay != 1 else ""
    rate = f"learning rate {options.lr:g}{down}"
    if not built.weights:
        say(f"weights: random, --weights begins with trained ones; {rate}")
        return
    theirs = built.norm is not None and (parts.mean, parts.std) == built.norm
    say(f"weights: {built.weights}; images normalised by {'its' if theirs else 'their own'} mean and deviation; {rate}")
