"""The sequence door: known models that read tokens, every weight kept, positions at the leaves' true centres."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import Adapted

# Class of the original -> module of this package and class in it. A subclass is found by its base.
_FAMILIES = {
    "timm.models.vision_transformer.VisionTransformer": "timm_vit.TimmVit",
}


def adapt(model: nn.Module) -> Adapted:
    """Give a transformer adaptive patches: a module that reads tokens and gives the features of each leaf.

    Weights are shared, not copied. On a uniform tree the features are the original's.

    >>> import numpy as np, timm
    >>> import patchtree as pt
    >>> model = pt.adapt(timm.create_model("vit_tiny_patch16_224"))
    >>> tokens = pt.collate([pt.Patcher(budget=50)(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8))])
    >>> model(tokens).shape
    torch.Size([1, 50, 192])

    Args:
        model: of timm, transformers, MONAI or torchvision; docs/models.md lists the families.

    Raises:
        InputError: the family is not known, or the model has a part that looks beyond a patch.
    """
    for kind in type(model).__mro__:
        name = _FAMILIES.get(f"{kind.__module__}.{kind.__qualname__}")
        if name is not None:
            module, family = name.split(".")
            adapted: Adapted = getattr(import_module(f"{__name__}.{module}"), family)(model)
            return adapted
    raise InputError(
        f"{type(model).__module__}.{type(model).__qualname__} is of no family that adapt knows; "
        "use through_mosaic(model), which takes any model of images"
    )
