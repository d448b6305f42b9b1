"""Metrics on patch pixels that equal the same metrics on the painted image, pixel for pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from patchtree.errors import InputError


def confusion(prediction: Tensor, counts: Tensor) -> Tensor:
    """Count the image's pixels of every true class that were given every class, ``(K, K)``.

    Painting gives all image pixels under a patch pixel that patch pixel's class, so these are the counts of the
    painted image. Ignored pixels, those outside the image and padding are counted nowhere.

    >>> prediction = torch.tensor([[0, 1]])
    >>> counts = torch.tensor([[[4.0, 0.0], [1.0, 3.0]]])
    >>> confusion(prediction, counts).tolist()
    [[4.0, 1.0], [0.0, 3.0]]

    Args:
        prediction: ``(...)`` class ids, for example ``(B, N, p, p)``.
        counts: ``(..., K)``, image pixels of each class under each patch pixel.

    Returns:
        ``(K, K)`` float64, the true class first; whole numbers, exact up to 2**53 pixels.

    Raises:
        InputError: the shapes do not fit, or the prediction is not of whole numbers.
    """
    if prediction.is_floating_point():
        raise InputError(f"prediction is of {prediction.dtype}; give class ids, such as logits.argmax(-1)")
    if prediction.shape != counts.shape[:-1]:
        raise InputError(
            f"prediction is {tuple(prediction.shape)}, counts {tuple(counts.shape)}; give (...) and (..., K)"
        )
    classes = counts.shape[-1]
    table = torch.zeros(classes, classes, dtype=torch.float64, device=counts.device)
    return table.index_add_(0, prediction.reshape(-1).long(), counts.reshape(-1, classes).double()).T


def dice(confusion: Tensor) -> Tensor:
    """Give the Dice coefficient of every class, ``(K, K)`` -> ``(K,)``; nan for a class neither true nor predicted.

    >>> dice(torch.tensor([[4.0, 1.0], [0.0, 3.0]])).tolist()
    [0.888..., 0.857...]
    """
    return 2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1))


def mean_dice(confusion: Tensor) -> float:
    """Give the mean Dice of the classes that are there, but class 0; 0 if there is none.

    A class that is nowhere true would have 0, or be left out, by whether a single pixel is given to it.

    >>> round(mean_dice(torch.tensor([[4.0, 1.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])), 3)
    0.857
    """
    there = confusion[1:].sum(1) > 0
    return dice(confusion)[1:][there].mean().nan_to_num().item()


def iou(confusion: Tensor) -> Tensor:
    """Give the intersection over union of every class, ``(K, K)`` -> ``(K,)``; nan as for `dice`.

    >>> iou(torch.tensor([[4.0, 1.0], [0.0, 3.0]])).tolist()
    [0.800..., 0.75]
    """
    hit = confusion.diagonal()
    return hit / (confusion.sum(0) + confusion.sum(1) - hit)


def recall(confusion: Tensor) -> Tensor:
    """Give the share of every class that was found, ``(K, K)`` -> ``(K,)``; nan for a class that is not there.

    >>> recall(torch.tensor([[4.0, 1.0], [0.0, 3.0]])).tolist()
    [0.800..., 1.0]
    """
    return confusion.diagonal() / confusion.sum(1)


def precision(confusion: Tensor) -> Tensor:
    """Give the share of what was given a class that is of it, ``(K, K)`` -> ``(K,)``; nan for a class never given.

    >>> precision(torch.tensor([[4.0, 1.0], [0.0, 3.0]])).tolist()
    [1.0, 0.75]
    """
    return confusion.diagonal() / confusion.sum(0)


def classification_scores(confusion: Tensor) -> dict[str, float]:
    """Give the accuracy, the mean recall and the mean F1 (which is Dice) of the classes that are there or were given.

    >>> scores = classification_scores(torch.tensor([[4.0, 1.0], [0.0, 3.0]]))
    >>> {name: round(score, 3) for name, score in scores.items()}
    {'balanced accuracy': 0.9, 'accuracy': 0.875, 'macro f1': 0.873}
    """
    scores = {
        "balanced accuracy": recall(confusion).nanmean(),
        "accuracy": confusion.diagonal().sum() / confusion.sum(),
        "macro f1": dice(confusion).nanmean(),
    }
    return {name: score.nan_to_num().item() for name, score in scores.items()}


class Confusion(Metric):
    """Add up `confusion` over batches, and over processes where there are several.

    >>> total = Confusion(classes=2)
    >>> total.update(torch.tensor([[0, 1]]), torch.tensor([[[4.0, 0.0], [1.0, 3.0]]]))
    >>> iou(total.compute()).tolist()
    [0.8..., 0.75]

    Args:
        classes: K.
    """

    full_state_update = False
    is_differentiable = False
    table: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("table", torch.zeros(classes, classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, counts: Tensor) -> None:
        """Add a batch: class ids ``(...)`` and pixel counts ``(..., K)``."""
        self.table += confusion(prediction, counts)

    def compute(self) -> Tensor:
        """Give the sum so far, ``(K, K)`` float64, the true class first."""
        return self.table
