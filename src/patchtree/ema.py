"""The moving average of a model's weights, which is what is validated and kept."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class Average(Callback):
    """Average the weights exponentially over the steps, and show the average to the validation.

    After step ``n`` the average moves by ``max(1 - decay, 9 / (n + 10))`` of the way to the weights: early on it is
    about the mean of the last tenth of all steps, so that short trainings profit too.

    Source: B. Polyak and A. Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM J. Control Optim.
    30(4), 1992; the start is that of TensorFlow's ``ExponentialMovingAverage(num_updates)``.

    Attributes:
        decay: share of the average that a step keeps, in the end.
        weights: the average by name, as the module's parameters have it; empty before the first step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Move the average towards the weights."""
        current = {name: weight.detach() for name, weight in pl_module.named_parameters()}
        if self.weights.keys() != current.keys():
            self.weights = {name: weight.clone() for name, weight in current.items()}
            return
        share = max(1 - self.decay, 9 / (trainer.global_step + 10))
        torch._foreach_lerp_(list(self.weights.values()), list(current.values()), share)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the weights."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint must keep."""
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.weights = state_dict["weights"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring an average from a checkpoint to the weights' device."""
        self.weights = {name: weight.to(pl_module.device) for name, weight in self.weights.items()}

    def _swap(self, module: LightningModule) -> None:
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if name in self.weights:
                    kept = weight.clone()
                    weight.copy_(self.weights[name])
                    self.weights[name].copy_(kept)
