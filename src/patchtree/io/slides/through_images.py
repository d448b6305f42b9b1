"""Plain images as slides: held whole in memory, with levels made by halving."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from patchtree.io.images import read_image
from patchtree.io.slides.base import Box, Level, Slide, default_background, true_downsample
from patchtree.pyramid import pyramid

_TILE = 512
_TOP = 512  # pixels: no level is made of an image that is no larger


class ImageSlide(Slide):
    """A PNG, JPEG, WebP or small TIFF, with coarser levels of 2 x 2 means.

    >>> import tempfile
    >>> import numpy as np
    >>> from patchtree.io.images import write_image
    >>> path = tempfile.mkdtemp() + "/image.png"
    >>> write_image(path, np.zeros((1000, 1500, 3), np.uint8))
    >>> [level.shape for level in ImageSlide(path).levels]
    [(1000, 1500), (500, 750), (250, 375)]
    """

    def __init__(self, path: str, mpp: tuple[float, float] | None = None) -> None:
        self.path, self.kind, self.mpp = path, "image", mpp
        image = read_image(path)
        image = image[..., None] if image.ndim == 2 else image
        self.channels, self.dtype = image.shape[2], image.dtype
        self.background = default_background(self.channels, self.dtype)
        halvings = max(0, (max(image.shape[:2]) - 1) // _TOP).bit_length()
        self._pixels = [level.cast(level.values, self.dtype) for level in pyramid(image, halvings)]
        shapes = [(pixels.shape[0], pixels.shape[1]) for pixels in self._pixels]
        self.levels = tuple(Level(shape, true_downsample(shapes[0], shape), (_TILE, _TILE)) for shape in shapes)

    def close(self) -> None:
        """Let go of the pixels; reading afterwards is an error. Closing twice is none."""
        self._pixels = []

    def _read(self, level: int, box: Box) -> NDArray[Any]:
        if not self._pixels:
            raise ValueError(f"{self.path} is closed")
        y0, x0, y1, x1 = box
        return self._pixels[level][y0:y1, x0:x1].copy()
