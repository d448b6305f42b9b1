"""The table of models in docs/models.md: which door each takes, its size, what is exact and what is not."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from bench import common
from bench.common import table

DOCUMENT = common.REPOSITORY / "docs" / "models.md"
BEGIN, END = "<!-- made by `python bench/models.py --save` -->", "<!-- end -->"

TIMM = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_large_patch16_224",
    "vit_huge_patch14_224",
    "deit_small_patch16_224",
    "deit_base_distilled_patch16_224",
    "deit3_base_patch16_224",
    "vit_base_patch16_clip_224",
    "vit_so400m_patch14_siglip_384",
    "vit_small_patch14_dinov2",
    "vit_base_patch14_reg4_dinov2",
    "vit_medium_patch16_gap_256",
    "vit_base_patch16_rpn_224",
    "eva_giant_patch14_224",
    "eva02_small_patch14_224",
    "eva02_large_patch14_clip_224",
    "vit_small_patch16_dinov3",
    "vit_base_patch16_dinov3",
    "vit_base_patch16_rope_reg1_gap_256",
    "naflexvit_base_patch16_gap",
    "naflexvit_base_patch16_siglip",
    "beit_base_patch16_224",
    "beitv2_base_patch16_224",
)
TRANSFORMERS = (
    "ViTModel",
    "DeiTModel",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
    "DINOv3ViTModel",
    "CLIPVisionModel",
    "MetaClip2VisionModel",
    "SiglipVisionModel",
    "Siglip2VisionModel",
    "BeitModel",
    "Data2VecVisionModel",
    "ViTMAEModel",
    "ViTMSNModel",
    "IJepaModel",
    "PixioModel",
)
MOSAIC = (
    ("monai", "UNet, BasicUNetPlusPlus, SwinUNETR, SegResNet", "convolutions and windows cross the tiles' borders"),
    ("torchvision", "DeepLabV3, FCN, Swin", "convolutions and windows cross the tiles' borders"),
    (
        "transformers",
        "SegFormer, Swin, UperNet, Mask2Former, SAM",
        "as above; coarser logits are enlarged",
    ),
    ("segmentation-models-pytorch", "Unet and its other decoders", "convolutions cross the tiles' borders"),
)


def build() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Name the models, each with its library and a function that makes it at its published size."""
    import timm
    import torchvision
    import transformers
    from monai.networks import nets

    for name in TIMM:
        yield "timm", name, partial(timm.create_model, name)
    for name in TRANSFORMERS:
        kind = getattr(transformers, name)
        yield "transformers", name, lambda kind=kind: kind(kind.config_class())
    for name in ("vit_b_16", "vit_l_16", "vit_h_14"):
        yield "torchvision", name, getattr(torchvision.models, name)
    yield "monai", "ViT", partial(nets.ViT, 3, (224, 224), (16, 16), spatial_dims=2)
    yield "monai", "ViT, 3-D", partial(nets.ViT, 1, (96, 96, 96), (16, 16, 16))
    yield "monai", "ViTAutoEnc", partial(nets.ViTAutoEnc, 3, (224, 224), (16, 16), spatial_dims=2)
    yield "monai", "UNETR (its encoder)", partial(nets.UNETR, 3, 2, (224, 224), spatial_dims=2)
    yield "monai", "UNETR, 3-D (its encoder)", partial(nets.UNETR, 1, 2, (96, 96, 96))


def rows() -> list[tuple[object, ...]]:
    import torch

    from patchtree.models.adapt import adapt

    found: list[tuple[object, ...]] = []
    for library, name, make in build():
        common.progress(name)
        # Shapes are all that is wanted: on this device weights take neither time nor memory.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = adapt(make())
        size = sum(weight.numel() for weight in adapted.parameters()) / 1e6
        found.append(
            (f"{library}: {name}", "sequence", f"{size:.0f} M", adapted.exact, adapted.approximate or "nothing")
        )
    for library, names, why in MOSAIC:
        found.append((f"{library}: {names}", "mosaic", "", "the uniform tree of a square image of 2^k patches", why))
    return found


def main(arguments: Sequence[str]) -> None:
    chosen = common.options(__doc__ or "").parse_args(arguments)
    text = table(("model", "door", "parameters", "exact", "approximate"), rows())
    print(text)
    if chosen.save:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main(sys.argv[1:])
