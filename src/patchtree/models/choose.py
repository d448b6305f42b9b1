"""Models by name: "patchtree:tiny", "timm:NAME", "hf:FOLDER", "monai:NAME", "torchvision:NAME", "smp:NAME"."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from patchtree.errors import InputError
from patchtree.models.adapt import adapt, find_family
from patchtree.models.classifier import Classifier
from patchtree.models.heads import build_head
from patchtree.models.mesh import SIZES, MeshEncoder
from patchtree.models.segmenter import Segmenter, label_names
from patchtree.models.tuning import stages, trial_tokens
from patchtree.models.weights import cause, fit_channels, load_head, load_into, quiet_transformers, read_origin, some

PRETRAINED = "pretrained"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PACKAGES = {"hf": "transformers", "monai": "monai", "torchvision": "torchvision", "smp": "segmentation_models_pytorch"}
_PIP = {"smp": "segmentation-models-pytorch"}
_HF_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")

Norm = tuple[tuple[float, ...], tuple[float, ...]]


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


@dataclass(frozen=True)
class _Asked:
    """What a library's builder is asked for."""

    name: str
    classes: int
    channels: int
    patch_size: int
    ndim: int
    weights: str | None
    config: dict[str, Any] | None

    @property
    def pretrained(self) -> bool:
        return self.weights == PRETRAINED


@dataclass(frozen=True, eq=False)
class _Original:
    """What a library's builder gives: a model of tokens' features, or one of logits."""

    model: nn.Module
    logits: bool = False
    loaded: str = ""
    norm: Norm | None = None
    missing: frozenset[str] = frozenset()
    config: dict[str, Any] | None = None


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
            What is no known transformer is given the patches as a mosaic.
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
    asked = _Asked(name, len(labels), channels, patch_size, ndim, weights, config)
    original = _builder(name)(asked)
    encoder = _through_door(original, name)
    chosen = None if original.logits or classify else head or "reference"
    if original.logits and classify:
        raise InputError(f"model {name} gives every pixel's classes, not the image's; choose a transformer, timm:NAME")
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


def _last_layer(asked: _Asked, original: _Original) -> set[str]:
    """Name the weights of a model of logits that end in classes: those that one more class would make larger."""
    if not original.logits:
        return set()
    larger = _builder(asked.name)(replace(asked, classes=asked.classes + 1)).model.state_dict()
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
    return weights is not None or (library == "hf" and (not Path(rest).expanduser().is_dir() or _hf_weights(rest)))


def _builder(name: str) -> Callable[[_Asked], _Original]:
    library, colon, rest = name.partition(":")
    if library in _BUILDERS and rest:
        _import(library)
        return _BUILDERS[library]
    import timm

    hint = f"did you mean timm:{name}?" if not colon and timm.is_model(name) else ""
    if not hint and (near := get_close_matches(library, _BUILDERS, 1)) and rest:
        hint = f"did you mean {near[0]}:{rest}?"
    forms = "patchtree:SIZE, timm:NAME, hf:FOLDER, torchvision:NAME, monai:NAME or smp:NAME"
    raise InputError(f"model {name!r} is unknown; {hint or f'give {forms}'}")


def _import(library: str) -> Any:
    if library not in _PACKAGES:
        return None
    try:
        return import_module(_PACKAGES[library])
    except ImportError as error:
        package = _PIP.get(library, _PACKAGES[library])
        raise InputError(f"models of {library} need the package {package}; run: pip install {package}") from error


def _through_door(original: _Original, name: str) -> nn.Module:
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


def _patchtree(asked: _Asked) -> _Original:
    _, _, size = asked.name.partition(":")
    if size not in SIZES:
        raise _unknown(asked.name, SIZES)
    if asked.pretrained:
        raise InputError(f"model {asked.name} comes without trained weights; give a file of weights, or none")
    return _Original(MeshEncoder(size, asked.channels, asked.patch_size, asked.ndim))


