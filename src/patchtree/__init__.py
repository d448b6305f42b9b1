"""Adaptive patches: let any attention-based model segment images far larger than it could otherwise read."""

from patchtree.detail import Edges, Residual, Variance
from patchtree.errors import InputError
from patchtree.patcher import Patcher, Patches
from patchtree.patches import count_labels, cut, paint
from patchtree.refine import refine
from patchtree.tree import Tree

__all__ = [
    "Edges",
    "InputError",
    "Patcher",
    "Patches",
    "Residual",
    "Tree",
    "Variance",
    "count_labels",
    "cut",
    "paint",
    "refine",
]
