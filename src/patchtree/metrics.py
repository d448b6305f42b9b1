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
        InputError: the shapes do not fit.
    """
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


def iou(confusion: Tensor) -> Tensor:
    """Give the intersection over union of every class, ``(K, K)`` -> ``(K,)``; nan as for `dice`.

    >>> iou(torch.tensor([[4.0, 1.0], [0.0, 3.0]])).tolist()
    [0.800..., 0.75]
    """
    hit = confusion.diagonal()
    return hit / (confusion.sum(0) + confusion.sum(1) - hit)


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
