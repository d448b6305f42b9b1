"""Losses on patch pixels that equal the same losses on the painted image, pixel for pixel.

Painting gives all image pixels under a patch pixel that patch pixel's logits. So a sum over image pixels of
``f(logits, class)`` is the sum over patch pixels and classes of ``counts * f(logits, class)``, where `counts`
(from `count_labels`) says how many image pixels of each class lie under each patch pixel. Ignored pixels and
those outside the image are counted nowhere; padding has no counts and weighs nothing.

All functions take logits and counts ``(B, ..., K)``, for example ``(B, N, p, p, K)``, and give a scalar that is 0,
with gradient, when nothing is counted. Half precision logits are computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from patchtree.errors import InputError

# Numbers in a part: a few arrays of so many stay in a processor's cache.
_PART = 1 << 16


def cross_entropy(logits: Tensor, counts: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Give the mean cross-entropy over the image's pixels.

    Equal to ``torch.nn.functional.cross_entropy(weight=class_weight, ignore_index=...)`` on the painted image.

    >>> logits = torch.zeros(1, 4, 16, 16, 2)
    >>> counts = torch.zeros(1, 4, 16, 16, 2)
    >>> counts[..., 0] = 4
    >>> round(cross_entropy(logits, counts).item(), 4)
    0.6931

    Args:
        logits: ``(B, ..., K)``.
        counts: ``(B, ..., K)``, image pixels of each class under each patch pixel.
        class_weight: ``(K,)``; the mean is weighted by the class of each pixel, as torch does.

    Raises:
        InputError: logits and counts differ in shape.
    """
    logits, counts = _classes_second(logits, counts)
    return -_mean(logits.log_softmax(1), counts, class_weight)


def focal_loss(logits: Tensor, counts: Tensor, gamma: float = 2.0) -> Tensor:
    """Give the mean focal loss over the image's pixels, ``-(1 - q)**gamma * log(q)``, q the true class's probability.

    With ``gamma=0`` it is the cross-entropy. MONAI's ``FocalLoss(use_softmax=True)`` is this divided by K, because
    it takes the mean over the classes too.

    >>> logits, counts = torch.zeros(1, 4, 16, 16, 2), torch.ones(1, 4, 16, 16, 2)
    >>> round(focal_loss(logits, counts).item(), 4)
    0.1733

    Args:
        logits: ``(B, ..., K)``.
        counts: ``(B, ..., K)``, image pixels of each class under each patch pixel.
        gamma: how strongly pixels that are already right are played down.

    Raises:
        InputError: logits and counts differ in shape.

    Source: T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
    """
    logits, counts = _classes_second(logits, counts)
    log = logits.log_softmax(1)
    # A power below 1 has no slope at 0, where a saturated probability ends: 0 * inf would be NaN.
    miss = (-log.expm1()).clamp(min=torch.finfo(log.dtype).eps)
    return -_mean(miss.pow(gamma) * log, counts)


def dice_loss(
    logits: Tensor, counts: Tensor, include_background: bool = True, batch: bool = False, smooth: float = 1e-5
) -> Tensor:
    """Give 1 minus the soft Dice of the image's pixels, the mean over classes (and images, unless `batch`).

    Equal to MONAI's ``DiceLoss(softmax=True)`` with the same options on the painted image, ignored pixels left
    out. As there, a class that is absent costs nearly 1 as soon as any probability is given to it, and 0 if none is.

    >>> counts = torch.zeros(1, 4, 16, 16, 2)
    >>> counts[:, :2, ..., 0] = 1
    >>> counts[:, 2:, ..., 1] = 1
    >>> round(dice_loss(100 * counts, counts).item(), 4), round(dice_loss(-100 * counts, counts).item(), 4)
    (0.0, 1.0)

    Args:
        logits: ``(B, ..., K)``.
        counts: ``(B, ..., K)``, image pixels of each class under each patch pixel.
        include_background: whether class 0 counts as a class.
        batch: take the Dice of all images together, as nnU-Net does in 2-D, rather than of each image. Steadier
            when an image holds few classes.
        smooth: added to numerator and denominator, in image pixels; positive.

    Raises:
        InputError: logits and counts differ in shape, or there is no class but the background.

    Source: F. Milletari et al., "V-Net", 3DV 2016.
    """
    logits, counts = _classes_second(logits, counts)
    pixels = [*([0] if batch else []), *range(2, counts.ndim)]
    loss = _dice_loss(*_overlap(logits.softmax(1), counts, pixels), smooth)
    return (loss if include_background else _foreground(loss)).mean()


def segmentation_loss(logits: Tensor, counts: Tensor) -> Tensor:
    """Give cross-entropy plus Dice loss of the foreground over all images together, nnU-Net's loss.

    Equal to ``cross_entropy(...) + dice_loss(..., include_background=False, batch=True)``.

    >>> logits, counts = torch.zeros(1, 4, 16, 16, 2), torch.ones(1, 4, 16, 16, 2)
    >>> round(segmentation_loss(logits, counts).item(), 4)
    1.1931

    Args:
        logits: ``(B, ..., K)``.
        counts: ``(B, ..., K)``, image pixels of each class under each patch pixel.

    Raises:
        InputError: logits and counts differ in shape, or there is a single class.

    Source: F. Isensee et al., "nnU-Net", Nature Methods 2021.
    """
    return loss_of_sums(loss_sums(logits, counts))


