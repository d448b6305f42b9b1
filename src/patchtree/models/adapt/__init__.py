"""The sequence door: known models that read tokens, every weight kept, positions at the leaves' true centres."""

from __future__ import annotations

import warnings
from importlib import import_module

from torch import nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import Adapted, unwrapped

# Class of the original -> module of this package and class in it. A subclass is found by its base.
_FAMILIES = {
    "monai.networks.nets.unetr.UNETR": "monai_vit.MonaiVit",
    "monai.networks.nets.vit.ViT": "monai_vit.MonaiVit",
    "monai.networks.nets.vitautoenc.ViTAutoEnc": "monai_vit.MonaiVit",
    "timm.models.beit.Beit": "timm_beit.TimmBeit",
    "timm.models.eva.Eva": "timm_eva.TimmEva",
    "timm.models.naflexvit.NaFlexVit": "timm_naflex.TimmNaflex",
    "timm.models.vision_transformer.VisionTransformer": "timm_vit.TimmVit",
    "torchvision.models.vision_transformer.VisionTransformer": "torchvision_vit.TorchvisionVit",
    "transformers.models.beit.modeling_beit.BeitPreTrainedModel": "hf_beit.HfBeit",
    "transformers.models.clip.modeling_clip.CLIPPreTrainedModel": "hf_clip.HfClip",
    "transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionPreTrainedModel": "hf_beit.HfData2Vec",
    "transformers.models.deit.modeling_deit.DeiTPreTrainedModel": "hf_vit.HfVit",
    "transformers.models.dinov2.modeling_dinov2.Dinov2PreTrainedModel": "hf_vit.HfVit",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersPreTrainedModel": (
        "hf_vit.HfVit"
    ),
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTPreTrainedModel": "hf_dinov3.HfDinov3",
    "transformers.models.ijepa.modeling_ijepa.IJepaPreTrainedModel": "hf_vit.HfVit",
    "transformers.models.metaclip_2.modeling_metaclip_2.MetaClip2PreTrainedModel": "hf_clip.HfClip",
    "transformers.models.pixio.modeling_pixio.PixioPreTrainedModel": "hf_vit.HfVit",
    "transformers.models.siglip.modeling_siglip.SiglipPreTrainedModel": "hf_clip.HfSiglip",
    "transformers.models.siglip2.modeling_siglip2.Siglip2PreTrainedModel": "hf_clip.HfSiglip2",
    "transformers.models.vit.modeling_vit.ViTPreTrainedModel": "hf_vit.HfVit",
    "transformers.models.vit_mae.modeling_vit_mae.ViTMAEPreTrainedModel": "hf_vit.HfVit",
    "transformers.models.vit_msn.modeling_vit_msn.ViTMSNPreTrainedModel": "hf_vit.HfVit",
}

# What goes from an image to features in the libraries; a family does the same by its own code.
_RUN = ("forward", "forward_features", "_pos_embed")


def adapt(model: nn.Module) -> Adapted:
    """Give a transformer adaptive patches: a module that reads tokens and gives the features of each leaf.

    Weights are shared, not copied. On a uniform tree the features are the original's. You are warned of a class of your
    own that overrides how a known one runs: that code is not run.

    >>> import numpy as np, timm
    >>> import patchtree as pt
    >>> model = pt.adapt(timm.create_model("vit_tiny_patch16_224"))
    >>> tokens = pt.collate([pt.Patcher(budget=50)(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8))])
    >>> model(tokens).shape
    torch.Size([1, 49, 192])

    Args:
        model: of timm, transformers, MONAI or torchvision; docs/models.md lists the families. What ``torch.compile``
            and ``DataParallel`` give is unwrapped.

    Raises:
        InputError: the family is not known, or the model has a part that looks beyond a patch.
    """
    model = unwrapped(model)
    if isinstance(model, Adapted):
        return model
    name = find_family(type(model))
    if name is not None:
        if changed := _overridden(type(model)):
            warnings.warn(
                f"{type(model).__qualname__} overrides {' and '.join(changed)}, which adapt does not run: features are "
                "those of the library's own class; use through_mosaic(model) where that is not what you want",
                stacklevel=2,
            )
        module, family = name.split(".")
        adapted: Adapted = getattr(import_module(f"{__name__}.{module}"), family)(model)
        return adapted
    raise InputError(
        f"{type(model).__module__}.{type(model).__qualname__} is of no family that adapt knows; "
        "use through_mosaic(model), which takes 2-D models of images only"
    )


def find_family(kind: type) -> str | None:
    """Give the module and class that know models of a class, None if there are none.

    >>> from timm.models.vision_transformer import VisionTransformer
    >>> find_family(VisionTransformer)
    'timm_vit.TimmVit'
    """
    names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
    return next((_FAMILIES[name] for name in names if name in _FAMILIES), None)


def _overridden(kind: type) -> list[str]:
    """Name the methods of a library's model that a class from outside of the library replaces."""
    order = kind.__mro__
    known = next(i for i, base in enumerate(order) if f"{base.__module__}.{base.__qualname__}" in _FAMILIES)
    library = _package(order[known])
    own = [base for base in order[:known] if _package(base) != library]
    original = [base for base in order if _package(base) == library]
    return [name for name in _RUN if all(any(name in vars(base) for base in part) for part in (own, original))]


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
