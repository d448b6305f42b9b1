"""Volumes: scans of many slices, in NIfTI, NRRD or MetaImage, and class ids in the same place. SimpleITK reads them."""

from __future__ import annotations

import gzip
import math
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchtree.errors import InputError
from patchtree.files import replacing, split_suffix
from patchtree.io.images import read_head
from patchtree.io.raster import count_no_numbers, refuse_no_numbers, settle_type

_READ_AT_ONCE = 1 << 22
_GZIP = b"\x1f\x8b"
_NIFTI = (".nii", ".nii.gz")
# Of NIfTI's header the bytes, of its types those of floats.
_NIFTI_HEAD = 348
_NIFTI_FLOATS = {16: "f4", 64: "f8"}
# What is as large as this share of a voxel, or of a direction of length 1, is no rounding.
_ELSEWHERE = 0.01


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        shape: ``(D, H, W)``.
        spacing: millimetres from a slice, a row and a column to the next.
        origin: of the first voxel, in millimetres, x, y and z.
        direction: of columns, rows and slices, 9 numbers, as SimpleITK gives them.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def covers(self, other: Grid) -> bool:
        """Tell whether the voxels of another grid lie where this one's do.

        >>> grid = Grid((4, 5, 6), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> grid.covers(Grid(grid.shape, grid.spacing, (0.0, 0.0, 1.0), grid.direction))
        False
        """
        near = _ELSEWHERE * min(self.spacing)
        return (
            self.shape == other.shape
            and np.allclose(self.spacing, other.spacing, rtol=0, atol=near)
            and np.allclose(self.origin, other.origin, rtol=0, atol=near)
            and np.allclose(self.direction, other.direction, rtol=0, atol=_ELSEWHERE)
        )


def read_volume(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a volume as ``(D, H, W)`` or ``(D, H, W, C)``, in uint8, uint16, int16 or float32.

    Slices, rows and columns are in the order of the file; a fourth axis holds channels. 8 and 16 bits stay as stored,
    unless the file scales them; other integers and floats become float32.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "scan.nii.gz"
    >>> write_volume(path, np.zeros((3, 4, 5), np.int16))
    >>> read_volume(path).shape
    (3, 4, 5)

    Raises:
        InputError: the file is missing, empty, cut short, has not three or four axes, holds NaN or infinity, or
            SimpleITK is not installed.
    """
    return settle_type(_read(Path(path)))


def read_volume_mask(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read class ids, ``(D, H, W)``, in the integer type of the file (int64 for floats).

    Raises:
        InputError: as for `read_volume`, and where values are no whole numbers or there are several channels.
    """
    path = Path(path)
    ids = _read(path)
    if ids.ndim != 3:
        raise InputError(f"{path}: a mask must hold class ids in one channel, not {ids.shape[3]}; save ids")
    if ids.dtype.kind not in "iu":
        with np.errstate(invalid="ignore"):
            whole = ids.astype(np.int64)
        if not np.array_equal(whole, ids):
            raise InputError(f"{path}: a mask must hold class ids, but has values that are no whole numbers; save ids")
        ids = whole
    return ids


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """Read where the voxels of a volume lie, from the header alone.

    Raises:
        InputError: as for `read_volume`.
    """
    reader = _open(Path(path))
    columns, rows, slices = reader.GetSize()[:3]
    x, y, z = reader.GetSpacing()[:3]
    direction = np.reshape(reader.GetDirection(), (reader.GetDimension(),) * 2)[:3, :3]
    return Grid((slices, rows, columns), (z, y, x), reader.GetOrigin()[:3], tuple(direction.ravel().tolist()))


def count_channels(path: str | os.PathLike[str]) -> int:
    """Count the channels of a volume, from the header alone.

    Raises:
        InputError: as for `read_volume`.
    """
    reader = _open(Path(path))
    return int(reader.GetNumberOfComponents() * math.prod(reader.GetSize()[3:]))


def warn_elsewhere(files: Sequence[Path]) -> None:
    """Warn of files, further channels or a mask, that do not lie where the first, a volume, does.

    Raises:
        InputError: as for `read_volume`.
    """
    image, *others = files
    grid = read_grid(image)
    for path in others:
        if not grid.covers(read_grid(path)):
            warnings.warn(
                f"{image}: {path} lies elsewhere by its spacing, origin or direction; voxels are taken to be in the "
                "same order",
                stacklevel=2,
            )


def write_volume(path: str | os.PathLike[str], values: ArrayLike, grid: Grid | None = None) -> None:
    """Write ``(D, H, W)`` or ``(D, H, W, C)``, compressed, in the format of the suffix; `read_volume` gives it back.

    Args:
        path: ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``.
        values: of any type that the format takes; booleans are written as 0 and 1.
        grid: where the voxels lie; None: 1 mm apart.

    Raises:
        InputError: the values do not fit the grid or the format, or the file cannot be written.
    """
    sitk, path, values = _simpleitk(path), Path(path), np.asarray(values)
    if values.ndim not in (3, 4) or values.size == 0 or (grid is not None and values.shape[:3] != grid.shape):
        fit = "" if grid is None else f" on a grid of {grid.shape}"
        raise InputError(f"{path}: a volume is (D, H, W) or (D, H, W, C){fit}, not {values.shape}")
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path}: a volume of {values.dtype} cannot be written; give booleans, integers or floats")
    values = values.view(np.uint8) if values.dtype == bool else values
    try:
        # Channels are a fourth axis of a NIfTI, as most programs have them, and parts of a voxel elsewhere.
        parts = values.ndim == 4 and split_suffix(path)[1].lower() not in _NIFTI
        values = np.moveaxis(values, 3, 0) if values.ndim == 4 and not parts else values
        image = sitk.GetImageFromArray(np.ascontiguousarray(values), isVector=parts)
        if grid is not None:
            turned = np.eye(image.GetDimension())
            turned[:3, :3] = np.reshape(grid.direction, (3, 3))
            more = image.GetDimension() - 3
            image.SetSpacing((*grid.spacing[::-1], *(1.0,) * more))
            image.SetOrigin((*grid.origin, *(0.0,) * more))
            image.SetDirection(turned.ravel().tolist())
        with replacing(path) as temporary:
            sitk.WriteImage(image, str(temporary), useCompression=path.suffix.lower() != ".nii")
    except (RuntimeError, TypeError, KeyError) as error:
        raise InputError(f"{path}: cannot be written ({_reason(error)}); check the disk, or name it .nii.gz") from error