def loss_sums(logits: Tensor, counts: Tensor) -> Tensor:
    """Add up over pixels what `segmentation_loss` is made of, so that batches and processes can be added first.

    The sums of several batches added together are the sums of the batches as one.

    >>> loss_sums(torch.zeros(1, 4, 16, 16, 2), torch.ones(1, 4, 16, 16, 2)).shape
    torch.Size([4, 2])

    Args:
        logits: ``(B, ..., K)``.
        counts: ``(B, ..., K)``, image pixels of each class under each patch pixel; gets no gradient.

    Returns:
        ``(4, K)``: log-likelihood, true pixels, predicted pixels (as probabilities) that are true, predicted pixels.

    Raises:
        InputError: logits and counts differ in shape.
    """
    _check(logits, counts)
    out: Tensor = _Sums.apply(logits, counts)
    return out


def loss_of_sums(sums: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Give the `segmentation_loss` of a batch from its `loss_sums`, ``(4, K)`` -> a scalar.

    Args:
        sums: of a batch.
        class_weight: ``(K,)``, how much a pixel of each class counts in the cross-entropy; None: the same.

    Raises:
        InputError: there is a single class.
    """
    likelihood, true, both, predicted = sums
    weight = torch.ones_like(true) if class_weight is None else class_weight
    overlap = _foreground(_dice_loss(true, both, predicted, smooth=1e-5))
    return _ratio(-likelihood * weight, true * weight) + overlap.mean()


class _Sums(torch.autograd.Function):
    """What `loss_sums` gives, a few patches at a time on a processor: what is made on the way stays in its cache.

    With ``l = log q`` the log-probabilities, c the counts and n their sum over classes, the sums over pixels are of
    ``c l``, ``c``, ``q c`` and ``q n``; with gradients a, _, b and d towards them, that towards the logits is
    ``a c + q (b c + d n) - q sum(a c + q (b c + d n))``, the sum over classes.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, counts: Tensor) -> Tensor:
        sums, kept = [], []
        for part, weight in zip(_parts(logits), _parts(counts), strict=True):
            weight = weight.movedim(-1, 0).contiguous()
            log = _single(part.movedim(-1, 0)).contiguous().log_softmax(0)
            share, all_classes = log.exp(), weight.sum(0)
            # Products and sums, not matrix products: autocast and TF32 would round the counts to a few bits there.
            terms = log * weight, weight, share * weight, share * all_classes
            sums.append(torch.stack([term.flatten(1).sum(1) for term in terms]))
            if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
                kept += [share, weight]
        ctx.save_for_backward(*kept)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype  # type: ignore[attr-defined]
        return torch.stack(sums).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        kept = ctx.saved_tensors  # type: ignore[attr-defined]
        out = gradient.new_empty(ctx.shape, dtype=ctx.dtype)  # type: ignore[attr-defined]
        for to, share, weight in zip(_parts(out), kept[::2], kept[1::2], strict=True):
            likelihood, _, both, predicted = (row.view(-1, *[1] * (share.ndim - 1)) for row in gradient)
            certain = weight * likelihood
            given = (weight * both).add_(weight.sum(0) * predicted).mul_(share)
            total = certain.sum(0) + given.sum(0)
            to.copy_((certain.add_(given).sub_(share * total)).movedim(0, -1))
        return out, None


def _parts(values: Tensor) -> tuple[Tensor, ...]:
    """Cut ``(B, N, ..., K)`` into parts of a few patches, ``(n, ..., K)``; on a GPU it is one."""
    patches = values.flatten(0, 1)
    if values.device.type != "cpu":
        return (patches,)
    return torch.split(patches, max(1, _PART // max(1, patches[:1].numel())))


def _check(logits: Tensor, counts: Tensor) -> None:
    if logits.shape != counts.shape or logits.ndim < 3:
        raise InputError(
            f"logits are {tuple(logits.shape)}, counts {tuple(counts.shape)}; give both as (B, ..., K), of one shape"
        )


def _classes_second(logits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Check the two and move the class axis to place 1: ``(B, ..., K)`` -> ``(B, K, ...)``."""
    _check(logits, counts)
    # A softmax over a short last axis is 10 to 20 times slower on a CPU than over an axis in front of the pixels.
    return _single(logits).movedim(-1, 1).contiguous(), counts.movedim(-1, 1).contiguous()


def _single(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _mean(values: Tensor, counts: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Average over the image's pixels, given the value ``(B, K, ...)`` of a pixel of each class."""
    value, weight = _sum(values * counts), _sum(counts)
    if class_weight is not None:
        value, weight = value * class_weight, weight * class_weight
    return _ratio(value, weight)


def _sum(values: Tensor) -> Tensor:
    """Sum over all but the classes, ``(B, K, ...)`` -> ``(K,)``."""
    return values.sum([0, *range(2, values.ndim)])


def _ratio(value: Tensor, weight: Tensor) -> Tensor:
    return value.sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def _overlap(share: Tensor, counts: Tensor, pixels: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum true pixels, predicted pixels that are true, and predicted pixels, from probabilities ``(B, K, ...)``."""
    # Products and sums, not matrix products: autocast and TF32 would round the counts to a few bits there.
    both, predicted = (share * counts).sum(pixels), (share * counts.sum(1, keepdim=True)).sum(pixels)
    return counts.sum(pixels), both, predicted


def _foreground(loss: Tensor) -> Tensor:
    """Give what there is of each class but the first."""
    if loss.shape[-1] < 2:
        raise InputError("a single class has no foreground; give logits of at least 2 classes")
    return loss[..., 1:]


def _dice_loss(true: Tensor, both: Tensor, predicted: Tensor, smooth: float) -> Tensor:
    return 1 - (2 * both + smooth) / (predicted + true + smooth)
