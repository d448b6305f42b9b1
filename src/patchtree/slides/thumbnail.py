"""A small picture of a whole slide."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from patchtree.io.slides import Slide
from patchtree.pyramid import Level
from patchtree.slides.halved import Halved


def thumbnail(slide: Slide, max_side: int = 1600) -> NDArray[Any]:
    """Read a slide at the finest halving that is no longer than a side, from the coarsest of its levels that will do.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from patchtree.io.images import write_image
    >>> from patchtree.io.slides import open_slide
    >>> path = Path(tempfile.mkdtemp()) / "slide.tif"
    >>> write_image(path, np.zeros((1000, 1500, 3), np.uint8))
    >>> thumbnail(open_slide(path), max_side=400).shape
    (250, 375, 3)

    Args:
        slide: what `open_slide` gave.
        max_side: pixels, the most along the longer side.

    Returns:
        ``(h, w, C)``, the slide's type.
    """
    halved = Halved(slide)
    level = 0
    while max(halved.shape(level)) > max_side:
        level += 1
    values = halved.read(level, 0, 0, *halved.shape(level))
    return Level(values, 1.0).cast(values, slide.dtype)
