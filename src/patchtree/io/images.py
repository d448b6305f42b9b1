"""Images and masks, read by what the file is and written whole or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchtree.errors import InputError, say_size
from patchtree.files import replacing
from patchtree.ids import type_of
from patchtree.io import stills, tiff
from patchtree.io.raster import Raster, count_no_numbers, fill_missing, refuse_no_numbers, settle_type, upright

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")

# Scans of many slices, which `patchtree.io.volumes` reads.
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",  # 64-bit offsets
    b"MM\x00+": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
}
_PNG_PIXELS = 2**30  # what OpenCV and viewers built on it open
_PNG_SIDE = 2**16


def read_image(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an image as (H, W) or (H, W, C), upright, in uint8, uint16, int16 or float32.

    PNG, JPEG, TIFF, BMP, WebP and GIF, told apart by what they are, not by suffix. 8 and 16 bits stay as stored; other
    integers and floats become float32. Palettes and CMYK become RGB (without colour profiles), one-bit images 0 and
    255. EXIF orientation is applied. Alpha is no channel: where it is not opaque, the image is put on white and a
    warning says so. Channels of a TIFF that are not declared to be alpha are kept, however many. What GDAL marked as no
    data becomes the nearest value that was measured, with a warning.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "image.tif"
    >>> write_image(path, np.zeros((5, 7, 6), np.uint16))
    >>> read_image(path).shape
    (5, 7, 6)

    Raises:
        InputError: the file is missing, empty, cut short, not an image, of several pages, of no pixels, larger than
            the free memory, or holds NaN or infinite pixels.
    """
    path = Path(path)
    raster = _read(path)
    image = _colours(path, raster)
    if image.dtype.kind == "c":
        raise InputError(f"{path}: has complex numbers for pixels; save their magnitude as float32")
    image = settle_type(image)
    if raster.missing is not None:
        image = fill_missing(path, image, raster.missing)
    refuse_no_numbers(path, count_no_numbers(image), image.size)
    return upright(image.astype(image.dtype.newbyteorder("="), copy=False), raster.orientation)


