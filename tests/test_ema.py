"""The moving average of the weights against its definition, and its place in a training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from patchtree.ema import Average


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(3, 2)


def step(average: Average, module: Line, number: int) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape))
    trainer: Any = SimpleNamespace(global_step=number)
    average.on_train_batch_end(trainer, module)


def test_it_is_what_its_definition_says() -> None:
    torch.manual_seed(0)
    average, module = Average(decay=0.9), Line()
    slow = None
    for number in range(1, 120):
        step(average, module, number)
        weight = module.model.weight.detach().double()
        share = max(0.1, 9 / (number + 10))
        slow = weight.clone() if slow is None else (1 - share) * slow + share * weight
    assert slow is not None
    torch.testing.assert_close(average.weights["model.weight"].double(), slow, rtol=1e-5, atol=1e-6)


def test_validation_sees_the_average_and_training_does_not() -> None:
    average, module = Average(decay=0.9), Line()
    step(average, module, 1)
    step(average, module, 2)
    weights = {name: weight.clone() for name, weight in module.named_parameters()}
    means = {name: weight.clone() for name, weight in average.weights.items()}
    trainer: Any = None
    average.on_validation_start(trainer, module)
    assert all(torch.equal(weight, means[name]) for name, weight in module.named_parameters())
    average.on_validation_end(trainer, module)
    assert all(torch.equal(weight, weights[name]) for name, weight in module.named_parameters())
    assert all(torch.equal(weight, means[name]) for name, weight in average.weights.items())
