"""Pictures from files: any common format to upright RGB on white, or an exact reason why not."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from fusetune._optional import optional_import
from fusetune.errors import BadCell, MissingExtra
from fusetune.modalities.media.cells import Place

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})
STARTS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{8}|RIFF.{4}WEBP|II\*\0|MM\0\*", re.DOTALL)

MAX_PIXELS = 64 * 10**6
"""Pictures with more pixels are refused before they are decoded: a small file may claim a huge picture."""
MAX_ASPECT = 100
"""Pictures with one side more than this many times the other are refused: resizing the short one would be huge."""

_SPARE_DETAIL = 3
_JPEG_COLOURS = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_TOO_MANY = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_DO = "open and save the picture again in another program, or empty the cell"


def read_picture(data: bytes, place: Place, name: object = None, *, used_at: int | None = None) -> Image.Image:
    """Decode one picture.

    The first frame of an animation; rotated as EXIF says; transparency laid on white; 16-bit grey scaled by 257 as
    its format means it (a scan that uses 12 of the bits stays dark); CMYK and others converted without profiles.

    Args:
        data: the file's bytes.
        place: the cell, for errors.
        name: what errors show as the cell's value; the bytes' length by default.
        used_at: the longer side in pixels that the picture is resized to afterwards. A JPEG is then decoded at a half,
            a quarter or an eighth of its size, each side at least three times that long: several times faster for
            photos, and after resizing less than half a grey level away from the whole picture on average.

    Returns:
        Mode RGB, upright.

    Raises:
        BadCell: it is no picture of a known format, corrupt, cut off, or too large.
    """
    shown = data if name is None else name
    # Other libraries switch this on, for the whole process; cut-off pictures would then come out partly grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    image = _open(data, place, shown)
    _check_size(image, place, shown)
    try:
        if used_at:
            image.draft(None, (_SPARE_DETAIL * used_at,) * 2)
        if image.format == "PNG":
            # Pillow skips the checksum of the pixel data unless asked.
            Image.open(io.BytesIO(data), formats=["PNG"]).verify()
        decoded = _from_jpeg(data, image) if image.format in ("JPEG", "MPO") else image
        decoded.load()
    except Exception as error:  # decoders raise about every built-in error on bytes that are broken
        why = f"the {image.format} picture of {len(data):,} bytes is corrupt or cut off: {_said(error)}"
        raise place.bad(shown, why, _DO) from error
    try:
        return _to_rgb(_upright(decoded), place, shown)
    except BadCell:
        raise
    except Exception as error:
        why = f"the {image.format} picture of mode {image.mode} cannot be made RGB: {_said(error)}"
        raise place.bad(shown, why, _DO) from error


def _from_jpeg(data: bytes, image: Image.Image) -> Image.Image:
    """Return the picture that Pillow would decode, at the size that its draft chose; noticing what Pillow passes over.

    A decoder that loses its way in a damaged stream goes on with wrong pixels, and only warns. Pillow drops these
    warnings. The pixels are the same: both are libjpeg-turbo.

    Raises:
        ValueError: there is damage inside the stream.
    """
    try:
        simplejpeg = optional_import("simplejpeg", "to notice damage inside a JPEG")
    except MissingExtra:
        return image
    width, height = image.size
    try:
        pixels = simplejpeg.decode_jpeg(data, _JPEG_COLOURS[image.mode], min_height=height, min_width=width)
    except (ValueError, KeyError) as error:
        if str(error).startswith("Corrupt JPEG data") and not _only_filled(data, str(error)):
            raise
        return image  # for Pillow to judge
    if image.mode == "CMYK" or pixels.shape[:2] != (height, width):
        return image
    decoded = Image.fromarray(pixels.squeeze(2) if image.mode == "L" else pixels)
    decoded.info = image.info  # EXIF, which says how to turn it
    return decoded


def _only_filled(data: bytes, warning: str) -> bool:
    """Return whether the bytes too many are a filling before the end, one byte repeated, as some cameras write it."""
    match = _TOO_MANY.search(warning)
    end = data.rfind(b"\xff\xd9")
    return match is not None and len(set(data[max(end - int(match[1]), 0) : end])) == 1


def _open(data: bytes, place: Place, shown: object) -> Image.Image:
    """Read the header."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        why = f"it claims far more pixels than the {MAX_PIXELS:,} allowed (a decompression bomb)"
        raise place.bad(shown, why, "make the picture smaller") from error
    except UnidentifiedImageError as error:
        if STARTS.match(data):
            why = f"the picture of {len(data):,} bytes is cut off or corrupt within its header"
            raise place.bad(shown, why, _DO) from error
        why = f"it is not a picture of a known format: it starts with {data[:8]!r}"
        raise place.bad(shown, why, f"use one of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise about every built-in error on bytes that are broken
        raise place.bad(shown, f"the picture is corrupt: {_said(error)}", _DO) from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _check_size(image: Image.Image, place: Place, shown: object) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        why = f"it has {width} × {height} pixels, more than the {MAX_PIXELS:,} allowed (a decompression bomb?)"
        raise place.bad(shown, why, "make the picture smaller")
    if width < 1 or height < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        why = f"it has {width} × {height} pixels: one side is more than {MAX_ASPECT} times the other"
        raise place.bad(shown, why, "cut the picture, or empty the cell")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Broken EXIF tells nothing about the rotation, and the pixels are whole.
        return image


def _to_rgb(image: Image.Image, place: Place, shown: object) -> Image.Image:
    if image.mode.startswith("I"):
        image = _from_integers(image, place, shown)
    elif image.mode == "F":
        image = _from_floats(image, place, shown)
    if image.has_transparency_data:
        on_top = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(on_top, mask=on_top)
        return white
    return image.convert("RGB")


def _from_integers(image: Image.Image, place: Place, shown: object) -> Image.Image:
    """Grey of 16 bits (or more, in which only 16 are used) to 8 bits: 65535 becomes 255."""
    levels = np.asarray(image)  # (height, width)
    if levels.min() < 0 or levels.max() > 65535:
        why = f"its grey levels go from {levels.min()} to {levels.max()}, beyond 16 bits"
        raise place.bad(shown, why, "save it with 8 or 16 bits")
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _from_floats(image: Image.Image, place: Place, shown: object) -> Image.Image:
    levels = np.asarray(image)
    if not np.isfinite(levels).all() or levels.min() < 0 or levels.max() > 1:
        why = f"its grey levels are floats from {levels.min()} to {levels.max()}, not from 0 to 1"
        raise place.bad(shown, why, "scale them to 0 to 1, or save it with 8 or 16 bits")
    return Image.fromarray(np.rint(levels * 255).astype(np.uint8))
