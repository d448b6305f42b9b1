"""Trees and patches of whole slides: planned and cut in bounded memory, reading only where there is detail."""

from __future__ import annotations

from patchtree.slides.cut import cut_slide
from patchtree.slides.dense import refine_dense
from patchtree.slides.lazy import opened, patch_slide, refine_slide

__all__ = ["cut_slide", "opened", "patch_slide", "refine_dense", "refine_slide"]
