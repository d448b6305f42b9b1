"""A plan like nnU-Net's, which is not nnU-Net: its rules for one two-dimensional network, in the training of `crops`.

Like nnU-Net's: the crops are as large as the median image or as memory allows, in batches of at least two; the network
halves until four pixels are left, with 32 to 512 channels, instance norm and leaky ReLU; cross-entropy and Dice at
several depths; SGD with Nesterov's momentum and polynomial decay. Unlike nnU-Net's: crops are square, the augmentation
and the share of crops with rare classes are those of all methods here, outputs of deep supervision are enlarged instead
of labels reduced, and there is neither cross-validation, nor an ensemble, nor a test on mirrored images.

Source: F. Isensee et al., "nnU-Net", Nature Methods 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log2
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.peers.crops import Settings
    from torch import nn

LR = 1e-2
# Crops in a batch at least; cells on a side that are not halved further; channels at most, times the width.
_BATCH, _LEAST, _MOST = 2, 4, 32
# Outputs besides the last that are taught; a further one would weigh 1/16.
_TAUGHT = 3


def plan(settings: Settings, shapes: Sequence[tuple[int, int]]) -> Settings:
    """Choose the crops by the median image at the input's scale; a step has as many pixels as all others' have.

    >>> from bench.peers.crops import Settings
    >>> small, large = (plan(Settings(crop=256, batch_size=8), [(side, side)]) for side in (200, 2000))
    >>> (small.crop, small.batch_size), (large.crop, large.batch_size)
    ((224, 10), (512, 2))

    Args:
        settings: those of the other networks.
        shapes: ``(H, W)`` of each image, in pixels.
    """
    pixels = settings.batch_size * settings.crop**2
    shorter = min(median(shape[axis] for shape in shapes) for axis in (0, 1)) * settings.scale
    side = round(min(shorter, (pixels / _BATCH) ** 0.5))
    step = 1 << halvings(side)
    # The largest are made smaller, as memory is what limits them; images may be padded.
    side = side // step * step if side < shorter else -(-side // step) * step
    return replace(settings, crop=side, batch_size=max(_BATCH, round(pixels / side**2)), course="sgd")


def halvings(side: int) -> int:
    """Give how often a crop is halved: until another time would leave less than four pixels.

    >>> halvings(256), halvings(200)
    (6, 5)
    """
    return max(2, int(log2(max(side, 1) / _LEAST)))


def make_network(channels: int, classes: int, crop: int, width: int) -> nn.Module:
    """Make MONAI's DynUNet, made after nnU-Net, as deep as the crop allows."""
    from monai.networks.nets.dynunet import DynUNet

    depth = halvings(crop)
    return DynUNet(
        2,
        channels,
        classes,
        kernel_size=[3] * (depth + 1),
        strides=[1] + [2] * depth,
        upsample_kernel_size=[2] * depth,
        filters=[width * min(_MOST, 2 << stage) for stage in range(depth + 1)],
        deep_supervision=True,
        deep_supr_num=min(_TAUGHT, depth - 1),
    )
