"""A run without a training, for tests that only need one to be there."""

from __future__ import annotations

from pathlib import Path

import torch

from patchtree.models.choose import build
from patchtree.patcher import Patcher
from patchtree.runs import RunConfig, save_config, save_weights


def untrained_run(run: Path, channels: int = 3, task: str = "segment") -> Path:
    """Write a run folder whose weights are random, of two classes and patches of 8 px."""
    model = {"name": "patchtree:tiny", "channels": channels, "patch_size": 8}
    config = RunConfig(
        labels={"background": 0, "disc": 1},
        channels=channels,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        patcher=Patcher(patch_size=8, detail="residual").to_dict(),
        density=1 / 256,
        model=model,
        task=task,
    )
    torch.manual_seed(0)
    save_config(run, config)
    save_weights(run, build(labels=2, classify=task == "classify", **model).model.state_dict(), {})  # type: ignore[arg-type]
    return run
