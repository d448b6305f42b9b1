"""PAIP 2019: whole slides of liver, annotations and masks of the tumour."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from patchtree.errors import InputError

_SLIDE, _VIABLE, _WHOLE = ".svs", "_viable", "_whole"
_TIFFS = (".tif", ".tiff")
_MASKS = tuple(part + suffix for part in (_VIABLE, _WHOLE) for suffix in _TIFFS)


@dataclass(frozen=True)
class Case:
    """A slide with what is known of it.

    Attributes:
        name: of the case.
        slide: the image.
        viable: mask of viable tumour.
        whole: mask of the whole tumour, or None.
        annotations: the polygons that the masks were drawn from (Aperio ImageScope), or None.
    """

    name: str
    slide: Path
    viable: Path
    whole: Path | None = None
    annotations: Path | None = None


def holds_cases(root: str | os.PathLike[str]) -> bool:
    """Whether there is a mask of a case in a folder or the folders in it."""
    return any(
        file.stem.endswith(_VIABLE) and file.suffix.lower() in _TIFFS for file in Path(root).rglob(f"*{_VIABLE}.*")
    )


def without_masks(names: Iterable[str]) -> list[str]:
    """Leave out the masks of cases from the names of a folder's files.

    >>> without_masks(["01.SVS", "01_viable.tif", "01_whole.tif", "02_viable.tif"])
    ['01.SVS', '02_viable.tif']
    """
    names = list(names)
    known = {name.lower() for name in names}

    def is_mask(name: str) -> bool:
        return any(name.endswith(end) and name.removesuffix(end) + _SLIDE in known for end in _MASKS)

    return [name for name in names if not is_mask(name.lower())]


def find_cases(root: str | os.PathLike[str]) -> tuple[Case, ...]:
    """List the cases in a folder and the folders in it: ``CASE.svs`` with ``CASE_viable.tif`` beside it.

    ``CASE_whole.tif`` and ``CASE.xml`` are optional. Suffixes may be in capitals.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("01_01_0083.svs", "01_01_0083.xml", "01_01_0083_viable.tif"):
    ...     (root / name).touch()
    >>> [(case.name, case.viable.name, case.whole) for case in find_cases(root)]
    [('01_01_0083', '01_01_0083_viable.tif', None)]

    Source: Y. J. Kim et al., PAIP 2019: Liver cancer segmentation challenge, Medical Image Analysis 67, 2021.

    Raises:
        InputError: there is no such folder, no case in it, a slide without its mask, a mask without its slide, or two
            slides of one name.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give one that holds CASE.svs and CASE_viable.tif")
    files = {
        (file.parent, file.stem, file.suffix.lower()): file
        for file in sorted(root.rglob("*"))
        if file.suffix.lower() in (_SLIDE, *_TIFFS, ".xml") and not file.name.startswith(".")
    }
    cases: dict[str, Case] = {}
    for (folder, name, suffix), slide in files.items():
        if suffix != _SLIDE:
            continue
        viable, whole = (
            next((file for suffix in _TIFFS if (file := files.get((folder, name + part, suffix)))), None)
            for part in (_VIABLE, _WHOLE)
        )
        if viable is None:
            raise InputError(f"{slide}: has no mask {name}{_VIABLE}.tif beside it; add it, or move the slide elsewhere")
        if name in cases:
            raise InputError(f"{slide}: has the same name as {cases[name].slide}; rename one of the two, and its masks")
        cases[name] = Case(name, slide, viable, whole, files.get((folder, name, ".xml")))
    used = {case.viable for case in cases.values()}
    for (_, name, _), file in files.items():
        if name.endswith(_VIABLE) and file not in used:
            raise InputError(
                f"{file}: has no slide {name.removesuffix(_VIABLE)}.svs beside it; add it, or move the mask"
            )
    if not cases:
        raise InputError(f"{root}: no CASE.svs with CASE_viable.tif in it; give the folder of PAIP 2019's slides")
    return tuple(cases.values())