def _timm(asked: _Asked) -> _Original:
    import timm

    _, _, rest = asked.name.partition(":")
    source, colon, place = rest.partition(":")
    own = asked.config if colon else None
    if not colon:
        if not timm.is_model(rest):
            raise _unknown(asked.name, timm.list_models())
    elif source not in ("hf-hub", "local-dir"):
        raise InputError(
            f"model {asked.name!r} is unknown; give timm:NAME, timm:hf-hub:OWNER/NAME or timm:local-dir:PATH"
        )
    elif own is None:
        hub: Any = import_module("timm.models._hub")
        read = hub.load_model_config_from_hf if source == "hf-hub" else hub.load_model_config_from_path
        with _downloading(asked):
            _, architecture, args = read(place)
        args = {name: value for name, value in (args or {}).items() if name not in ("num_classes", "in_chans")}
        own = {"architecture": architecture, "model_args": args}
    else:
        rest = own["architecture"]
    args = own["model_args"] if own else {}
    with _downloading(asked):
        model = timm.create_model(rest, pretrained=asked.pretrained, num_classes=0, in_chans=asked.channels, **args)
    cfg: Any = model.pretrained_cfg
    loaded = f"timm ({place or cfg.get('hf_hub_id') or cfg.get('url')})" if asked.pretrained else ""
    return _Original(model, loaded=loaded, norm=(tuple(cfg["mean"]), tuple(cfg["std"])), config=own)


def _hf(asked: _Asked) -> _Original:
    transformers: Any = import_module("transformers")
    processors: Any = import_module("transformers.models.auto.image_processing_auto")
    _, _, rest = asked.name.partition(":")
    if asked.config is not None:
        config = transformers.AutoConfig.for_model(**asked.config)
        kind, logits = _hf_kind(transformers, config)
        return _Original(kind(config), logits, config=asked.config)
    rest = os.path.expanduser(rest)
    folder = Path(rest).is_dir()
    if not folder and (rest.count("/") != 1 or rest.startswith((".", "/", "~"))):
        raise InputError(f"model {asked.name}: no such folder; give one with a config.json, or an id on the hub")
    with _downloading(asked), quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(rest)
        # Of a pair of towers the one that sees.
        config = getattr(config, "vision_config", config)
        kind, logits = _hf_kind(transformers, config)
        channels = getattr(config, "num_channels", asked.channels)
        if logits:
            config.num_labels = asked.classes
        random = asked.weights not in (None, PRETRAINED) or (folder and not _hf_weights(rest))
        if random:
            config.num_channels = asked.channels
            model = kind(config)
        else:
            model, info = kind.from_pretrained(
                rest, config=config, ignore_mismatched_sizes=logits, output_loading_info=True
            )
            processor = processors.get_image_processor_config(rest)
    if random:
        if asked.weights is None:
            warnings.warn(f"{rest}: holds no weights; the model starts from random ones", stacklevel=4)
        return _Original(model, logits, norm=_IMAGENET, config=json.loads(config.to_json_string(use_diff=False)))
    if channels != asked.channels:
        state = model.state_dict()
        config.num_channels = asked.channels
        model = kind(config)
        model.load_state_dict(fit_channels(state, model.state_dict(), asked.name))
    anew = {name for name, *_ in info["mismatched_keys"]} | set(info["missing_keys"])
    if logits and anew:
        warnings.warn(f"{rest}: {some(anew)} is not for these classes and begins anew", stacklevel=4)
    mean, std = (tuple(processor.get(f"image_{key}", own)) for key, own in zip(("mean", "std"), _IMAGENET, strict=True))
    return _Original(
        model.float().train(),  # from_pretrained leaves it in eval
        logits,
        loaded=rest,
        norm=(mean, std),
        missing=frozenset(anew),
        config=json.loads(config.to_json_string(use_diff=False)),
    )


def _hf_kind(transformers: Any, config: Any) -> tuple[Any, bool]:
    """Choose the class for a description, and say whether it gives logits: what no family knows goes as a mosaic."""
    plain, semantic = (
        auto._model_mapping.get(type(config), None)
        for auto in (transformers.AutoModel, transformers.AutoModelForSemanticSegmentation)
    )
    if semantic is not None and not (plain and find_family(plain)):
        return semantic, True
    if plain is None:
        raise InputError(f"transformers has no model of images for {type(config).__name__}; give another")
    return plain, False


def _hf_weights(folder: str) -> bool:
    return any(next(Path(folder).expanduser().glob(pattern), None) for pattern in _HF_WEIGHTS)


