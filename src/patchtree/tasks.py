"""What a training does in a step and in a validation, by what is labelled: every pixel, every image, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn

from patchtree.budget import choose_fraction
from patchtree.losses import loss_of_sums, loss_sums
from patchtree.metrics import Confusion, classification_scores, dice, mean_dice, recall
from patchtree.models.precision import half_where_quick
from patchtree.models.segmenter import Segmenter
from patchtree.models.tuning import kept_weights, weight_groups
from patchtree.muon import StackedMuon
from patchtree.samples import Batch
from patchtree.tokens import Tokens

_WEIGHT_DECAY, _BETAS = 0.05, (0.9, 0.999)
# In the cross-entropy a rare class counts for more than its pixels, or images, and for less than it would if all
# classes counted the same.
_BALANCE, _RAREST = 0.5, 1e-6
# Of leaves, those that are hidden; the variance of pixels, in that of all images, below which patches are flat.
_HIDDEN, _FLAT = 0.6, 1e-3


class Task(LightningModule):
    """What a step and a validation do.

    Args:
        model: the segmenter.
        lr: highest learning rate; `Course` sets the one of each step.
        depths: of the encoder's weights, see `stages`.
        layer_decay: of the rate, from one depth down to the next.
        muon: train matrices with Muon, not AdamW.
        shares: of the pixels to train on, each class's; None: as many of each.
        fractions: of the density, that images are validated at.

    Attributes:
        progress: of the training, 0 to 1; `Course` sets it.
        score: what the best weights have most of, in words.
        scores: of the last validation, by name.
        about: of the last validation, by name: the fraction that prediction is to take, and how each scored.
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
        fractions: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.model, self.lr, self.depths, self.layer_decay = model, lr, depths or {}, layer_decay
        self.muon, self.progress = muon, 0.0
        known = torch.ones(len(model.labels)) if shares is None else torch.tensor(shares)
        self.register_buffer("shares", known.clamp(min=_RAREST), persistent=False)
        self.labels = tuple(model.labels)
        self.fractions = tuple(fractions)
        tables = nn.ModuleList(Confusion(len(self.labels)) for _ in self.fractions)
        self.confusions: Sequence[Confusion] = tables  # type: ignore[assignment]
        self.scores: dict[str, float] = {}
        self.about: dict[str, float] = {}

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
        (fraction,) = set(batch.fractions)
        self.confusions[self.fractions.index(fraction)].update(self._predict(batch), batch.counts)

    def on_validation_epoch_end(self) -> None:
        """Score all images together, at the fraction that suits them: Dice a class, and the mean but class 0's."""
        tables = dict(zip(self.fractions, self._tables(), strict=True))
        means = {fraction: mean_dice(table) for fraction, table in tables.items()}
        best = choose_fraction(means)
        table = tables[best]
        if len(means) > 1:
            self.about = {"fraction": best} | {f"dice at {fraction:g}": score for fraction, score in means.items()}
        self.scores = {"dice": means[best]} | {
            f"dice {name}": score for name, score in zip(self.labels, dice(table).tolist(), strict=True)
        }
        self.log_dict(self.scores | self.about, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimiser of what is trained.

        Source: K. Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
        """
        groups = weight_groups(self.model, self.depths, _WEIGHT_DECAY, self.layer_decay)
        if self.muon:
            return StackedMuon(groups, lr=self.lr, nesterov=True, betas=_BETAS)
        return torch.optim.AdamW(groups, lr=self.lr, betas=_BETAS)

    def kept(self, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give all that prediction needs, the average of the weights in their place."""
        return kept_weights(self.model, {name.removeprefix("model."): value for name, value in average.items()})

    def _tables(self) -> list[Tensor]:
        """Give the sums of all processes, and begin anew."""
        tables, nothing = [], torch.zeros(0, len(self.labels), device=self.device)
        for confusion in self.confusions:
            # Which a process may have had no image for, and torchmetrics would warn.
            confusion.update(nothing[:, 0].long(), nothing)
            tables.append(confusion.compute())
            confusion.reset()
        return tables

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
        self.confusions[0].update(self._predict(batch)[:, None], batch.counts)

    def on_validation_epoch_end(self) -> None:
        """Score all images together."""
        (table,) = self._tables()
        self.scores = classification_scores(table) | {
            f"recall {name}": score for name, score in zip(self.labels, recall(table).tolist(), strict=True)
        }
        self.log_dict(self.scores, batch_size=1, sync_dist=True)


class MaskedTask(Task):
    """What a step and a validation do without labels: paint the pixels of leaves that are hidden from those of others.

    Each hidden patch is to be painted less its own mean and over its own deviation.

    Source: K. He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
    """

    score = "explained variance"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sums = torch.zeros(2, dtype=torch.float64)

    def training_step(self, batch: Batch) -> Tensor:
        """Give the mean squared error of a batch's hidden pixels."""
        # By the step and the process, so that a resumed training hides the same.
        seed = self.trainer.global_step * self.trainer.world_size + self.trainer.global_rank
        hidden = hide(batch.tokens.valid, seed)
        wanted = normalise_patches(batch.tokens.pixels)[hidden]
        painted = self.model(mask(batch.tokens, hidden), batch.ghosts)[hidden].float()
        loss: Tensor = (painted - wanted).square().mean()
        self.log("loss", loss.detach(), batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Compare what is painted with what is hidden, the same leaves of an image each time."""
        hidden = hide(batch.tokens.valid, seed=0)
        wanted = normalise_patches(batch.tokens.pixels)[hidden]
        with half_where_quick(self.device):
            painted = self.model(mask(batch.tokens, hidden), batch.ghosts)[hidden].float()
        self.sums += torch.stack([(painted - wanted).square().sum(), wanted.square().sum()]).double().cpu()

    def on_validation_epoch_end(self) -> None:
        """Score all images together: the share of the hidden pixels' variance that is explained."""
        sums = self.sums.to(self.device)
        self.sums = torch.zeros(2, dtype=torch.float64)
        if self.trainer.world_size > 1:
            distributed.all_reduce(sums)
        error, variance = sums.tolist()
        self.scores = {self.score: 1 - error / variance if variance else 0.0}
        self.log_dict(self.scores, batch_size=1)


def hide(valid: Tensor, seed: int) -> Tensor:
    """Choose leaves to hide, ``(B, N)``: at random, but at least one of each image, and not all where there are two.

    >>> hide(torch.tensor([[True, True, False]]), seed=0).sum().item()
    1

    Args:
        valid: ``(B, N)``, False on padding.
        seed: of the choice.
    """
    chance = torch.rand(valid.shape, generator=torch.Generator().manual_seed(seed)).to(valid.device)
    rank = chance.masked_fill(~valid, 2).argsort(1).argsort(1)
    count = valid.sum(1, keepdim=True)
    hidden: Tensor = rank < (_HIDDEN * count).round().clamp(min=1).minimum((count - 1).clamp(min=1))
    return hidden


def mask(tokens: Tokens, hidden: Tensor) -> Tokens:
    """Put the mean of all images, 0, in the place of hidden leaves' pixels."""
    there = ~hidden.view(*hidden.shape, *(1,) * (tokens.pixels.ndim - 2))
    masked: Tokens = replace(tokens, pixels=tokens.pixels * there)
    return masked


def normalise_patches(pixels: Tensor) -> Tensor:
    """Take each patch's mean off its pixels and divide by their deviation, ``(B, N, C, p, p)`` -> ``(B, N, p, p, C)``.

    >>> normalise_patches(torch.tensor([1.0, 3.0]).view(1, 1, 1, 1, 2)).flatten().round().tolist()
    [-1.0, 1.0]
    """
    pixels = pixels.float().movedim(2, -1)
    axes = tuple(range(2, pixels.ndim))
    around = pixels - pixels.mean(axes, keepdim=True)
    # What hardly varies, such as glass, has noise to paint and nothing else.
    out: Tensor = around / (around.square().mean(axes, keepdim=True) + _FLAT).sqrt()
    return out


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
