"""What a training does in a step and in a validation, by what is labelled: every pixel, or every image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from timm.optim.muon import Muon
from torch import Tensor, distributed

from patchtree.data import Batch
from patchtree.losses import loss_of_sums, loss_sums
from patchtree.metrics import Confusion, classification_scores, dice, mean_dice, recall
from patchtree.models.precision import half_where_quick
from patchtree.models.segmenter import Segmenter
from patchtree.models.tuning import kept_weights, weight_groups

_WEIGHT_DECAY, _BETAS = 0.05, (0.9, 0.999)
# In the cross-entropy a rare class counts for more than its pixels, or images, and for less than it would if all
# classes counted the same.
_BALANCE, _RAREST = 0.5, 1e-6


class Task(LightningModule):
    """What a step and a validation do.

    Args:
        model: the segmenter.
        lr: highest learning rate; `Course` sets the one of each step.
        depths: of the encoder's weights, see `stages`.
        layer_decay: of the rate, from one depth down to the next.
        muon: train matrices with Muon, not AdamW.
        shares: of the pixels to train on, each class's; None: as many of each.

    Attributes:
        progress: of the training, 0 to 1; `Course` sets it.
        score: what the best weights have most of, in words.
    """

    score = "Dice"
    shares: Tensor

    def __init__(
        self,
        model: Segmenter,
        lr: float,
        depths: Mapping[str, int] | None = None,
        layer_decay: float = 1.0,
        muon: bool = False,
        shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.lr, self.depths, self.layer_decay = model, lr, depths or {}, layer_decay
        self.muon, self.progress = muon, 0.0
        known = torch.ones(len(model.labels)) if shares is None else torch.tensor(shares)
        self.register_buffer("shares", known.clamp(min=_RAREST), persistent=False)
        self.labels = tuple(model.labels)
        self.confusion = Confusion(len(self.labels))
        self.scores: dict[str, float] = {}

    def training_step(self, batch: Batch) -> Tensor:
        """Give the loss of a batch of windows; with several processes, that of all their batches together."""
        weight = self.window_weight(batch).view(-1, *[1] * (batch.counts.ndim - 1))
        sums = loss_sums(self.model(batch.tokens, batch.ghosts), batch.counts * weight)
        loss = loss_of_sums(_SumOfAll.apply(sums) if self.trainer.world_size > 1 else sums, self.class_weight())
        self.log("loss", loss.detach(), batch_size=len(batch))
        return loss

    def class_weight(self) -> Tensor:
        """Give how much a pixel of each class counts in the cross-entropy, ``(K,)``.

        Rare classes count for more to begin with, so that they are learnt at all, and for the same in the end, so that
        no more is given to them than is theirs.
        """
        weight: Tensor = self.shares ** (_BALANCE * (self.progress - 1))
        return weight

    def window_weight(self, batch: Batch) -> Tensor:
        """Give how much each window counts, ``(B,)``.

        Windows around rare classes are drawn more often than others. They count like others to begin with, and in the
        end for as much less as they are drawn more often.
        """
        weight: Tensor = batch.odds**-self.progress
        return weight

    def validation_step(self, batch: Batch) -> None:
        """Compare the prediction of a whole image with its mask, in pixels of the image."""
        self.confusion.update(self._predict(batch), batch.counts)

    def on_validation_epoch_end(self) -> None:
        """Score all images together: Dice a class, and the mean of those that are there but class 0."""
        table = self.confusion.compute()
        self.confusion.reset()
        self.scores = {"dice": mean_dice(table)} | {
            f"dice {name}": score for name, score in zip(self.labels, dice(table).tolist(), strict=True)
        }
        self.log_dict(self.scores, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimiser of what is trained.

        Source: K. Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
        """
        groups = weight_groups(self.model, self.depths, _WEIGHT_DECAY, self.layer_decay)
        if self.muon:
            return Muon(groups, lr=self.lr, nesterov=True, betas=_BETAS)
        return torch.optim.AdamW(groups, lr=self.lr, betas=_BETAS)

    def kept(self, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give all that prediction needs, the average of the weights in their place."""
        return kept_weights(self.model, {name.removeprefix("model."): value for name, value in average.items()})

    def _predict(self, batch: Batch) -> Tensor:
        """Give the likeliest classes, in the precision of prediction, so that the score is its own."""
        with half_where_quick(self.device):
            return self.model(batch.tokens, batch.ghosts).argmax(-1)  # type: ignore[no-any-return]


class ImageTask(Task):
    """What a step and a validation do where every image has a class.

    Args:
        model: the classifier.
        lr: as `Task`'s.
        depths: as `Task`'s.
        layer_decay: as `Task`'s.
        shares: of the images to train on, each class's.
    """

    score = "balanced accuracy"
    weight: Tensor

    def __init__(
        self, model: Segmenter, lr: float, depths: Mapping[str, int], layer_decay: float, shares: Sequence[float]
    ) -> None:
        super().__init__(model, lr, depths, layer_decay, shares=shares)
        # A step is of a few images: a class counts for its share of all of them, and those weigh 1 on average.
        weight = self.shares**-_BALANCE / (self.shares ** (1 - _BALANCE)).sum()
        self.register_buffer("weight", weight, persistent=False)

    def training_step(self, batch: Batch) -> Tensor:
        """Give the loss of a batch of images; of several processes Lightning takes the mean."""
        logits = self.model(batch.tokens, batch.ghosts).float()
        loss: Tensor = -(logits.log_softmax(-1) * batch.counts[:, 0] * self.weight).sum(-1).mean()
        self.log("loss", loss.detach(), batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Compare the prediction of an image with its class."""
        self.confusion.update(self._predict(batch)[:, None], batch.counts)

    def on_validation_epoch_end(self) -> None:
        """Score all images together."""
        table = self.confusion.compute()
        self.confusion.reset()
        self.scores = classification_scores(table) | {
            f"recall {name}": score for name, score in zip(self.labels, recall(table).tolist(), strict=True)
        }
        self.log_dict(self.scores, batch_size=1, sync_dist=True)


class _SumOfAll(torch.autograd.Function):
    """The sum over processes, with the gradient that makes the mean of all processes' gradients exact.

    The loss is a function of the sums S of all processes' own sums, so its gradient is ``dL/dS`` times the sum over
    processes of their ``dS/dw``. DDP takes the mean over the R processes instead of the sum, hence the R here.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        total = sums.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient: Tensor = gradients[0] * distributed.get_world_size()
        return gradient
