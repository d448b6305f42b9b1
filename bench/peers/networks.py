"""Dense networks from their own libraries, all with random weights, that `bench.peers.crops` trains and slides.

Each is made for a number of channels, of classes, the side of a crop (a multiple of 32) and a width. At a width of 16
they have the sizes that their libraries suggest, but for UNETR, whose encoder is that of ViT-Tiny, and the residual
network, of which the smallest is taken: larger ones make few steps in the time there is. Other widths scale channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.peers import nnunet_plan

if TYPE_CHECKING:
    from bench.peers.crops import Settings
    from torch import Tensor, nn


def make_unet(channels: int, classes: int, crop: int, width: int) -> nn.Module:
    """Make MONAI's U-Net as its tutorials do: five stages, residual units, instance norm."""
    from monai.networks.nets.unet import UNet

    widths = [width << stage for stage in range(5)]
    return UNet(2, channels, classes, widths, strides=(2,) * 4, num_res_units=2, norm="INSTANCE")


def make_unet_plus_plus(channels: int, classes: int, crop: int, width: int) -> nn.Module:
    from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus

    features = [factor * width for factor in (2, 2, 4, 8, 16, 2)]
    return _wrapped(BasicUNetPlusPlus(2, channels, classes, features), lambda outputs, inputs: outputs[0])


def make_unetr(channels: int, classes: int, crop: int, width: int) -> nn.Module:
    from monai.networks.nets.unetr import UNETR

    hidden = 12 * width
    return UNETR(
        channels,
        classes,
        img_size=crop,
        feature_size=width,
        hidden_size=hidden,
        mlp_dim=4 * hidden,
        num_heads=max(1, hidden // 64),
        spatial_dims=2,
    )


def make_swin_unetr(channels: int, classes: int, crop: int, width: int) -> nn.Module:
    from monai.networks.nets.swin_unetr import SwinUNETR

    return SwinUNETR(channels, classes, feature_size=12 * max(1, round(width / 8)), spatial_dims=2)


def make_segformer(channels: int, classes: int, crop: int, width: int) -> nn.Module:
    """Make transformers' SegFormer, B0 at a width of 16; its logits, a quarter of the crop, are enlarged."""
    from torch.nn.functional import interpolate
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        id2label={label: f"class {label}" for label in range(classes)},
        num_channels=channels,
        hidden_sizes=[factor * width for factor in (2, 4, 10, 16)],
        decoder_hidden_size=16 * width,
    )
    return _wrapped(
        SegformerForSemanticSegmentation(config),
        lambda outputs, inputs: interpolate(outputs.logits, inputs.shape[2:], mode="bilinear"),
    )


def make_resnet_unet(channels: int, classes: int, crop: int, width: int) -> nn.Module:
    """Make segmentation-models-pytorch's U-Net with a ResNet-18; the width is that of its decoder."""
    from segmentation_models_pytorch import Unet  # type: ignore[import-untyped]

    decoder = [factor * width for factor in (16, 8, 4, 2, 1)]
    network: nn.Module = Unet(
        "resnet18", encoder_weights=None, decoder_channels=decoder, in_channels=channels, classes=classes
    )
    return network


def _wrapped(network: nn.Module, logits: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """Let a network give its logits alone."""
    from torch import nn

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: Tensor) -> Tensor:
            return logits(self.network(inputs), inputs)

    return Wrapped()


@dataclass(frozen=True)
class Network:
    """How a network is made and trained.

    Attributes:
        title: what it is, for the report.
        make: channels, classes, side of a crop, width -> network.
        lr: highest learning rate.
        plan: changes what the crops and the training are, by the shapes of the images; None leaves them.
    """

    title: str
    make: Callable[[int, int, int, int], nn.Module]
    lr: float = 1e-3
    plan: Callable[[Settings, Sequence[tuple[int, int]]], Settings] | None = None


NETWORKS = {
    "unet": Network("MONAI's UNet with residual units", make_unet),
    "unet++": Network("MONAI's BasicUNetPlusPlus", make_unet_plus_plus),
    "unetr": Network("MONAI's UNETR, ViT-Tiny", make_unetr, lr=5e-4),
    "swin_unetr": Network("MONAI's SwinUNETR", make_swin_unetr, lr=5e-4),
    "segformer": Network("transformers' SegFormer B0", make_segformer, lr=5e-4),
    "resnet_unet": Network("segmentation-models-pytorch's Unet with a ResNet-18", make_resnet_unet),
    "nnunet_like": Network(
        "a plan like nnU-Net's, which is not nnU-Net (MONAI's DynUNet; side of crops and depth by the median image, "
        "deep supervision, SGD with Nesterov's momentum of 0.99 and polynomial decay)",
        nnunet_plan.make_network,
        nnunet_plan.LR,
        nnunet_plan.plan,
    ),
}
