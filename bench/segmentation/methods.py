"""What is compared: each method is given a folder of images with its split, and time, and gives a way to predict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench.common import Case
from bench.peers.networks import NETWORKS
from numpy.typing import NDArray

from patchtree.datasets import choose, find_data, split_data


@dataclass(frozen=True)
class Trained:
    """What a method gives: a way to predict, and what it took.

    Attributes:
        predict: image ``(H, W[, C])`` -> class ids ``(H, W)``.
        seconds: that the training took, imports left out.
        steps: of the optimiser.
        parameters: numbers in the model.
        multiply_adds: that predicting an image takes, those of the model.
        tokens: tokens that it reads an image as, or None.
    """

    predict: Callable[[NDArray[Any]], NDArray[Any]]
    seconds: float
    steps: int
    parameters: int
    multiply_adds: Callable[[NDArray[Any]], int]
    tokens: Callable[[NDArray[Any]], int] | None = None


# A method is a function from a case to a `Trained`. It has `seconds` for everything from finding the images to the last
# step.


def train_patchtree(case: Case) -> Trained:
    """Use the library as its users do, with its defaults; the best of its validations is kept."""
    return _train_tree(case, lambda: {})


def train_uniform(case: Case) -> Trained:
    """Train patchtree's own model on a uniform grid of the finest patches instead of a tree, all else the same."""
    import torch
    from bench.peers import uniform

    from patchtree.io.images import image_size

    def options() -> dict[str, Any]:
        shapes, held_out = (
            [image_size(pair.image) for pair in part.pairs]
            for part in (find_data(case["train"]), choose(find_data(case["data"]), case["test"]))
        )
        return uniform.options(shapes, held_out, tokens=1024 if torch.cuda.is_available() else 300)

    return _train_tree(case, options)


def _train_tree(case: Case, options: Callable[[], dict[str, Any]]) -> Trained:
    from patchtree.inference import load
    from patchtree.training import train

    out, begin = Path(case["scratch"]) / "run", time.monotonic()
    asked = {"seed": case["seed"], "workers": case["workers"], **options()}
    left = case["seconds"] - (time.monotonic() - begin)
    train(case["train"], out, max_time=left, **asked, progress=False, report=print)
    seconds = time.monotonic() - begin
    predictor = load(out)
    rows = (out / "metrics.csv").read_text().splitlines()
    return Trained(
        predictor,
        seconds,
        steps=int(rows[-1].split(",")[rows[0].split(",").index("step")]),
        parameters=sum(weight.numel() for weight in predictor.model.parameters()),
        multiply_adds=lambda image: count_multiply_adds(lambda: predictor.in_patches(predictor.split(image))),
        tokens=lambda image: len(predictor.config.patcher_for(image.shape[:2]).plan(image)),
    )


def train_on_crops(case: Case) -> Trained:
    """Train a network of others on crops; the weights at the end are kept."""
    import torch
    from bench.peers import crops

    from patchtree.cache import cache_data

    kind = NETWORKS[case["method"]]
    kind.make(3, 2, 64, 4)  # its library is imported before the clock starts
    begin = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(case["seed"])
    dataset = find_data(case["train"])
    images = cache_data(split_data(dataset)[0], Path(case["scratch"]) / "cache")
    settings = crops.Settings(
        scale=case["scale"], crop=case["crop"], lr=kind.lr, seed=case["seed"], workers=case["workers"]
    )
    if kind.plan is not None:
        settings = kind.plan(settings, [image.shape for image in images])
    channels, classes = images[0].channels, len(dataset.labels)
    network = kind.make(channels, classes, settings.crop, case["width"])
    supply = crops.Crops.of(images, classes, dataset.ignore, settings)
    steps = crops.train(network, supply, case["seconds"] - (time.monotonic() - begin), device)

    def multiply_adds(image: NDArray[Any]) -> int:
        crop = torch.zeros(1, channels, settings.crop, settings.crop, device=device)
        with torch.no_grad():
            one = count_multiply_adds(lambda: network.eval()(crop))
        return one * crops.count_windows(image.shape[:2], settings)

    return Trained(
        lambda image: crops.predict(network, image, settings, device),
        time.monotonic() - begin,
        steps,
        parameters=sum(weight.numel() for weight in network.parameters()),
        multiply_adds=multiply_adds,
    )


def count_multiply_adds(call: Callable[[], Any]) -> int:
    """Count the multiply-adds of torch's products and convolutions in a call; attention on a CPU is one of them.

    >>> import torch
    >>> count_multiply_adds(lambda: torch.ones(2, 3) @ torch.ones(3, 5))
    30
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    # torch knows those of GPUs only.
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        call()
    return int(counter.get_total_flops() // 2)


METHODS: dict[str, Callable[[Case], Trained]] = {
    "patchtree": train_patchtree,
    "uniform": train_uniform,
    **dict.fromkeys(NETWORKS, train_on_crops),
}


def median_image(shapes: dict[str, tuple[int, int]]) -> str:
    """Name the image of median area, the smaller of two.

    >>> median_image({"a": (9, 9), "b": (2, 2), "c": (5, 5)})
    'c'
    """
    names = sorted(shapes, key=lambda name: int(np.prod(shapes[name])))
    return names[(len(names) - 1) // 2]