def _torchvision(asked: _Asked) -> _Original:
    models: Any = import_module("torchvision.models")
    _, _, rest = asked.name.partition(":")
    known = models.list_models()
    if rest not in known:
        raise _unknown(asked.name, known)
    logits = rest in models.list_models(models.segmentation)
    source = "DEFAULT" if asked.pretrained else None
    with _downloading(asked):
        if logits:
            model = models.get_model(rest, weights=None, weights_backbone=source, num_classes=asked.classes)
        else:
            model = models.get_model(rest, weights=source)
    if asked.channels != 3:
        _set_channels(model, asked.channels, asked.pretrained)
    loaded = f"torchvision ({rest})" if asked.pretrained else ""
    return _Original(model, logits, loaded, _IMAGENET)


def _monai(asked: _Asked) -> _Original:
    nets: Any = import_module("monai.networks.nets")
    _, _, rest = asked.name.partition(":")
    c, k, d = asked.channels, asked.classes, asked.ndim
    side = (224,) * 2 if d == 2 else (96,) * 3
    vit = {"in_channels": c, "img_size": side, "spatial_dims": d}
    makers: dict[str, tuple[Callable[[], nn.Module], bool]] = {
        "vit": (lambda: nets.ViT(patch_size=(16,) * d, **vit), False),
        "unetr": (lambda: nets.UNETR(out_channels=k, **vit), False),
        "vitautoenc": (lambda: nets.ViTAutoEnc(patch_size=(16,) * d, **vit), False),
        "unet": (
            lambda: nets.UNet(d, c, k, channels=(32, 64, 128, 256, 512), strides=(2, 2, 2, 2), num_res_units=2),
            True,
        ),
        "swinunetr": (lambda: nets.SwinUNETR(c, k, feature_size=24, spatial_dims=d), True),
        "segresnet": (lambda: nets.SegResNet(d, init_filters=16, in_channels=c, out_channels=k), True),
    }
    if rest not in makers:
        raise _unknown(asked.name, makers)
    if asked.pretrained:
        raise InputError(f"model {asked.name} comes without trained weights; give a file of weights, or none")
    make, logits = makers[rest]
    model: Any = make()
    if hasattr(getattr(model, "vit", model), "patch_embedding"):
        model.img_size = side  # MONAI's ViT does not keep it, and `adapt` needs it
    return _Original(model, logits)


def _smp(asked: _Asked) -> _Original:
    smp = _import("smp")
    _, _, rest = asked.name.partition(":")
    architecture, _, backbone = rest.partition("/")
    known = smp.MODEL_ARCHITECTURES_MAPPING
    if architecture not in known:
        raise _unknown(asked.name, known)
    backbones = smp.encoders.get_encoder_names()
    if backbone and backbone not in backbones and not backbone.startswith("tu-"):
        raise _unknown(f"smp:{architecture}/{backbone}", [f"{architecture}/{name}" for name in backbones])
    with _downloading(asked):
        model = smp.create_model(
            architecture,
            encoder_name=backbone or "resnet34",
            encoder_weights="imagenet" if asked.pretrained else None,
            in_channels=asked.channels,
            classes=asked.classes,
        )
    return _Original(model, True, "smp (ImageNet)" if asked.pretrained else "", _IMAGENET)


_BUILDERS: dict[str, Callable[[_Asked], _Original]] = {
    "patchtree": _patchtree,
    "timm": _timm,
    "hf": _hf,
    "torchvision": _torchvision,
    "monai": _monai,
    "smp": _smp,
}


def _unknown(name: str, known: Iterable[str]) -> InputError:
    """Say that a library has no such model, and which come near."""
    library, _, rest = name.partition(":")
    known = list(known)
    near = get_close_matches(rest, known, 3, 0.5) or (known if len(known) < 10 else [])
    hint = f"near it: {', '.join(f'{library}:{one}' for one in near)}" if near else "look at the library's own list"
    return InputError(f"model {name!r} is unknown; {hint}")


@contextmanager
def _downloading(asked: _Asked) -> Iterator[None]:
    """Tell in one line that a library could not get what it needs, and not at each of its attempts."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # libraries throw what their own libraries throw
        if asked.pretrained:
            advice = "give --weights FILE, or go online"
        else:
            advice = "give a folder that is there and whole" if asked.name.startswith("hf:") else "choose another"
        raise InputError(f"model {asked.name} cannot be had ({cause(error)}); {advice}") from error
    finally:
        hub.setLevel(level)


def _set_channels(model: nn.Module, channels: int, trained: bool) -> None:
    """Replace a model's first convolution by one of another number of channels."""
    name, old = next((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    if trained:
        new.load_state_dict(fit_channels(old.state_dict(), new.state_dict(), name))
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, new)
