"""Pictures and sounds of a request: base64 or uploads, within limits. No path and no address is ever opened."""

from __future__ import annotations

import io
import warnings
from typing import Any

from PIL import Image

from fusetune._optional import optional_import
from fusetune.deploy.serve.options import Limits
from fusetune.deploy.serve.problems import Problem
from fusetune.errors import MissingExtra
from fusetune.modalities.media import audio_files, image_files
from fusetune.modalities.media.cells import decode_base64

MEDIA = ("image", "audio")
"""Kinds of columns whose cells are files."""
_STARTS = {"image": image_files.STARTS, "audio": audio_files.STARTS}
_SHOWN = 60


def media_cell(cell: Any, kind: str, limits: Limits, *, row: int, column: str) -> list[bytes] | None:
    """Return the files of a cell; None for a missing cell.

    Args:
        cell: base64, with or without the header of a `data:` URL; `{"bytes": base64}`; bytes of an upload; or a list of
            these.
        kind: "image" or "audio".
        limits: of a picture or sound.
        row: the row's number in the request, for errors.
        column: the column's name, for errors.

    Raises:
        Problem: 422, it is none of these, such as a path or an address, or too large.
    """
    if cell is None or cell == "":
        return None
    parts = cell if isinstance(cell, list) else [cell]
    files = [_file(part, kind, row, column) for part in parts]
    for file in files:
        _check_size(file, kind, limits, row, column)
    return files


def _file(part: Any, kind: str, row: int, column: str) -> bytes:
    if isinstance(part, dict) and part.keys() == {"bytes"}:
        part = part["bytes"]
    if isinstance(part, bytes):
        return part
    if not isinstance(part, str):
        came = f"it is of type {type(part).__name__}"
    else:
        file = decode_base64(part)
        has_header = part.lstrip()[:5].lower() == "data:"
        if file and (has_header or _STARTS[kind].match(file)):
            return file
        came = "it is no base64" if file is None else "it is empty" if not file else "its content is of no known format"
        came += f": {part[:_SHOWN]!a}"
    noun = "picture" if kind == "image" else "sound"
    raise Problem(
        422,
        "file_refused",
        f"row {row}, column {column!r}: {came}; send the {noun}'s bytes in base64, as a data: URL, or as an upload "
        "(paths and addresses are never opened)",
        row=row,
        column=column,
    )


def _check_size(file: bytes, kind: str, limits: Limits, row: int, column: str) -> None:
    """Refuse pictures and sounds beyond the limits by their headers; broken ones are the row's error later."""
    if kind == "image":
        pixels = _num_pixels(file)
        too_large = pixels is not None and pixels > limits.pixels
        size, limit = f"{pixels:,} pixels" if pixels else "", f"{limits.pixels:,}"
    else:
        seconds = _duration(file)
        too_large = seconds is not None and seconds > limits.seconds
        size, limit = f"{seconds:.1f} seconds" if seconds else "", f"{limits.seconds:g}"
    if too_large:
        message = f"row {row}, column {column!r}: it has {size}; at most {limit} are read"
        raise Problem(422, "too_large", message, row=row, column=column)


def _num_pixels(file: bytes) -> int | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            width, height = Image.open(io.BytesIO(file), formats=image_files.FORMATS).size
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return 2**31
    except Exception:  # decoders raise almost any built-in error on broken bytes
        return None
    return int(width) * int(height)


def _duration(file: bytes) -> float | None:
    try:
        soundfile = optional_import("soundfile", "to read audio")
        info = soundfile.info(io.BytesIO(file))
        return float(info.frames) / max(int(info.samplerate), 1)
    except MissingExtra:
        raise
    except Exception:  # as above
        return None
