"""Slides that are read through an object that adds something."""

from __future__ import annotations

from patchtree.io.slides import Slide


class Wrapped(Slide):
    """A slide as another one shows it: all it says of itself is what that one does, until a subclass changes it.

    Attributes:
        slide: what is read.
    """

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self.path, self.kind, self.levels = slide.path, slide.kind, slide.levels
        self.channels, self.dtype, self.mpp, self.background = slide.channels, slide.dtype, slide.mpp, slide.background

    def close(self) -> None:
        """Close the slide."""
        self.slide.close()
