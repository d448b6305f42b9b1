"""Adaptive patches: let any attention-based model segment images far larger than it could otherwise read."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from patchtree.detail import Edges, Residual, Variance
from patchtree.errors import InputError
from patchtree.patcher import Patcher, Patches
from patchtree.patches import count_labels, cut, paint
from patchtree.refine import refine
from patchtree.show import show
from patchtree.tree import Tree

if TYPE_CHECKING:
    from patchtree.io.annotations import read_annotations
    from patchtree.io.coverage import rasterise
    from patchtree.io.images import read_image, read_mask
    from patchtree.io.slides import open_slide
    from patchtree.io.volumes import read_volume
    from patchtree.models.adapt import adapt
    from patchtree.models.choose import build_classifier, build_model
    from patchtree.models.classifier import Classifier
    from patchtree.models.mosaic import through_mosaic
    from patchtree.models.segmenter import Segmenter
    from patchtree.slides import cut_slide, patch_slide, refine_slide
    from patchtree.tokens import Tokens, collate, mosaic, unmosaic, unpad

__all__ = [
    "Classifier",
    "Edges",
    "InputError",
    "Patcher",
    "Patches",
    "Residual",
    "Segmenter",
    "Tokens",
    "Tree",
    "Variance",
    "adapt",
    "build_classifier",
    "build_model",
    "collate",
    "count_labels",
    "cut",
    "cut_slide",
    "mosaic",
    "open_slide",
    "paint",
    "patch_slide",
    "rasterise",
    "read_annotations",
    "read_image",
    "read_mask",
    "read_volume",
    "refine",
    "refine_slide",
    "show",
    "through_mosaic",
    "unmosaic",
    "unpad",
]

# Names whose modules import torch or OpenCV: found when they are first asked for, so that the import stays light.
_LAZY = {
    "Classifier": "patchtree.models.classifier",
    "Segmenter": "patchtree.models.segmenter",
    "Tokens": "patchtree.tokens",
    "adapt": "patchtree.models.adapt",
    "build_classifier": "patchtree.models.choose",
    "build_model": "patchtree.models.choose",
    "collate": "patchtree.tokens",
    "cut_slide": "patchtree.slides",
    "mosaic": "patchtree.tokens",
    "open_slide": "patchtree.io.slides",
    "patch_slide": "patchtree.slides",
    "rasterise": "patchtree.io.coverage",
    "read_annotations": "patchtree.io.annotations",
    "read_image": "patchtree.io.images",
    "read_mask": "patchtree.io.images",
    "read_volume": "patchtree.io.volumes",
    "refine_slide": "patchtree.slides",
    "through_mosaic": "patchtree.models.mosaic",
    "unmosaic": "patchtree.tokens",
    "unpad": "patchtree.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'patchtree' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
