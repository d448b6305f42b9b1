"""An adapted model's forward against its original's at the same number of tokens, and packing against padding."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from bench import common
from bench.common import Case, Result, fresh, millis, table

import patchtree
from patchtree.models.adapt import adapt

MODELS = (
    "timm:vit_tiny_patch16_224",
    "timm:vit_small_patch16_224",
    "timm:vit_small_patch16_dinov3",
    "timm:eva02_small_patch14_224",
    "timm:beit_base_patch16_224",
    "transformers:ViTModel",
    "transformers:Dinov2Model",
    "torchvision:vit_b_16",
    "monai:ViT",
)


def make(name: str, side: int) -> tuple[Any, Callable[[Any], Any]]:
    """Build a model for square images of so many pixels, and say how its features are asked for."""
    library, _, kind = name.partition(":")
    if library == "timm":
        import timm

        model = timm.create_model(kind, img_size=side, num_classes=0)
        return model, model.forward_features
    if library == "transformers":
        import transformers

        kinds = getattr(transformers, kind)
        model = kinds(kinds.config_class(image_size=side, patch_size=16))
        return model, model
    if library == "torchvision":
        import torchvision

        model = getattr(torchvision.models, kind)(image_size=side)
        model.heads = __import__("torch").nn.Identity()
        return model, model
    from monai.networks import nets

    model = getattr(nets, kind)(3, (side, side), (16, 16), spatial_dims=2)
    return model, model


def measure(case: Case) -> Result:
    """Time one model, or the ways to run a batch of images with different numbers of leaves."""
    import torch

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    device = "cuda" if case["cuda"] else "cpu"
    patch = 14 if "patch14" in case["model"] else 16
    side = patch * case["grid"]
    model, original = make(case["model"], side)
    model.eval().to(device)
    adapted = adapt(model)
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, int]) -> patchtree.Patches:
        image = rng.integers(0, 255, (*shape, 3), np.uint8)
        tree = patchtree.Tree.uniform(shape, patch)
        return patchtree.Patches(patchtree.cut(image, tree), tree)

    def finished(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            call()
            if case["cuda"]:
                torch.cuda.synchronize()

        return run

    tokens = patchtree.collate([draw((side, side))]).to(device)
    image = torch.randn(1, 3, side, side, device=device)
    calls: dict[str, Callable[[], Any]] = {"original": lambda: original(image), "adapted": lambda: adapted(tokens)}
    if case["padded"]:
        lengths = np.linspace(1, case["grid"], 4).round().astype(int)
        batch = patchtree.collate([draw((side, patch * int(rows))) for rows in lengths]).to(device)

        def masked() -> None:
            adapted.packs = False
            adapted(batch)

        def packed() -> None:
            adapted.packs = True
            adapted(batch)

        calls = {"original": masked, "adapted": packed}
    calls = {name: finished(call) for name, call in calls.items()}
    with torch.inference_mode():
        for call in calls.values():
            call()
        # Of one thread the processor's time is looked at: other work on the machine adds nothing to it.
        clock = time.perf_counter if case["cuda"] else time.process_time
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(case["repeats"]):
            for name, call in calls.items():
                begin = clock()
                call()
                seconds[name].append(clock() - begin)
    ratios = [after / before for before, after in zip(*seconds.values(), strict=True)]
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {"tokens": tokens.valid.shape[1], "ratio": float(np.median(ratios)), **medians}


def rows(models: Sequence[str], grids: Sequence[int], cuda: bool, padded: bool, repeats: int) -> list[list[object]]:
    found: list[list[object]] = []
    for model in models:
        for grid in grids:
            common.progress(f"{model}, {grid} x {grid} patches")
            case = {"model": model, "grid": grid, "cuda": cuda, "padded": padded, "repeats": repeats}
            result = fresh(__file__, case)
            if "failed" in result:
                found.append([model, grid * grid, result["failed"], "", ""])
                continue
            times = [millis(result[name]) for name in ("original", "adapted")]
            found.append([model, result["tokens"], *times, f"{result['ratio']:.3f}"])
    return found


def main(arguments: Sequence[str]) -> None:
    parser = common.options(__doc__ or "")
    parser.add_argument("--cuda", action="store_true", help="on a GPU")
    chosen = parser.parse_args(arguments)
    grids, repeats = ((4,), 1) if chosen.quick else ((14, 32), 9)
    models = MODELS[:1] if chosen.quick else MODELS
    where = "a GPU" if chosen.cuda else "one thread, processor time"
    overhead = table(
        ("model", "tokens", "original, ms", "adapted, ms", "ratio"), rows(models, grids, chosen.cuda, False, repeats)
    )
    packing = table(
        ("model", "longest", "masked, ms", "packed, ms", "ratio"), rows(models[:2], grids, chosen.cuda, True, repeats)
    )
    parts = [
        f"Forward of one image on {where}, random weights, {repeats} turns of both; the ratio is the median of turns.",
        overhead,
        "A batch of four images with one row of patches, a third, two thirds and all of them: padded and masked, or "
        "packed into one row.",
        packing,
    ]
    common.publish("adapt", parts, chosen.save, ("torch", "timm", "transformers", "monai", "torchvision"))


if __name__ == "__main__":
    common.start(main, measure)
