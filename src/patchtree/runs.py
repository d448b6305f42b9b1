"""The run folder: all that prediction needs of a training, and where it is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchtree.budget import LEAST, with_budget
from patchtree.errors import InputError
from patchtree.files import replacing
from patchtree.patcher import Patcher

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 4
# Tasks, and by which score their best weights are chosen.
SCORES = {"segment": "dice", "classify": "balanced accuracy", "pretrain": "explained variance"}
CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
CHECKPOINT = "last.ckpt"
METRICS = "metrics.csv"
LOGS = "logs"
CACHE = "patchtree-cache"


@dataclass(frozen=True)
class RunConfig:
    """What a run is: how images become tokens, which model reads them, and what its classes mean.

    Attributes:
        labels: class name to id, in the order of ids.
        channels: channels of the images, ``C``.
        mean: ``C`` numbers, the mean of each channel, as `patchtree.collate` takes it.
        std: ``C`` numbers, as `mean`.
        patcher: what `Patcher.to_dict` gave; the budget is chosen anew for each image.
        density: tokens a pixel that was trained with.
        model: the arguments of `build_model` that make the model again, but for the labels.
        task: ``"segment"``, every pixel has a class, ``"classify"``, every image, or ``"pretrain"``, nothing has: the
            "labels" are then channels.
        ignore: id of pixels without a label, or None.
        dtype: type of the images' pixels, such as ``"uint8"``; empty if it is not known.
        least: smallest budget of an image.
        most: largest budget of an image.
        window: side of the training windows in pixels.
        reach: leaves that attention is among when whole images are predicted, see `MeshEncoder`; 0: all.
        mpp: micrometres along a pixel of the slides trained on, their median; None if it is not known.
        max_time: seconds that it is trained for, or None.
        max_epochs: epochs that it is trained for, or None.
        train: names of the images trained on.
        val: names of the images validated on.
        options: of the training.
        versions: of Python and the libraries that made the run.
        format: version of the folder's format.
    """

    labels: dict[str, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patcher: dict[str, Any]
    density: float
    model: dict[str, Any]
    task: str = "segment"
    ignore: int | None = None
    dtype: str = ""
    least: int = LEAST
    most: int = 65536
    window: int = 1024
    reach: int = 0
    mpp: float | None = None
    max_time: float | None = None
    max_epochs: int | None = None
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def ndim(self) -> int:
        """Give the number of spatial axes: 2 of images, 3 of volumes."""
        return int(self.patcher["ndim"])

    @property
    def kind(self) -> str:
        """Give what the run was trained on in a word, slides being images."""
        return "volume" if self.ndim == 3 else "image"

    def patcher_for(self, shape: tuple[int, ...]) -> Patcher:
        """Make the patcher of a whole image, its budget in proportion to the area.

        >>> config = RunConfig({"background": 0}, 1, (0,), (1,), Patcher().to_dict(), density=1 / 4096, model={})
        >>> config.patcher_for((2048, 2048)).budget
        1024

        Args:
            shape: ``(H, W)`` in pixels, or ``(D, H, W)``.
        """
        return with_budget(Patcher.from_dict(self.patcher), shape, self.density, self.least, self.most)


def save_config(run: str | os.PathLike[str], config: RunConfig) -> None:
    """Write ``config.json`` into a run folder, which is made if it does not exist.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    try:
        Path(run).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{run}: cannot be made ({error.strerror}); choose another folder for the run") from error
    with replacing(Path(run) / CONFIG) as temporary:
        temporary.write_text(json.dumps(asdict(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_config(run: str | os.PathLike[str]) -> RunConfig:
    """Read ``config.json`` from a run folder.

    Raises:
        InputError: the folder or the file is missing or damaged, or comes from another version of patchtree.
    """
    path = _find(run, CONFIG)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the run folder again") from error
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise InputError(f"{path}: is not the description of a run; name a folder that `patchtree train` wrote")
    if values["format"] > FORMAT:
        raise InputError(f"{path}: has format {values['format']}, newer than {FORMAT}; update patchtree")
    if values["format"] < FORMAT:
        raise InputError(f"{path}: has format {values['format']}, of an older patchtree; train again")
    known = {item.name for item in fields(RunConfig)}
    try:
        config = RunConfig(**{key: _tuple(value) for key, value in values.items() if key in known})
        Patcher.from_dict(config.patcher)
        whole = (
            config.density > 0
            and len(config.labels) > 0
            and len(config.mean) == len(config.std) == config.channels == config.model.get("channels", config.channels)
            and isinstance(config.model["name"], str)
            and config.task in SCORES
        )
        if not whole:
            raise ValueError("its labels, channels, normalisation and model do not fit each other")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); copy the run folder again, or train again") from error
    return config


def save_weights(run: str | os.PathLike[str], weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``weights.safetensors`` into a run folder, with a few words on where the weights come from.

    Raises:
        InputError: the file cannot be written.
    """
    from safetensors.torch import save

    # Bytes written by Python tell a full disk by its errno; the library's own writer does not.
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, dict(metadata))
    with replacing(Path(run) / WEIGHTS) as temporary:
        temporary.write_bytes(data)


def load_weights(run: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read ``weights.safetensors`` from a run folder; no pickle is involved.

    Args:
        run: the folder.
        shapes: name and shape of each weight of the model.

    Raises:
        InputError: the file is missing, damaged, or its weights are not those of the model.
    """
    from safetensors import SafetensorError, safe_open

    path = _find(run, WEIGHTS)
    try:
        with safe_open(path, framework="pt") as file:
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the run folder again") from error
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            raise InputError(
                f"{path}: {name} is {found.get(name, 'missing')}, the model in {CONFIG} has "
                f"{shapes.get(name, 'no such weight')}; the two come from different runs"
            )
    return weights


def weights_metadata(run: str | os.PathLike[str]) -> dict[str, str]:
    """Read the words that `save_weights` wrote, without the weights.

    Raises:
        InputError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = _find(run, WEIGHTS)
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the run folder again") from error


def load_checkpoint(out: Path) -> dict[str, Any] | None:
    """Read ``last.ckpt``, tensors and plain values only; None if there is none yet.

    Raises:
        InputError: the file is damaged.
    """
    import torch

    path = out / CHECKPOINT
    if not path.exists():
        return None
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        checkpoint["callbacks"]["Course"], checkpoint["global_step"]
    except Exception as error:  # torch.load throws anything, from EOFError to UnpicklingError, at a damaged file
        cause = str(error).split(". ")[0].split("\n")[0]
        raise InputError(f"{path}: cannot be read ({cause}); remove it to train from the start") from error
    return checkpoint


def check_free(out: Path, resume: bool) -> None:
    """Refuse a folder in which a run that begins would overwrite what is not its own, or weights that are trained.

    Raises:
        InputError: it would.
    """
    if not resume and any((out / name).exists() for name in (CHECKPOINT, WEIGHTS)):
        raise InputError(f"{out}: holds a run already; resume it (--resume), or choose another folder")
    metrics = (out / METRICS).read_text(encoding="utf-8", errors="replace") if (out / METRICS).exists() else ""
    # Those of the first validation are written a step before the first checkpoint.
    if (out / WEIGHTS).exists() and metrics.count("\n") > 2:
        raise InputError(
            f"{out / CHECKPOINT}: is missing, and the training cannot go on without it; "
            f"choose another --out and give --weights {out / WEIGHTS}"
        )
    if metrics or (out / CONFIG).exists():
        try:
            load_config(out)
        except InputError as error:
            raise InputError(f"{error}; or choose another folder for the run") from error


@contextmanager
def nothing_left(out: Path) -> Iterator[None]:
    """Leave no folder of a new run whose images are refused."""
    try:
        yield
    except InputError:
        if not (out / CONFIG).exists():
            shutil.rmtree(out / CACHE, ignore_errors=True)
            with suppress(OSError):
                out.rmdir()
        raise


def best_fraction(about: Mapping[str, str]) -> float:
    """Give with which fraction of the density weights predict best, by what `weights_metadata` says of them.

    >>> best_fraction({"fraction": "0.5"}), best_fraction({})
    (0.5, 1.0)
    """
    return float(about.get("fraction", 1))


def _find(run: str | os.PathLike[str], name: str) -> Path:
    folder = Path(run)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; name one that `patchtree train` wrote")
    if not (folder / name).is_file():
        hint = "let the training run until its first validation" if name == WEIGHTS else "copy the run folder again"
        raise InputError(f"{folder}: is no complete run, {name} is missing; {hint}")
    return folder / name


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
