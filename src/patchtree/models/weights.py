"""Weights from files: read without running code, fitted to a model, refused where they are those of another."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from patchtree.errors import InputError

_CLASSIFIER = ("head.", "heads.", "head_dist.", "fc.", "classifier.", "norm_head.", "pre_logits.")
# Parts of a checkpoint beside its encoder of images: heads, decoders, what pre-training masks with, towers of text.
_BESIDE = re.compile(
    r"(^|\.)(\w*head\w*|\w*classifier|fc|fc_norm|pre_logits|pooler|decode\w*|conv3d_transpose\w*|mask_token"
    r"|text\w*|\w+_projection|logit_\w+)(\.|$)"
)
_NESTED = ("state_dict", "model")
_ORIGIN = "run"


@dataclass(frozen=True)
class Origin:
    """What a run's weights were trained on.

    Attributes:
        model: its name, in words with patch size and channels.
        labels: class names to ids.
        mean: of each channel.
        std: of each channel.
        dtype: type of the images' pixels.
        name: the model's, as `build_model` takes it; empty in weights of before.
        patch_size: pixels on a side of a patch; 0 in weights of before.
    """

    model: str
    labels: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    name: str = ""
    patch_size: int = 0

    def to_metadata(self) -> dict[str, str]:
        """Write it as metadata of a file of weights."""
        return {_ORIGIN: json.dumps(asdict(self))}


def read_origin(path: str | os.PathLike[str]) -> Origin | None:
    """Read what `Origin.to_metadata` wrote into a file of weights; None: they are not a run's.

    Raises:
        InputError: the file is missing or damaged.
    """
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(_ORIGIN)
            values = None if about is None else json.loads(about)
            return values and Origin(**values | {name: tuple(values[name]) for name in ("mean", "std")})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as weights ({error}); copy the file again") from error


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a file of weights: safetensors, or torch's; no pickled code is run.

    Raises:
        InputError: the file is missing, damaged, holds more than tensors and plain values, or no weights.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give --weights a file in it")
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights; check --weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load throws anything, from EOFError to UnpicklingError, at a damaged file
        if isinstance(error, UnpicklingError) and "Unsupported global" in str(error):
            raise InputError(f"{path}: holds pickled code, which is not run; save the model's state_dict()") from error
        raise InputError(
            f"{path}: cannot be read as weights ({cause(error)}); give safetensors or a torch file"
        ) from error
    for name in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path}: holds no weights by name; give what state_dict() gives")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def load_into(model: nn.Module, path: Path, used: set[str], last: set[str], same_classes: bool) -> frozenset[str]:
    """Load a file of weights into an original, and name those it lacks.

    Args:
        model: the original.
        path: the file.
        used: weights that must be there, after ``model.``.
        last: weights that end in classes; they begin anew where their number is another.
        same_classes: False if the file's classes are others, whatever their number.

    Raises:
        InputError: see `read_weights`; or the weights are those of another model.
    """
    wanted = model.state_dict()
    state = fit_channels(_without_prefix(read_weights(path), wanted), wanted, path)
    strange = _strange(state, wanted)
    if strange or any(name not in state or state[name].shape != value.shape for name, value in wanted.items()):
        state = _renamed(model, state)
        strange = _strange(state, wanted)
    shapes = [
        (name, tuple(state[name].shape), tuple(value.shape))
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    anew = last & ({name for name, *_ in shapes} if same_classes else state.keys())
    shapes = [shape for shape in shapes if shape[0] not in anew]
    state = {name: value for name, value in state.items() if name not in anew}
    if shapes:
        name, own, target = shapes[0]
        raise InputError(f"{path}: {name} is {own}, the model's is {target}; give weights of this very model")
    needed = {name.removeprefix("model.") for name in used} if used else set(wanted)
    missing = sorted((needed & wanted.keys()) - state.keys() - anew)
    if missing:
        raise InputError(f"{path}: lacks {some(missing)} of {len(wanted)} weights; give weights of this very model")
    if strange:
        raise InputError(f"{path}: the model lacks {some(strange)}; give its own weights, or name the model of these")
    unknown = sorted(name for name in state.keys() - wanted.keys() if not name.startswith(_CLASSIFIER))
    if unknown:
        warnings.warn(f"{path}: {some(unknown)} is of no use to the model and left out", stacklevel=4)
    model.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)
    return frozenset(wanted.keys() - state.keys())


def load_head(head: nn.Module, path: Path, same_classes: bool) -> frozenset[str]:
    """Load the head of a run's weights into one of the same kind, and name the weights that it leaves as they are.

    Those are the last layer's, which ends in classes, where the classes are others; and all of a head of another kind.
    """
    state = read_weights(path)
    own = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    wanted = head.state_dict()
    alike = {name for name, value in wanted.items() if name in own and own[name].shape == value.shape}
    last = {name for name in wanted if "classify" in name.split(".")}
    if not alike >= wanted.keys() - last:
        return frozenset(wanted)
    loaded = alike if same_classes else alike - last
    head.load_state_dict({name: own[name] for name in loaded}, strict=False)
    return frozenset(wanted.keys() - loaded)


def fit_channels(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Make kernels for three channels kernels for another number: their sum for one, else their repetition.

    Source: timm's `adapt_input_conv`.
    """
    fitted = dict(state)
    for name, value in state.items():
        target = wanted.get(name)
        if target is None or target.shape == value.shape or value.ndim < 4 or target.ndim != value.ndim:
            continue
        channels = target.shape[1]
        if value.shape[1] == 3 and value.shape[:1] + value.shape[2:] == target.shape[:1] + target.shape[2:]:
            warnings.warn(f"{source}: {name} is made for 3 channels and is used for {channels}", stacklevel=5)
            repeated = value.repeat(1, -(-channels // 3), *[1] * (value.ndim - 2))[:, :channels] * (3 / channels)
            fitted[name] = value.sum(1, keepdim=True) if channels == 1 else repeated
    return fitted


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep in reports on loading, which are told here where they matter."""
    told: Any = import_module("transformers.utils.logging")
    level, bar = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bar:
            told.enable_progress_bar()


def _strange(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Name what a model that lacks it would lose: all but heads and the like, and tables of indices.

    >>> one = torch.zeros(1)
    >>> _strange({"blocks.0.ls1.gamma": one, "blocks.1.w": one, "head.0.w": one}, {"blocks.0.w": one})
    ['blocks.0.ls1.gamma', 'blocks.1.w']
    """
    rows = {name[: found.start() + 1] for name in wanted if (found := re.search(r"\.\d+\.", name))}
    return sorted(
        name
        for name in state.keys() - wanted.keys()
        if state[name].is_floating_point() and (name.startswith(tuple(rows)) or not _BESIDE.search(name))
    )


def _without_prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what stands before all names, such as ``module.`` or, in a run's weights, ``encoder.model.``."""
    ends = {name: f".{name}" for name in wanted}
    prefixes = {""} | {key[: -len(name)] for key in state for name, end in ends.items() if key.endswith(end)}
    best = max(sorted(prefixes), key=lambda prefix: sum(prefix + name in state for name in wanted))
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best) or best == ""}


def _renamed(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let the library bring names and grids of the checkpoints that it knows to the model's own."""
    try:
        if hasattr(model, "from_pretrained"):
            with quiet_transformers():
                other, info = type(model).from_pretrained(  # type: ignore[attr-defined]
                    None,
                    config=model.config,
                    state_dict=dict(state),
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
            found = {name: value for name, value in other.state_dict().items() if name not in info["missing_keys"]}
            wrong = {name: torch.empty(shape, device="meta") for name, shape, _ in info["mismatched_keys"]}
            return found | wrong | {name: state[name] for name in info["unexpected_keys"] if name in state}
        rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        return state if rename is None else dict(rename(dict(state), model))
    except Exception:  # weights of something else, which is told with its names
        return state


def cause(error: Exception) -> str:
    """Give the first sentence of what went wrong, or its kind where there are no words.

    >>> cause(ValueError("No such thing. Try another.")), cause(KeyError(101))
    ('No such thing', 'KeyError')
    """
    words = str(error).strip().split("\n")[0].split(". ")[0]
    return words if " " in words else type(error).__name__


def some(names: Iterable[str]) -> str:
    """Name the first of several.

    >>> some(["b", "a", "c"])
    'a and 2 more'
    """
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first
