"""Inference: a run folder and images in, class ids or probabilities at the images' own size out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from patchtree.datasets import Pair
from patchtree.errors import InputError, say_size
from patchtree.ids import count_pairs, likeliest, paint_ids
from patchtree.io.volumes import warn_elsewhere
from patchtree.models.choose import build
from patchtree.models.mesh import set_reach
from patchtree.models.precision import half_where_quick
from patchtree.models.segmenter import Segmenter
from patchtree.patcher import Patches, spare_budget_allowed
from patchtree.patches import band, painter
from patchtree.runs import WEIGHTS, RunConfig, best_fraction, load_config, load_weights, weights_metadata
from patchtree.slide_evaluation import evaluate_slide
from patchtree.tokens import collate

# Numbers that are painted at a time: 256 MiB of float32.
_BAND = 1 << 26
# Axes of a plane that an image is flipped along, or each slice of a volume.
VIEWS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 1))


@dataclass(frozen=True, eq=False)
class Predictor:
    """A trained model with all that its images need; `load` makes it.

    Attributes:
        config: of the run; its density is the one that prediction takes.
        model: in evaluation mode, on the device.
        device: where the model is.
        smooth: interpolate probabilities between patch pixels before the likeliest class is taken. Otherwise every
            pixel under a patch pixel is given the same class.
    """

    config: RunConfig
    model: Segmenter
    device: torch.device
    smooth: bool = True

    def __call__(self, image: ArrayLike, *, flips: bool = False) -> NDArray[np.uint8 | np.uint16]:
        """Predict the class of every pixel, ``(H, W)`` ids, or of every voxel, ``(D, H, W)``.

        Args:
            image: ``(H, W)`` or ``(H, W, C)``, as `patchtree.io.images.read_image` gives it; where the run was trained
                on volumes ``(D, H, W)`` or ``(D, H, W, C)``.
            flips: average over the image, its two mirror images and the half turn.

        Raises:
            InputError: the image's channels are not the run's, or `Patcher` cannot split it.
        """
        image = np.asarray(image)
        if flips or self.config.ndim == 3:
            return np.concatenate([likeliest(share) for share in self._bands(image, flips)])
        patches = self.split(image)
        return paint_ids(self.in_patches(patches), patches.tree, self.smooth)

    def probabilities(self, image: ArrayLike, *, flips: bool = False) -> NDArray[np.float32]:
        """Predict the probability of each class at every pixel, ``(H, W, K)``, or voxel; arguments as in a call."""
        image = np.asarray(image)
        parts = list(self._bands(image, flips))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _bands(self, image: NDArray[Any], flips: bool) -> Iterator[NDArray[np.float32]]:
        """Give the probabilities of one horizontal band after the other, ``(h, W, K)``, or of some slices.

        A band is all that is held at the image's resolution; the rest is in patches.
        """
        shape = image.shape[: self.config.ndim]
        height = shape[0]
        views = []
        for plane in VIEWS if flips else VIEWS[:1]:
            axes = tuple(axis + self.config.ndim - 2 for axis in plane)
            patches = self.split(np.flip(image, axes))
            views.append((axes, painter(self.in_patches(patches), patches.tree, self.smooth)))
        rows = max(1, _BAND // (math.prod(shape[1:]) * len(self.config.labels)))
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            (_, first), *others = views
            total = first.paint(band(shape, top, bottom))
            for axes, view in others:
                low, high = (height - bottom, height - top) if 0 in axes else (top, bottom)
                total += np.flip(view.paint(band(shape, low, high)), axes)
            if others:
                total /= len(views)
            yield total

    def split(self, image: NDArray[Any]) -> Patches:
        """Split an image as those that the run was trained on were.

        Raises:
            InputError: the image's channels or type are not the run's, or `Patcher` cannot split it.
        """
        ndim = self.config.ndim
        self.check(image.shape[ndim] if image.ndim > ndim else 1, image.dtype)
        with spare_budget_allowed():
            return self.config.patcher_for(image.shape[:ndim])(np.ascontiguousarray(image))

    def in_patches(self, patches: Patches) -> NDArray[np.float32]:
        """Predict the probability of each class at every patch pixel, ``(N, p, p, K)``, or of the image, ``(K,)``.

        Of a volume ``(N, p, p, p, K)``.
        """
        tokens = collate([patches], self.config.mean, self.config.std).to(self.device)
        with torch.inference_mode(), half_where_quick(self.device):
            logits: Tensor = self.model(tokens)[0]
            # The classes in front: a softmax over a short last axis is slow on a CPU.
            share = logits.float().movedim(-1, 0).contiguous().softmax(0).movedim(0, -1)
        return np.ascontiguousarray(share.cpu().numpy())

    def check(self, channels: int, dtype: np.dtype[Any]) -> None:
        """Refuse images of another kind than those that the run was trained on.

        Raises:
            InputError: the number of channels is another, or the pixels' type.
        """
        wanted, kind = self.config.channels, self.config.kind
        if channels != wanted:
            counts = [_channels(count, kind) for count in (channels, wanted)]
            raise InputError(f"the {kind} has {counts[0]}, the run was trained on {kind}s with {counts[1]}; convert it")
        known = self.config.dtype
        if known and dtype.name != known and {dtype.name, known} & {"uint8", "uint16"}:
            raise InputError(
                f"the {kind} is {dtype.name}, the run was trained on {known}, whose values mean something else; "
                "convert it"
            )


def load(
    run: str | os.PathLike[str], device: torch.device | str | None = None, *, smooth: bool = True, task: str = "segment"
) -> Predictor:
    """Load the best weights of a run for prediction; no pickle is involved.

    Args:
        run: the folder that `patchtree.training.train` filled.
        device: such as ``"cpu"`` or ``"cuda:1"``; None: a GPU where there is one.
        smooth: see `Predictor`.
        task: what the run must have been trained for: ``"segment"``, or ``"classify"``, see
            `patchtree.image_inference.classify`.

    Raises:
        InputError: the folder is missing, incomplete, damaged, of another version or task, a package that its model
            needs is not here, or there is no such device.
    """
    config = load_config(run)
    if config.task != task:
        if config.task == "pretrain":
            hint = f"train from it: patchtree train DATA --out ANOTHER --weights {run}/{WEIGHTS}"
            raise InputError(f"{run}: was pretrained and knows no classes; {hint}")
        raise InputError(f"{run}: was trained to {config.task}, and {task} is wanted; name another run")
    chosen = _device(device)
    model = build(labels=config.labels, **config.model, classify=task == "classify").model
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    model.load_state_dict(load_weights(run, shapes))
    set_reach(model, config.reach)
    config = replace(config, density=best_fraction(weights_metadata(run)) * config.density)
    return Predictor(config, model.to(chosen).eval(), chosen, smooth)


def evaluate(predictor: Predictor, pairs: Iterable[Pair], *, flips: bool = False) -> Iterator[Tensor]:
    """Compare predictions with masks, pixel by pixel at the images' own size.

    Args:
        predictor: from `load`.
        pairs: images and masks, read one at a time; or slides, see `evaluate_slide`.
        flips: see `Predictor`.

    Yields:
        For each pair ``(K, K)`` float64, the pixels of every true class (first) that were given every class;
        `patchtree.metrics.dice` and `patchtree.metrics.iou` make scores of it.

    Raises:
        InputError: a file cannot be read, an image and its mask differ in size, or a mask holds an unknown id.
    """
    classes, ignore = len(predictor.config.labels), predictor.config.ignore
    for pair in pairs:
        if pair.slide:
            if flips:
                raise InputError(f"{pair.image}: a slide is predicted without flips; leave them out")
            yield torch.from_numpy(evaluate_slide(predictor, pair))
            continue
        mask, image = pair.read_mask(), pair.read_image()
        if pair.ndim == 3:
            warn_elsewhere((pair.image, pair.mask))
        try:
            found = predictor(image, flips=flips)
        except InputError as error:
            raise InputError(f"{pair.image}: {error}") from error
        if mask.shape != found.shape:
            sizes = [say_size(ids.shape, ids.ndim) for ids in (mask, found)]
            raise InputError(f"{pair.mask}: {sizes[0]}, but {pair.image.name} has {sizes[1]}; make them equal")
        if ignore is not None:
            known = mask != ignore
            mask, found = mask[known], found[known]
        if mask.size and not 0 <= int(mask.min()) <= int(mask.max()) < classes:
            raise InputError(f"{pair.mask}: holds an id that is none of the run's {classes} classes; check its labels")
        yield torch.from_numpy(count_pairs(mask, found, classes).astype(np.float64))


def _device(asked: torch.device | str | None) -> torch.device:
    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {asked} is not here; give cpu, or cuda where there is a GPU") from error
    return device


def _channels(count: int, kind: str) -> str:
    colours = {1: " (grey)", 3: "s (RGB)"} if kind == "image" else {1: ""}
    return f"{count} channel" + colours.get(count, "s")