def read_mask(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a mask as (H, W) class ids, upright, in the integer type of the file (int32 for floats).

    A palette's ids are its indices, not its colours; one-bit masks hold 0 and 1. Three equal channels count as one.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "mask.png"
    >>> write_mask(path, np.eye(2, dtype=bool))
    >>> read_mask(path)
    array([[1, 0],
           [0, 1]], dtype=uint8)

    Raises:
        InputError: as for `read_image`, and where the file holds colours, transparent pixels, fractions, or is a JPEG,
            whose compression changes ids.
    """
    path = Path(path)
    raster = _read(path)
    ids = raster.samples
    if raster.lossy:
        raise InputError(f"{path}: a mask in JPEG, whose compression changes class ids; export it again as PNG")
    if raster.alpha:
        if not _opaque(ids[..., -1]):
            raise InputError(f"{path}: a mask with transparent pixels; save the class ids as one channel without alpha")
        ids = ids[..., :-1]
    if ids.ndim == 3:
        if not all(np.array_equal(ids[..., 0], ids[..., channel]) for channel in range(1, ids.shape[2])):
            raise InputError(
                f"{path}: a mask must hold class ids in one channel, but its shape is {ids.shape} "
                "and the channels differ; replace the colours by ids and save it again"
            )
        ids = ids[..., 0]
    if ids.dtype.kind not in "iu":
        with np.errstate(invalid="ignore"):
            whole = ids.real.astype(np.int32)
        if not np.array_equal(whole, ids):
            raise InputError(f"{path}: a mask must hold class ids, but has values that are no whole numbers; save ids")
        ids = whole
    return upright(ids.astype(ids.dtype.newbyteorder("="), copy=False), raster.orientation)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) of an image or mask as it will be read, from the header alone.

    Raises:
        InputError: the file is missing, empty, or its header cannot be read.
    """
    path = Path(path)
    kind = _kind(path)
    return tiff.size(path) if kind == "TIFF" else stills.size(path, kind)


def write_image(path: str | os.PathLike[str], image: ArrayLike) -> None:
    """Write (H, W) or (H, W, C) without loss, as PNG or TIFF by suffix; `read_image` gives it back.

    PNG takes uint8 and uint16 in 1 or 3 channels, TIFF any type and number of channels. bool is written as 0 and 255.

    Raises:
        InputError: the array does not fit the format, or the file cannot be written.
    """
    path, image = Path(path), np.asarray(image)
    if image.ndim not in (2, 3) or image.size == 0:
        raise InputError(f"{path}: an image is (H, W) or (H, W, C) with pixels, not {image.shape}")
    _write(path, image.astype(np.uint8) * np.uint8(255) if image.dtype == bool else image)


def write_mask(path: str | os.PathLike[str], ids: ArrayLike) -> None:
    """Write (H, W) class ids, as PNG or tiled TIFF by suffix (see `mask_suffix`); `read_mask` gives them back.

    uint8 up to id 255, else uint16.

    Raises:
        InputError: the array is not of whole numbers from 0 to 65,535, or the file cannot be written.
    """
    path, ids = Path(path), np.asarray(ids)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "biu":
        raise InputError(f"{path}: a mask is (H, W) of integers, not {ids.shape} of {ids.dtype}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > 65535:
        raise InputError(f"{path}: class ids from {low} to {high} do not fit a mask; use 0 to 65535")
    _write(path, ids.astype(type_of(high + 1), copy=False))


def mask_suffix(shape: tuple[int, ...]) -> str:
    """`.png`, or `.tif` for a mask of (H, W) that is too large for what opens PNG.

    >>> mask_suffix((4096, 4096)), mask_suffix((65536, 65536))
    ('.png', '.tif')
    """
    return ".png" if shape[0] * shape[1] <= _PNG_PIXELS and max(shape[:2]) <= _PNG_SIDE else ".tif"


def list_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files to read: each path that is a file as it is, each folder as its images by name, hidden files left out.

    Raises:
        InputError: a path does not exist, or a folder has no image in it.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; check the path")
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
        if not inside:
            refuse_volumes(sorted(path.iterdir()))
            raise InputError(f"{path}: a folder without images ({', '.join(IMAGE_SUFFIXES)}); name one that has some")
        found += inside
    return found


def read_head(path: Path) -> bytes:
    """Read the first bytes of a file.

    Raises:
        InputError: there is no such file, it cannot be read, or it is empty.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name an image in it")
    if path.exists() and not path.is_file():
        # To open a pipe that nobody writes to would take for ever.
        raise InputError(f"{path}: is a pipe or a device; copy what it gives to a file and name that")
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {os.strerror(error.errno or 0).lower()}; check the file") from error
    if not head:
        raise InputError(f"{path}: is empty (0 bytes); copy or export it again")
    return head


def _kind(path: Path) -> str:
    """What a file is, by its first bytes."""
    head = read_head(path)
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "WebP"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    refuse_volumes([path])
    raise InputError(f"{path}: not an image in PNG, JPEG, TIFF, BMP, WebP or GIF; convert it to one of these")


def is_volume(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a volume, by its name.

    >>> is_volume("scan.nii.gz"), is_volume("photo.png")
    (True, False)
    """
    return Path(path).name.lower().endswith(VOLUME_SUFFIXES)


def refuse_volumes(paths: Iterable[Path]) -> None:
    """Say what to do with a file of a volume, if one of some files is; the others are passed over.

    Raises:
        InputError: one is, by its name.
    """
    for path in paths:
        if is_volume(path):
            raise InputError(
                f"{path}: is a volume, and an image is wanted; volumes are for training with masks and prediction, and "
                "for patchtree.read_volume"
            )


def is_still(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as images but TIFFs do, whatever its suffix."""
    try:
        return _kind(Path(path)) != "TIFF"
    except InputError:
        return False


def _read(path: Path) -> Raster:
    kind = _kind(path)
    return tiff.read(path) if kind == "TIFF" else stills.read(path, kind)


def _colours(path: Path, raster: Raster) -> NDArray[Any]:
    """Samples seen through their palette, and without alpha."""
    image, alpha = raster.samples, raster.alpha
    if raster.palette is not None:
        image = np.take(raster.palette, image, axis=0, mode="clip")  # a third of the time of palette[image]
        alpha = alpha or raster.palette.shape[1:] == (4,)
    if not alpha:
        return image
    colours, opacity = image[..., :-1], image[..., -1]
    if not _opaque(opacity):
        warnings.warn(f"{path}: transparent pixels are put on white", stacklevel=3)
        colours = _on_white(colours, opacity[..., None], raster.premultiplied)
    return colours[..., 0] if colours.shape[-1] == 1 else colours


def _opaque(alpha: NDArray[Any]) -> bool:
    return bool((alpha == _white(alpha.dtype)).all())


def _white(dtype: np.dtype[Any]) -> int:
    return 1 if dtype.kind == "f" else int(np.iinfo(dtype).max)


def _on_white(colours: NDArray[Any], alpha: NDArray[Any], premultiplied: bool) -> NDArray[Any]:
    """Colours (H, W, C) of opacity (H, W, 1) over white, rounded to their own type."""
    white = _white(colours.dtype)
    share = alpha.astype(np.float32) / white
    mixed = (colours if premultiplied else colours * share) + white * (1 - share)
    if colours.dtype.kind != "f":
        mixed = np.rint(mixed.clip(max=white))
    return mixed.astype(colours.dtype)


def _write(path: Path, array: NDArray[Any]) -> None:
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    match path.suffix.lower():
        case ".png":
            array = array[..., 0] if array.shape[2:] == (1,) else array
            if array.dtype not in (np.uint8, np.uint16) or array.shape[2:] not in ((), (3,)):
                raise InputError(f"{path}: PNG does not hold {array.shape} of {array.dtype}; name it .tif")
            if mask_suffix(array.shape) != ".png":
                raise InputError(f"{path}: {say_size(array.shape)} are too many for PNG; name it .tif")
            with replacing(path) as temporary:
                temporary.write_bytes(stills.encode_png(array))
        case ".tif" | ".tiff":
            with replacing(path) as temporary:
                tiff.write(temporary, array)
        case suffix:
            raise InputError(f"{path}: cannot write {suffix or 'a file without a suffix'}; name it .png or .tif")
