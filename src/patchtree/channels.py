"""Images whose channels are files of their own, named as nnU-Net names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchtree.errors import InputError, say_size
from patchtree.files import split_suffix
from patchtree.io.images import is_volume, read_image
from patchtree.io.volumes import count_channels, read_volume, warn_elsewhere

# nnU-Net's folders, whose files are all named so.
_CASES = ("imagesTr", "imagesTs")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def read_channels(files: Sequence[Path], at_least: int = 1) -> NDArray[Any]:
    """Read an image from one file, or from several that hold its channels, ``(H, W)`` or ``(H, W, C)``; or a volume.

    Args:
        files: in the order of the channels.
        at_least: the channels that are needed. Where there are fewer, or a gap, and the files have nnU-Net's names, the
            one that is missing is named.

    Raises:
        InputError: a file cannot be read or is missing, or files differ in size or type.
    """
    parts: list[NDArray[Any]] = []
    ndim, read = (3, read_volume) if is_volume(files[0]) else (2, read_image)
    for path in files:
        parts.append(read(path))
        if parts[-1].shape[:ndim] != parts[0].shape[:ndim] or parts[-1].dtype != parts[0].dtype:
            raise InputError(
                f"{path}: {say_size(parts[-1].shape, ndim)} of {parts[-1].dtype}, but {files[0].name} is "
                f"{say_size(parts[0].shape, ndim)} of {parts[0].dtype}; give all channels of an image one size and type"
            )
    if ndim == 3 and len(files) > 1:
        warn_elsewhere(files)
    image = parts[0]
    if len(parts) > 1:
        image = np.concatenate([part if part.ndim > ndim else part[..., None] for part in parts], axis=-1)
    found = image.shape[ndim] if image.ndim > ndim else 1
    numbers = [split_channel(path)[1] for path in files]
    missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
    if None not in numbers and (found < at_least or missing < len(numbers) > 1):
        path = files[0].with_name(f"{split_channel(files[0])[0]}_{missing:04}{split_suffix(files[0])[1]}")
        raise InputError(f"{path}: is missing, an image has {at_least} channels and there are {found}; name it too")
    return image


def group_channels(files: Iterable[Path], channels: int) -> list[tuple[Path, ...]]:
    """Sort files into images: nnU-Net's ``CASE_0000.tif``, ``CASE_0001.tif``, ... are the channels of one.

    Files that are so named and have all channels in themselves are images of their own, as the frames of a film.

    >>> import tempfile
    >>> from patchtree.io.images import write_image
    >>> folder = Path(tempfile.mkdtemp())
    >>> files = [folder / name for name in ("a_0000.png", "a_0001.png", "b.png")]
    >>> for path in files:
    ...     write_image(path, np.eye(8, dtype=np.uint8))
    >>> [len(image) for image in group_channels(files, channels=2)]
    [2, 1]

    Args:
        files: images or channels; a file of each case is read.
        channels: of an image.
    """
    cases: dict[tuple[Path, str, str, bool], list[Path]] = {}
    for path in files:
        case, number = split_channel(path)
        cases.setdefault((path.parent, case, split_suffix(path)[1], number is None), []).append(path)
    images: list[tuple[Path, ...]] = []
    for group in cases.values():
        if len(group) > 1 and not _has_channels(group, channels):
            images.append(tuple(sorted(group)))
        else:
            images += [(path,) for path in group]
    return images


def name_of(files: Sequence[Path], name: str) -> str:
    """Give an image's name: that of nnU-Net's case if its channels are files, or if it lies where all images are cases.

    >>> name_of([Path("imagesTs/liver_7_0000.png")], "liver_7_0000"), name_of([Path("film/a_0000.png")], "a_0000")
    ('liver_7', 'a_0000')

    Args:
        files: of the image, as `group_channels` gives them.
        name: what the first file is called, by itself or in a manifest.
    """
    case, number = split_channel(files[0])
    alone = number == 0 and files[0].parent.name in _CASES and name == split_suffix(files[0])[0]
    return case if len(files) > 1 or alone else name


def split_channel(path: Path) -> tuple[str, int | None]:
    """Take nnU-Net's number of the channel off a file's name.

    >>> split_channel(Path("scan/liver_7_0001.tif")), split_channel(Path("liver.tif"))
    (('liver_7', 1), ('liver', None))
    """
    stem, _ = split_suffix(path)
    match = _CHANNEL.fullmatch(stem)
    return (match["case"], int(match["channel"])) if match else (stem, None)


def group_cases(files: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Sort nnU-Net's files ``CASE_0000.png``, ``CASE_0001.png``, ..., in this order, by case.

    Raises:
        InputError: a name ends in no channel, or a channel is missing.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for path in files:
        case, number = split_channel(path)
        if number is None:
            raise InputError(f"{path}: the name does not end in a channel such as _0000; rename it")
        if number != len(found.get(case, ())):
            raise InputError(f"{path}: channel _{len(found.get(case, ())):04} of {case} is missing; add it")
        found[case] = (*found.get(case, ()), path)
    return found


def _has_channels(files: Sequence[Path], channels: int) -> bool:
    """Whether the first file that can be read has all channels of an image in itself."""
    for path in files if channels > 1 else ():
        try:
            if is_volume(path):
                return count_channels(path) >= channels
            image = read_image(path)
        except InputError:
            continue
        return image.ndim == 3 and image.shape[2] >= channels
    return True
