"""Models by name: "patchtree:tiny", "timm:NAME", "hf:FOLDER", "monai:NAME", "torchvision:NAME", "smp:NAME"."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from patchtree.errors import InputError
from patchtree.models.adapt import adapt
from patchtree.models.classifier import Classifier
from patchtree.models.heads import build_head
from patchtree.models.mesh import MeshEncoder
from patchtree.models.originals import Asked, Norm, Original, find_builder, has_weights
from patchtree.models.segmenter import Segmenter, label_names
from patchtree.models.tuning import stages, trial_tokens
from patchtree.models.weights import load_head, load_into, read_origin, some


@dataclass(frozen=True, eq=False)
class Built:
    """A model and what is to be known of it.

    Attributes:
        model: the model.
        config: arguments of `build_model`, but for the labels, that build it again with random weights, without the
            network and without files; ready for JSON.
        weights: where its encoder's weights are from; empty if they are random.
        norm: mean and standard deviation of each channel that those weights expect; of bytes, scaled to 0..1.
        dtype: type of the pixels that `norm` is for.
        depths: of the encoder's weights, see `stages`.
    """

    model: Segmenter
    config: dict[str, Any]
    weights: str = ""
    norm: Norm | None = None
    dtype: str = "uint8"
    depths: Mapping[str, int] = field(default_factory=dict)


def build_model(
    name: str,
    labels: Mapping[str, int] | int,
    *,
    channels: int = 3,
    patch_size: int = 16,
    ndim: int = 2,
    head: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    config: dict[str, Any] | None = None,
) -> Segmenter:
    """Make a model that labels every pixel of every patch, by name.

    >>> import numpy as np
    >>> import patchtree as pt
    >>> tokens = pt.collate([pt.Patcher(budget=50)(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8))])
    >>> pt.build_model("patchtree:tiny", labels=2)(tokens).shape
    torch.Size([1, 49, 16, 16, 2])
    >>> pt.build_model("timm:vit_tiny_patch16_224", labels=2, head="linear")(tokens).shape
    torch.Size([1, 49, 16, 16, 2])

    Args:
        name: ``"patchtree:nano"``, ``"patchtree:tiny"``, ``"patchtree:small"``, ``"patchtree:base"``; ``"timm:NAME"``,
            timm's ``"timm:hf-hub:ID"`` and ``"timm:local-dir:FOLDER"``; ``"hf:FOLDER"`` or ``"hf:ID"`` (transformers);
            ``"torchvision:NAME"``; ``"monai:NAME"``; ``"smp:ARCHITECTURE/ENCODER"`` (segmentation_models_pytorch).
            Networks that give every pixel's classes themselves are given the patches as a mosaic.
        labels: class names to ids, or their number, ``K``.
        channels: of the image, ``C``.
        patch_size: pixels on a side of a patch, ``p``.
        ndim: 2 for images, 3 for volumes.
        head: ``"reference"``, ``"linear"`` or ``"depths"``; None: the reference head.
        weights: a file of weights for the encoder (safetensors, or torch's without pickled code) with the library's
            names; a run's, with its head where that is of the same kind; ``"pretrained"`` for those that the library
            downloads; None: random ones, but those of the folder or id after ``hf:``.
        config: of a model of transformers or timm, instead of the folder's.

    Raises:
        InputError: the name is unknown, a package is missing, an argument does not suit the model, or the weights
            cannot be had or are not those of the model.
    """
    return build(
        name,
        labels,
        channels=channels,
        patch_size=patch_size,
        ndim=ndim,
        head=head,
        weights=weights,
        config=config,
    ).model


def build_classifier(
    name: str,
    labels: Mapping[str, int] | int,
    *,
    channels: int = 3,
    patch_size: int = 16,
    ndim: int = 2,
    weights: str | os.PathLike[str] | None = None,
    config: dict[str, Any] | None = None,
) -> Classifier:
    """Make a model that labels whole images, by name; arguments and errors as `build_model`'s.

    >>> import numpy as np
    >>> import patchtree as pt
    >>> tokens = pt.collate([pt.Patcher(budget=50)(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8))])
    >>> pt.build_classifier("patchtree:tiny", labels=2)(tokens).shape
    torch.Size([1, 2])
    """
    built = build(
        name,
        labels,
        channels=channels,
        patch_size=patch_size,
        ndim=ndim,
        weights=weights,
        config=config,
        classify=True,
    )
    assert isinstance(built.model, Classifier)
    return built.model


def build(
    name: str,
    labels: Mapping[str, int] | int,
    *,
    channels: int = 3,
    patch_size: int = 16,
    ndim: int = 2,
    head: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    config: dict[str, Any] | None = None,
    classify: bool = False,
) -> Built:
    """Make a model by name and say what it is; arguments as `build_model`'s, `classify` to label whole images.

    >>> build("patchtree:tiny", labels=2).config
    {'name': 'patchtree:tiny', 'channels': 3, 'patch_size': 16, 'ndim': 2, 'head': 'reference'}
    """
    labels = label_names(labels)
    if ndim not in (2, 3):
        raise InputError(f"ndim {ndim} is not possible; give 2 for images or 3 for volumes")
    if channels < 1 or patch_size < 1:
        raise InputError(
            f"{channels} channels and patches of {patch_size} pixels are not possible; give at least 1 of each"
        )
    weights = None if weights is None else os.fspath(weights)
    asked = Asked(name, len(labels), channels, patch_size, ndim, weights, config)
    original = find_builder(name)(asked)
    encoder = _through_door(original, name)
    chosen = None if original.logits or classify else head or "reference"
    if original.logits and classify:
        raise InputError(f"model {name} gives every pixel's classes, not the image's; choose a transformer, timm:NAME")
    if original.logits and ndim == 3:
        raise InputError(
            f"model {name} is given patches as a flat mosaic; for volumes choose a transformer or patchtree:SIZE"
        )
    if original.logits and head is not None:
        raise InputError(f"model {name} gives every pixel's classes itself; leave the head out")
    if classify:
        model: Segmenter = Classifier(encoder, labels)  # type: ignore[arg-type]
    else:
        own_head = None if chosen is None else build_head(chosen, encoder, len(labels), patch_size)  # type: ignore[arg-type]
        model = Segmenter(encoder, own_head, labels)
    for part, wanted in (("channels", channels), ("ndim", ndim)):
        if getattr(encoder, part, wanted) != wanted:
            raise InputError(f"model {name} is made for {part} {getattr(encoder, part)}, not {wanted}; choose another")
    trial = trial_tokens(channels, patch_size, ndim)
    needed = stages(encoder, trial)
    depths = stages(encoder, trial, pooled=True) if classify else needed
    loaded, absent = original.loaded, original.missing
    missing = [weight for weight in absent if f"model.{weight}" in needed]
    if missing:
        raise InputError(f"{loaded}: lacks {some(missing)}; get the whole model")
    norm, dtype = original.norm if loaded and channels == 3 else None, "uint8"
    if weights is not None and not asked.pretrained:
        path, origin = Path(weights), read_origin(weights)
        same = origin is None or origin.labels == labels
        last = _last_layer(asked, original)
        try:
            absent = load_into(original.model, path, set(needed), last, same)
        except InputError as error:
            raise InputError(f"{error} (these are of {origin.model})" if origin else str(error)) from error
        new = last & absent if model.head is None else load_head(model.head, path, same)
        if new and original.logits and origin is None:
            warnings.warn(f"{path}: {some(new)} ends in other classes and begins anew", stacklevel=3)
        loaded = weights if origin is None else f"{weights}, {_how_much(model, new)}"
        norm = original.norm if channels == 3 else None
        if origin is not None:
            norm, dtype = (origin.mean, origin.std) if len(origin.mean) == channels else None, origin.dtype
    if anew := [weight for weight in absent if f"model.{weight}" in depths]:
        warnings.warn(f"{loaded}: lacks {some(anew)}, which pools tokens and begins anew", stacklevel=3)
    again = {"name": name, "channels": channels, "patch_size": patch_size, "ndim": ndim, "head": chosen}
    if original.config is not None:
        again["config"] = original.config
    return Built(model, again, loaded, norm, dtype, depths)


def _last_layer(asked: Asked, original: Original) -> set[str]:
    """Name the weights of a model of logits that end in classes: those that one more class would make larger."""
    if not original.logits:
        return set()
    larger = find_builder(asked.name)(replace(asked, classes=asked.classes + 1)).model.state_dict()
    return {name for name, weight in original.model.state_dict().items() if weight.shape != larger[name].shape}


def _how_much(model: Segmenter, new: Set[str]) -> str:
    """Say what is taken over of a run's weights, but for those that are new."""
    if not new:
        return "all of it"
    whole_head = model.head is not None and len(new) == len(model.head.state_dict())
    return f"but for the {'head' if whole_head else 'last layer'}"


def pretrained(name: str, weights: str | os.PathLike[str] | None) -> bool:
    """Say whether a model will start from trained weights.

    >>> pretrained("timm:vit_small_patch16_224", None), pretrained("patchtree:tiny", "best.safetensors")
    (False, True)
    """
    library, _, rest = name.partition(":")
    return weights is not None or (library == "hf" and (not Path(rest).expanduser().is_dir() or has_weights(rest)))


def _through_door(original: Original, name: str) -> nn.Module:
    """Give tokens to a model."""
    if isinstance(original.model, MeshEncoder):
        return original.model
    try:
        if original.logits:
            from patchtree.models.mosaic import through_mosaic

            return through_mosaic(original.model)
        return adapt(original.model)
    except InputError as error:
        why, _, advice = str(error).rpartition("; ")
        if "through_mosaic" in advice:  # for those who have the module in hand
            advice = (
                "choose a transformer of plain patches, or a model of segmentation (smp:, torchvision:, monai:unet)"
            )
        raise InputError(f"model {name}: {why}; {advice}" if why else f"model {name}: {error}") from error
