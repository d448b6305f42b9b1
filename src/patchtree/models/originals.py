"""What a library gives for a model's name: its own model, with weights if they are asked for, not yet adapted."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from patchtree.errors import InputError
from patchtree.models.adapt import find_family
from patchtree.models.mesh import SIZES, MeshEncoder
from patchtree.models.weights import cause, fit_channels, quiet_transformers, some

_PRETRAINED = "pretrained"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PACKAGES = {"hf": "transformers", "monai": "monai", "torchvision": "torchvision", "smp": "segmentation_models_pytorch"}
_PIP = {"smp": "segmentation-models-pytorch"}
_HF_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")

Norm = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Asked:
    """What a library's builder is asked for.

    Attributes:
        name: of the model, the library's included.
        classes: that every pixel has one of; no other model than one of logits minds.
        channels: of the image.
        patch_size: pixels on a side of a patch.
        ndim: 2 for images, 3 for volumes.
        weights: a file, or ``"pretrained"``; None: random ones.
        config: that an earlier call gave as `Original.config`; None: the library is asked.
    """

    name: str
    classes: int
    channels: int
    patch_size: int
    ndim: int
    weights: str | None
    config: dict[str, Any] | None

    @property
    def pretrained(self) -> bool:
        """Whether the library's own trained weights are asked for."""
        return self.weights == _PRETRAINED


@dataclass(frozen=True, eq=False)
class Original:
    """What a library's builder gives: a model of tokens' features, or one of logits.

    Attributes:
        model: the library's own.
        logits: it gives every pixel's classes.
        loaded: where its weights are from; empty if they are random.
        norm: mean and standard deviation of each channel that trained weights expect.
        missing: names of weights that were not where the others are from.
        config: what builds it again without the network and without files; None: its name does.
    """

    model: nn.Module
    logits: bool = False
    loaded: str = ""
    norm: Norm | None = None
    missing: frozenset[str] = frozenset()
    config: dict[str, Any] | None = None


def find_builder(name: str) -> Callable[[Asked], Original]:
    """Give what makes models of the library that a name begins with.

    Raises:
        InputError: there is no such library, or its package is not here.
    """
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


def _patchtree(asked: Asked) -> Original:
    _, _, size = asked.name.partition(":")
    if size not in SIZES:
        raise _unknown(asked.name, SIZES)
    if asked.pretrained:
        raise InputError(f"model {asked.name} comes without trained weights; give a file of weights, or none")
    return Original(MeshEncoder(size, asked.channels, asked.patch_size, asked.ndim))


def _timm(asked: Asked) -> Original:
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
    return Original(model, loaded=loaded, norm=(tuple(cfg["mean"]), tuple(cfg["std"])), config=own)


def _hf(asked: Asked) -> Original:
    transformers: Any = import_module("transformers")
    processors: Any = import_module("transformers.models.auto.image_processing_auto")
    _, _, rest = asked.name.partition(":")
    if asked.config is not None:
        config = transformers.AutoConfig.for_model(**asked.config)
        kind, logits = _hf_kind(transformers, config)
        return Original(kind(config), logits, config=asked.config)
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
        random = asked.weights not in (None, _PRETRAINED) or (folder and not has_weights(rest))
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
        return Original(model, logits, norm=_IMAGENET, config=json.loads(config.to_json_string(use_diff=False)))
    if channels != asked.channels:
        state = model.state_dict()
        config.num_channels = asked.channels
        model = kind(config)
        model.load_state_dict(fit_channels(state, model.state_dict(), asked.name))
    anew = {name for name, *_ in info["mismatched_keys"]} | set(info["missing_keys"])
    if logits and anew:
        warnings.warn(f"{rest}: {some(anew)} is not for these classes and begins anew", stacklevel=4)
    mean, std = (tuple(processor.get(f"image_{key}", own)) for key, own in zip(("mean", "std"), _IMAGENET, strict=True))
    return Original(
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


def has_weights(folder: str) -> bool:
    """Whether a folder holds trained weights."""
    return any(next(Path(folder).expanduser().glob(pattern), None) for pattern in _HF_WEIGHTS)


def _torchvision(asked: Asked) -> Original:
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
    return Original(model, logits, loaded, _IMAGENET)


def _monai(asked: Asked) -> Original:
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
    return Original(model, logits)


def _smp(asked: Asked) -> Original:
    smp = _import("smp")
    _, _, rest = asked.name.partition(":")
    architecture, _, backbone = rest.partition("/")
    known = smp.MODEL_ARCHITECTURES_MAPPING
    if architecture not in known:
        raise _unknown(f"smp:{architecture}", known)
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
    return Original(model, True, "smp (ImageNet)" if asked.pretrained else "", _IMAGENET)


_BUILDERS: dict[str, Callable[[Asked], Original]] = {
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
    spelled = {one.lower(): one for one in known}
    near = [spelled[one] for one in get_close_matches(rest.lower(), spelled, 3, 0.5)] or (
        known if len(known) < 10 else []
    )
    hint = f"near it: {', '.join(f'{library}:{one}' for one in near)}" if near else "look at the library's own list"
    return InputError(f"model {name!r} is unknown; {hint}")


@contextmanager
def _downloading(asked: Asked) -> Iterator[None]:
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