def suffix_for(path: str | os.PathLike[str]) -> str:
    """Give the suffix of what is written for a volume: its own, but for formats of two files or without compression.

    >>> suffix_for("scan.nrrd"), suffix_for("scan.nii"), suffix_for("scan.mhd")
    ('.nrrd', '.nii.gz', '.mha')
    """
    suffix = Path(path).suffix.lower()
    return {".nrrd": ".nrrd", ".mha": ".mha", ".mhd": ".mha"}.get(suffix, ".nii.gz")


def _simpleitk(path: str | os.PathLike[str]) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(f"{path}: is a volume, which SimpleITK reads; pip install 'patchtree[volumes]'") from error
    # What it finds odd in a header it prints, from C++.
    sitk: Any = SimpleITK
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


def _open(path: Path) -> Any:
    """Read a header."""
    sitk = _simpleitk(path)
    packed, suffix = read_head(path).startswith(_GZIP), split_suffix(path)[1].lower()
    if packed != (suffix == ".nii.gz") and suffix in _NIFTI:
        what, name = ("compressed", ".nii.gz") if packed else ("not compressed", ".nii")
        raise InputError(f"{path}: is {what}; name it {name} if it is a NIfTI, or export it again")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _silent(suffix):
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)}); copy or export it again") from error
    size = reader.GetSize()
    if len(size) not in (3, 4):
        what = " x ".join(map(str, size))
        raise InputError(f"{path}: has {len(size)} axes ({what}), and a volume has 3; save each volume, or the image")
    return reader


def _read(path: Path) -> NDArray[Any]:
    """Read all voxels, ``(D, H, W)`` or ``(D, H, W, C)``."""
    reader, suffix = _open(path), split_suffix(path)[1].lower()
    bad = 0
    try:
        if suffix in _NIFTI:
            bad = _check_nifti(path, suffix == ".nii.gz")
        with _silent(suffix):
            image = reader.Execute()
        values = np.asarray(_simpleitk(path).GetArrayFromImage(image))
    except (RuntimeError, TypeError, EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)}); copy or export it again") from error
    bad += count_no_numbers(values)
    refuse_no_numbers(path, bad, values.size)
    if reader.GetDimension() == 4:
        values = np.ascontiguousarray(np.moveaxis(values, 0, 3))
        values = values[..., 0] if values.shape[3] == 1 else values
    if values.dtype.kind not in "iuf" or values.ndim > 4:
        raise InputError(f"{path}: has voxels of {values.dtype}, {values.shape}; save one real number a channel")
    return values


def _check_nifti(path: Path, packed: bool) -> int:
    """Refuse a NIfTI that is cut short, and count its values that are no numbers: ITK takes both for zeros.

    Source of the header's layout: nifti1.h, nifti.nimh.nih.gov.

    Raises:
        EOFError: it is cut short.
    """
    with gzip.open(path) if packed else path.open("rb") as file:
        head = file.read(_NIFTI_HEAD)
        order = "<" if int.from_bytes(head[:4], "little") == _NIFTI_HEAD else ">"
        axes, *sides = struct.unpack_from(f"{order}8h", head, 40)
        kind, bits = struct.unpack_from(f"{order}hh", head, 70)
        (start,) = struct.unpack_from(f"{order}f", head, 108)
        left, bad = math.prod(sides[:axes]) * bits // 8, 0
        file.seek(int(start))
        while left:
            part = file.read(min(left, _READ_AT_ONCE))
            if len(part) < min(left, _READ_AT_ONCE):
                raise EOFError("it is cut short")
            left -= len(part)
            if kind in _NIFTI_FLOATS:
                bad += count_no_numbers(np.frombuffer(part, f"{order}{_NIFTI_FLOATS[kind]}"))
        # The checksum of what is compressed stands at its end.
        while packed and file.read(_READ_AT_ONCE):
            pass
    return bad


@contextmanager
def _silent(suffix: str) -> Iterator[None]:
    """Keep in what ITK's reader of MetaImages prints of a file that it then refuses."""
    if suffix not in (".mha", ".mhd"):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _reason(error: Exception) -> str:
    """Give what a message of ITK says at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or lines[-1].startswith("Reason: "):
        return "it is damaged or cut short, or the file that holds its voxels is missing"
    return lines[-1].rpartition("ERROR: ")[2].rpartition("): ")[2].rstrip(".")
