"""PNG, JPEG, WebP, BMP and GIF: Pillow reads the header, the fastest decoder that is right reads the pixels.

On a 4288 x 2848 photograph imagecodecs takes 23 ms for JPEG (OpenCV 50, Pillow 118), 153 ms for PNG (OpenCV 217, Pillow
333) and 50 ms for WebP (Pillow 199), and it keeps the 16 bits of an RGB PNG, which Pillow does not.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from patchtree.errors import InputError
from patchtree.io.raster import Raster, check_pages, check_room, decoding, upright_shape

# Made directly, not by Image.open: that has a limit on pixels which a large but honest image crosses.
_HEADERS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_ORIENTATION = 0x0112  # EXIF tag
_PNG_SIDE = 1_000_000  # libpng's own limit


def size(path: Path, kind: str) -> tuple[int, int]:
    """(H, W) of an upright image, from its header."""
    with path.open("rb") as file, decoding(path, kind):
        header = _header(path, kind, file)
        return upright_shape((header.height, header.width), _orientation(header))


def read(path: Path, kind: str) -> Raster:
    """Decode a file that is known to be of `kind`."""
    with decoding(path, kind):
        data = path.read_bytes()
        header = _header(path, kind, io.BytesIO(data))
        check_pages(path, f"animated {kind}", getattr(header, "n_frames", 1))
        stored, palette = _stored_as(header), None
        check_room(path, (header.height, header.width, len(header.getbands())), 2 if "16" in stored else 1)
        orientation = _orientation(header)
        if kind == "JPEG" and header.mode != "CMYK":
            samples = _decode_jpeg(path, data)
        elif kind == "PNG" and stored not in ("1", "L;2", "L;4") and header.mode != "P":
            samples = _decode_png(path, data)
        elif kind == "WebP":
            samples = imagecodecs.webp_decode(data)
        else:
            samples, palette = _decode(header)
        alpha = samples.ndim == 3 and samples.shape[2] in (2, 4)
        return Raster(samples, palette, alpha=alpha, orientation=orientation, lossy=kind == "JPEG")


def _header(path: Path, kind: str, file: IO[bytes]) -> ImageFile.ImageFile:
    try:
        return _HEADERS[kind](file)
    except SyntaxError as error:  # so Pillow calls it, and has the same words for no pixels and for nonsense
        raise InputError(
            f"{path}: {kind} whose header is damaged, cut short or claims no pixels; copy or export the file again"
        ) from error
    except Image.DecompressionBombError as error:  # of these only WebP checks, from 179 million on
        raise InputError(f"{path}: {kind} of too many pixels for Pillow; save it as PNG or TIFF") from error


def _stored_as(header: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout of the samples in the file, such as `L;4` or `RGB;16B`; WebP has none."""
    args = header.tile[0].args if header.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _orientation(header: ImageFile.ImageFile) -> int:
    try:
        # Not header.getexif(): for PNG that decodes the pixels in search of a late chunk.
        found = Image.Image.getexif(header).get(_ORIENTATION, 1)
    except Exception:  # damaged metadata is no reason to refuse good pixels
        return 1
    return found if found in range(1, 9) else 1


def _decode_jpeg(path: Path, data: bytes) -> NDArray[Any]:
    # libjpeg fills what is missing with grey and says nothing. The end marker cannot occur inside a scan, only in the
    # segments before the first one, where a thumbnail may sit.
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        filler = data[at + 1 : at + 2] == b"\xff"
        at += 1 if filler else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if data.find(b"\xff\xd9", at) < 0:
        raise InputError(f"{path}: JPEG cut short (no end marker); copy or export the file again")
    return imagecodecs.jpeg8_decode(data)


def _decode_png(path: Path, data: bytes) -> NDArray[Any]:
    if max(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) > _PNG_SIDE:
        raise InputError(f"{path}: PNG with a side of more than {_PNG_SIDE:,} pixels; save it as TIFF")
    # libpng writes its opinion of colour profiles and text to stderr: it is given what makes the pixels and no more.
    chunks, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            chunks.append(data[at:end])
        at = end
    return imagecodecs.png_decode(b"".join(chunks))


def _decode(header: ImageFile.ImageFile) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Samples and palette by Pillow, for what imagecodecs would turn into colours."""
    match header.mode:
        case "1":
            return np.array(header).astype(np.uint8), np.array([0, 255], np.uint8)
        case "L" if _stored_as(header) in ("L;2", "L;4"):  # Pillow spreads 2 and 4 bits over 0 to 255
            step = 255 // (2 ** int(_stored_as(header)[2]) - 1)
            return np.array(header) // step, np.arange(0, 256, step, dtype=np.uint8)
        case "P":
            samples = np.array(header)
            header.apply_transparency()
            colours = np.array(header.getpalette("RGBA"), np.uint8).reshape(-1, 4)
            palette = np.zeros((256, 4), np.uint8)
            palette[: len(colours)] = colours
            return samples, palette if header.has_transparency_data else palette[:, :3]
        case "L" | "LA" | "RGB" | "RGBA":
            return np.array(header), None
        case _:
            return np.array(header.convert("RGBA" if header.has_transparency_data else "RGB")), None


def encode_png(array: NDArray[Any]) -> bytes:
    """PNG of (H, W) or (H, W, 3), uint8 or uint16.

    Run lengths of the difference to the row above: the fastest and the smallest of all settings on masks, and on
    photographs a third of the time of zlib's level 6 for 8% more bytes.
    """
    # Noise grows by an eighth at most, each row by a byte; the encoder's own guess is too small for narrow images.
    room = array.nbytes * 9 // 8 + 2 * len(array) + 4096
    png = imagecodecs.png_encode(
        array, level=1, strategy=imagecodecs.PNG.STRATEGY.RLE, filter=imagecodecs.PNG.FILTER.UP, out=room
    )
    return bytes(png)
