"""A dense network trained the usual way: on balanced crops, then slid over the whole image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from monai.inferers.inferer import SlidingWindowInferer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from patchtree.augment import Window, take, vary_colours, vary_window
from patchtree.cache import Cached
from patchtree.losses import segmentation_loss
from patchtree.models.precision import HALF, choose_precision
from patchtree.patcher import Patcher
from patchtree.windows import Windows

_IGNORED = -1
_FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0}


@dataclass(frozen=True)
class Settings:
    """How a network is trained and slid.

    Attributes:
        scale: of the network's input; 0.5 halves the image's sides.
        crop: side of a crop in pixels of the network's input.
        batch_size: crops a step.
        lr: highest learning rate.
        course: how the weights are taught, see `COURSES`.
        foreground: share of crops that show a rare class.
        overlap: of the sliding windows, blended by a Gaussian.
        seed: of everything random.
        workers: processes that make crops.
    """

    scale: float = 1.0
    crop: int = 256
    batch_size: int = 8
    lr: float = 1e-3
    course: str = "adamw"
    foreground: float = 0.5
    overlap: float = 0.25
    seed: int = 0
    workers: int = 1


@dataclass(frozen=True)
class Course:
    """How weights are taught.

    Attributes:
        optimiser: parameters and the highest learning rate -> optimiser.
        rate: share of the time that has passed -> learning rate, times the highest.
        clip: largest norm of the gradient.
    """

    optimiser: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    rate: Callable[[float], float]
    clip: float


def warmed_cosine(done: float) -> float:
    return min(1.0, done / 0.05 + 0.01) * (1 + math.cos(math.pi * done)) / 2


def polynomial(done: float) -> float:
    return float((1 - done) ** 0.9)


COURSES = {
    "adamw": Course(torch.optim.AdamW, warmed_cosine, clip=1.0),
    # nnU-Net's.
    "sgd": Course(partial(torch.optim.SGD, momentum=0.99, nesterov=True, weight_decay=3e-5), polynomial, clip=12.0),
}


@dataclass(frozen=True, eq=False)
class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops, drawn and augmented as patchtree's windows are; an endless supply.

    Each is an image ``(C, s, s)``, normalised by the mean and deviation of the whole image it is from, and ids
    ``(s, s)``, -1 where there is no label.
    """

    windows: Windows
    settings: Settings

    @classmethod
    def of(cls, images: Sequence[Cached], classes: int, ignore: int | None, settings: Settings) -> Crops:
        side = round(settings.crop / settings.scale)
        windows = Windows(
            tuple(images), classes, Patcher(), ignore, side, foreground=settings.foreground, seed=settings.seed
        )
        return cls(windows, settings)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.settings.seed, index))
        source, corner, shape = self.windows.draw(rng)
        window = vary_window(Window.of(corner, shape), rng)
        image, ids = vary_colours(take(source.image(), window), rng), take(source.mask(), window, ids=True)
        mean, square = np.array(source.mean), np.array(source.square)
        image = resize(normalise(image, mean, np.sqrt(np.maximum(square - mean**2, 0))), self.settings.scale)
        target = ids.astype(np.int16)
        if self.windows.ignore is not None:
            target[ids == self.windows.ignore] = _IGNORED
        target = np.asarray(cv2.resize(target, image.shape[1::-1], interpolation=cv2.INTER_NEAREST), np.int16)
        below, right = (max(0, self.settings.crop - side) for side in target.shape)
        image = np.pad(image, ((0, below), (0, right), (0, 0)))
        target = np.pad(target, ((0, below), (0, right)), constant_values=_IGNORED)
        return torch.from_numpy(image).movedim(-1, 0).contiguous(), torch.from_numpy(target.astype(np.int64))


def normalise(image: NDArray[Any], mean: NDArray[Any], std: NDArray[Any]) -> NDArray[np.float32]:
    """Bring an image ``(H, W)`` or ``(H, W, C)`` to mean 0 and deviation 1, ``(H, W, C)``."""
    values = np.atleast_3d(image).astype(np.float32) / np.float32(_FULL_SCALE.get(image.dtype.name, 1.0))
    return np.asarray((values - mean.astype(np.float32)) / np.maximum(std, 1e-6).astype(np.float32))


def resize(image: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Scale an image ``(H, W, C)`` by the mean of the pixels that come together."""
    if scale == 1:
        return image
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return np.atleast_3d(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def train(network: nn.Module, crops: Crops, seconds: float, device: torch.device) -> int:
    """Train for a time, in bfloat16 where patchtree would; give the number of steps, 0 if there is no time."""
    settings, begin = crops.settings, time.monotonic()
    course = COURSES[settings.course]
    # A sampler of plain numbers, and far more of them than there is time for.
    loader = DataLoader(crops, settings.batch_size, sampler=range(1 << 40), num_workers=settings.workers)
    optimiser = course.optimiser(network.parameters(), settings.lr)
    network.train().to(device)
    half = choose_precision("gpu" if device.type == "cuda" else "cpu") == HALF
    steps = 0
    for images, target in loader:
        passed = time.monotonic() - begin
        if passed >= seconds:
            break
        done = passed / seconds
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * course.rate(done)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = network(images.to(device))
        loss = supervise(logits, target.to(device))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), course.clip)
        optimiser.step()
        steps += 1
    return steps


def supervise(logits: Tensor, target: Tensor) -> Tensor:
    """Give the loss of logits ``(B, K, H, W)``, or of several such, ``(B, n, K, H, W)``, each half the one before."""
    outputs = logits.unbind(1) if logits.ndim == 5 else (logits,)
    weights = [0.5**at for at in range(len(outputs))]
    counts = one_hot(target, outputs[0].shape[1])
    losses = [
        weight * segmentation_loss(output.movedim(1, -1), counts)
        for weight, output in zip(weights, outputs, strict=True)
    ]
    return torch.stack(losses).sum() / sum(weights)


def one_hot(target: Tensor, classes: int) -> Tensor:
    """Turn ids into counts of one pixel each, ``(B, H, W)`` -> ``(B, H, W, K)``; none where there is no label."""
    return (target[..., None] == torch.arange(classes, device=target.device)).float()


@torch.inference_mode()
def predict(network: nn.Module, image: NDArray[Any], settings: Settings, device: torch.device) -> NDArray[np.uint8]:
    """Slide the network over an image, ``(H, W)`` class ids at the image's own size."""
    flat = np.atleast_3d(image).reshape(image.shape[0] * image.shape[1], -1)
    values = flat / _FULL_SCALE.get(image.dtype.name, 1.0)
    inputs = resize(normalise(image, values.mean(axis=0), values.std(axis=0)), settings.scale)
    slide = SlidingWindowInferer(
        (settings.crop,) * 2, sw_batch_size=settings.batch_size, overlap=settings.overlap, mode="gaussian"
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = slide(torch.from_numpy(inputs).movedim(-1, 0)[None].to(device), network.eval())
    assert isinstance(logits, Tensor)
    if settings.scale != 1:
        logits = nn.functional.interpolate(logits.float(), image.shape[:2], mode="bilinear")
    return logits[0].argmax(0).to(torch.uint8).cpu().numpy()


def count_windows(shape: tuple[int, ...], settings: Settings) -> int:
    """Count the crops that `predict` slides over an image ``(H, W)``.

    >>> count_windows((256, 449), Settings(crop=256, overlap=0.25))
    3
    """
    step = max(1, int(settings.crop * (1 - settings.overlap)))
    sides = (max(1, round(settings.scale * side)) for side in shape)
    return math.prod(1 + max(0, -(-(side - settings.crop) // step)) for side in sides)
