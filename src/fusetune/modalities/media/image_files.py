"""Decoding of image files to upright RGB on a white background, with precise errors."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from fusetune._optional import optional_import
from fusetune.errors import BadCell, MissingExtra
from fusetune.modalities.media.cells import CellLocation, read_part, split_cell

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})
STARTS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{8}|RIFF.{4}WEBP|II\*\0|MM\0\*", re.DOTALL)

MAX_PIXELS = 64 * 10**6
"""Images with more pixels are refused before they are decoded, as a small file may claim a huge image."""
MAX_ASPECT = 100
"""Images with a larger aspect ratio are refused, as resizing the short side would make the other one huge."""

_OVERSAMPLING = 3
_JPEG_COLOURS = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_TOO_MANY = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_DO = "open and save the picture again in another program, or empty the cell"


def decode_images(cell: Any, location: CellLocation, *, most: int, used_at: int | None = None) -> list[Image.Image]:
    """Decode the images of a cell; see `decode_image`.

    Args:
        cell: of the table; see `fusetune.modalities.media.cells`.
        location: of the cell.
        most: maximum number of images.
        used_at: see `decode_image`.

    Raises:
        BadCell: an image does not exist or cannot be decoded, or the cell has none or too many.
    """
    parts = split_cell(cell, location.base_dir)
    if not parts:
        raise location.bad(cell, "it names no picture", "give a path, or empty the cell")
    if len(parts) > most:
        why = f"it has {len(parts)} pictures, more than max_pictures={most}"
        raise location.bad(cell, why, "raise max_pictures, or give fewer")
    names = [part if isinstance(part, str) else None for part in parts]
    return [
        decode_image(read_part(part, location), location, name, used_at=used_at)
        for part, name in zip(parts, names, strict=True)
    ]


def decode_image(
    data: bytes, location: CellLocation, name: object = None, *, used_at: int | None = None
) -> Image.Image:
    """Decode one image.

    Of an animation the first frame is used. The EXIF orientation is applied, transparent pixels become white, 16-bit
    grey levels are divided by 257 (a scan with 12 significant bits stays dark), and CMYK and other modes are converted
    without colour profiles.

    Args:
        data: the file's bytes.
        location: of the cell, for errors.
        name: the cell's value in errors; the number of bytes by default.
        used_at: the longer side, in pixels, to which the image is resized afterwards. A JPEG is then decoded at a half,
            a quarter or an eighth of its size, with each side at least three times `used_at`. This is several times
            faster for photos; after resizing, the mean difference is less than half a grey level.

    Returns:
        Mode RGB, upright.

    Raises:
        BadCell: it is not an image in a known format, corrupt, truncated or too large.
    """
    shown = data if name is None else name
    # Other libraries set this for the process; truncated images would then be decoded as partly grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    image = _open(data, location, shown)
    _check_size(image, location, shown)
    try:
        if used_at:
            image.draft(None, (_OVERSAMPLING * used_at,) * 2)
        if image.format == "PNG":
            # Pillow checks the CRC of the pixel data only in `verify`.
            Image.open(io.BytesIO(data), formats=["PNG"]).verify()
        decoded = _decode_jpeg(data, image) if image.format in ("JPEG", "MPO") else image
        decoded.load()
    except Exception as error:  # decoders raise almost any built-in error on broken bytes
        why = f"the {image.format} picture of {len(data):,} bytes is corrupt or cut off: {_message(error)}"
        raise location.bad(shown, why, _DO) from error
    try:
        return _to_rgb(_transpose_exif(decoded), location, shown)
    except BadCell:
        raise
    except Exception as error:
        why = f"the {image.format} picture of mode {image.mode} cannot be made RGB: {_message(error)}"
        raise location.bad(shown, why, _DO) from error


def _decode_jpeg(data: bytes, image: Image.Image) -> Image.Image:
    """Decode a JPEG at the size of Pillow's draft mode, and detect damage that Pillow ignores.

    On a damaged stream libjpeg continues with wrong pixels and only warns, and Pillow drops its warnings. The pixels
    of intact streams are the same, as both use libjpeg-turbo.

    Raises:
        ValueError: the stream is damaged.
    """
    try:
        simplejpeg = optional_import("simplejpeg", "to notice damage inside a JPEG")
    except MissingExtra:
        return image
    width, height = image.size
    try:
        pixels = simplejpeg.decode_jpeg(data, _JPEG_COLOURS[image.mode], min_height=height, min_width=width)
    except (ValueError, KeyError) as error:
        if str(error).startswith("Corrupt JPEG data") and not _is_padding(data, str(error)):
            raise
        return image  # Pillow decodes it
    if image.mode == "CMYK" or pixels.shape[:2] != (height, width):
        return image
    decoded = Image.fromarray(pixels.squeeze(2) if image.mode == "L" else pixels)
    decoded.info = image.info  # with the EXIF orientation
    return decoded


def _is_padding(data: bytes, warning: str) -> bool:
    """Return whether the extraneous bytes are padding, one repeated byte before the end, as some cameras write it."""
    match = _TOO_MANY.search(warning)
    end = data.rfind(b"\xff\xd9")
    return match is not None and len(set(data[max(end - int(match[1]), 0) : end])) == 1


def _open(data: bytes, location: CellLocation, shown: object) -> Image.Image:
    """Open an image, reading its header."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        why = f"it claims far more pixels than the {MAX_PIXELS:,} allowed (a decompression bomb)"
        raise location.bad(shown, why, "make the picture smaller") from error
    except UnidentifiedImageError as error:
        if STARTS.match(data):
            why = f"the picture of {len(data):,} bytes is cut off or corrupt within its header"
            raise location.bad(shown, why, _DO) from error
        why = f"it is not a picture of a known format: it starts with {data[:8]!r}"
        raise location.bad(shown, why, f"use one of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise almost any built-in error on broken bytes
        raise location.bad(shown, f"the picture is corrupt: {_message(error)}", _DO) from error


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__


def _check_size(image: Image.Image, location: CellLocation, shown: object) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        why = f"it has {width} × {height} pixels, more than the {MAX_PIXELS:,} allowed (a decompression bomb?)"
        raise location.bad(shown, why, "make the picture smaller")
    if width < 1 or height < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        why = f"it has {width} × {height} pixels: one side is more than {MAX_ASPECT} times the other"
        raise location.bad(shown, why, "cut the picture, or empty the cell")


def _transpose_exif(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Broken EXIF data holds no orientation, and the pixels are intact.
        return image


def _to_rgb(image: Image.Image, location: CellLocation, shown: object) -> Image.Image:
    if image.mode.startswith("I"):
        image = _from_integers(image, location, shown)
    elif image.mode == "F":
        image = _from_floats(image, location, shown)
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        result = Image.new("RGB", image.size, "white")
        result.paste(foreground, mask=foreground)
        return result
    return image.convert("RGB")


def _from_integers(image: Image.Image, location: CellLocation, shown: object) -> Image.Image:
    """Convert grey levels of 16 bits, possibly stored in 32, to 8 bits: 65535 becomes 255."""
    levels = np.asarray(image)  # (height, width)
    if levels.min() < 0 or levels.max() > 65535:
        why = f"its grey levels go from {levels.min()} to {levels.max()}, beyond 16 bits"
        raise location.bad(shown, why, "save it with 8 or 16 bits")
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _from_floats(image: Image.Image, location: CellLocation, shown: object) -> Image.Image:
    levels = np.asarray(image)
    if not np.isfinite(levels).all() or levels.min() < 0 or levels.max() > 1:
        why = f"its grey levels are floats from {levels.min()} to {levels.max()}, not from 0 to 1"
        raise location.bad(shown, why, "scale them to 0 to 1, or save it with 8 or 16 bits")
    return Image.fromarray(np.rint(levels * 255).astype(np.uint8))


def image_to_png(cell: Any) -> bytes | None:
    """Return an in-memory image as the bytes of a PNG file, None for any other cell.

    Args:
        cell: a PIL image, or a uint8 array of shape (height, width), (height, width, 3) or (height, width, 4).
    """
    pixels = isinstance(cell, np.ndarray) and cell.dtype == np.uint8 and cell.size > 0
    if pixels and (cell.ndim == 2 or (cell.ndim == 3 and cell.shape[2] in (3, 4))):
        cell = Image.fromarray(cell)
    if not isinstance(cell, Image.Image):
        return None
    file = io.BytesIO()
    (cell if cell.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else cell.convert("RGB")).save(file, "PNG")
    return file.getvalue()
