"""Images without labels: a folder of them. No torch is needed."""

from __future__ import annotations

import os
from pathlib import Path

from patchtree.channels import group_cases
from patchtree.datasets import DataSet, Pair
from patchtree.errors import InputError
from patchtree.io.images import list_images
from patchtree.io.slides import is_pyramid


def find_unlabelled(root: str | os.PathLike[str]) -> DataSet:
    """Find the images of a folder: those in ``images/`` or nnU-Net's ``imagesTr/``, or else its own.

    Masks are not looked at.

    >>> import tempfile
    >>> import numpy as np
    >>> from patchtree.io.images import write_image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in "ab":
    ...     write_image(root / f"{name}.png", np.eye(8, dtype=np.uint8))
    >>> [pair.name for pair in find_unlabelled(root).pairs]
    ['a', 'b']

    Raises:
        InputError: there is no such folder, it has no images, two have the same stem, a channel is missing, or an image
            is a slide.
    """
    root = Path(root)
    if not root.is_dir():
        what = "is a file" if root.exists() else "no such folder"
        raise InputError(f"{root}: {what}; give a folder with images in it")
    inside = next((root / name for name in ("images", "imagesTr") if (root / name).is_dir()), root)
    images: dict[str, Path] = {}
    for path in list_images(inside):
        if path.stem in images:
            raise InputError(f"{path}: has the same stem as {images[path.stem].name}; rename one of the two")
        if is_pyramid(path):
            raise InputError(f"{path}: is a slide, which is not read here; export regions of it as images")
        images[path.stem] = path
    if inside.name == "imagesTr":
        cases = group_cases(images.values())
    else:
        cases = {stem: (path,) for stem, path in images.items()}
    pairs = tuple(Pair(name, files[0], files[0], files[1:], label=0) for name, files in sorted(cases.items()))
    return DataSet(root, pairs, {})
