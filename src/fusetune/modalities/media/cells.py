"""Media cells: read the bytes of a path, bytes, base64, `{"bytes", "path"}`, or several of these."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.errors import BadCell, nearest
from fusetune.modalities.detection import Detection

MAX_FILE_BYTES = 512 * 2**20
"""Larger files are refused before they are read."""

NO_FILES = Path("/dev/null/no-files")
"""The `base_dir` of rows that strangers send: with it no path is looked up or opened, relative or absolute."""

_URL = re.compile(r"(?!file:)[a-zA-Z][a-zA-Z0-9+.-]+://")
_DATA_URL = re.compile(r"data:[\w.+/-]*(;[\w.=+-]+)*;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]+")
_SHORTEST_BASE64 = 64
_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{8}|RIFF|RF64|II\*\0|MM\0\*|fLaC|OggS|ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]|FORM",
    re.DOTALL,
)
"""Magic numbers of images and sounds."""
_LONGEST_PATH = 4096
_MAX_NAMES_COMPARED = 20_000
_MAX_FILES_CHECKED = 50


@dataclass(frozen=True)
class CellLocation:
    """The location of a cell, for error messages.

    Attributes:
        row: the row's id.
        column: the column's name.
        base_dir: folder that relative paths start from.
    """

    row: int
    column: str
    base_dir: Path

    def bad(self, value: Any, why: str, do: str | None = None) -> BadCell:
        """Return the error for this cell."""
        return BadCell(row=self.row, column=self.column, value=value, why=why, do=do)


def is_url(text: str) -> bool:
    """Return whether a string is a URL, other than a file: URL."""
    return bool(_URL.match(text.strip()))


def decode_base64(text: str) -> bytes | None:
    """Decode a file in base64, with or without the header of a `data:` URL; return None if the text is not base64.

    Args:
        text: the cell; without a header it must have at least 64 characters, so that short names are not decoded.
    """
    text = text.strip()
    header = _DATA_URL.match(text)
    body = text[header.end() :] if header else text
    if (not header and len(body) < _SHORTEST_BASE64) or not _BASE64.fullmatch(body[:4096]):
        return None
    try:
        standard = "".join(body.split()).replace("-", "+").replace("_", "/")
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except ValueError:
        return None


def holds_base64(text: str, starts: re.Pattern[bytes]) -> bool:
    """Return whether a text is a file in base64 whose first bytes match a pattern; only its start is decoded."""
    text = text.strip()
    header = _DATA_URL.match(text)
    if not header and len(text) < _SHORTEST_BASE64:
        return False
    head = decode_base64(text[: (header.end() if header else 0) + 128])
    return head is not None and bool(starts.match(head))


def split_paths(text: str, base_dir: Path) -> list[str]:
    """Split a cell at `;` into paths, unless the complete text is an existing file's name."""
    if text.lstrip().startswith("data:"):
        return [text.strip()]
    if ";" in text and not _file_exists(base_dir, text.strip()):
        return [part.strip() for part in text.split(";") if part.strip()]
    return [text.strip()] if text.strip() else []


def split_cell(cell: Any, base_dir: Path) -> list[Any]:
    """Split a cell with one or several files: a list, or paths separated by `;`."""
    if isinstance(cell, str):
        return list(split_paths(cell, base_dir))
    if isinstance(cell, list | tuple) or (isinstance(cell, np.ndarray) and cell.dtype == object):
        return [part for part in cell if part is not None]
    return [cell]


def read_part(part: Any, location: CellLocation) -> bytes:
    """Return the bytes of one file, given as bytes, base64, a path, or `{"bytes", "path"}` (bytes take precedence).

    Raises:
        BadCell: the file does not exist, is empty or too large, or the cell is a URL or of another type.
    """
    if isinstance(part, dict):
        held = part.get("bytes") if part.get("bytes") is not None else part.get("path")
        if held is None:
            raise location.bad(part, "neither 'bytes' nor 'path' is given", "fill one of the two, or empty the cell")
        part = held
    if isinstance(part, bytes | bytearray | memoryview):
        data = bytes(part)
        if not data:
            raise location.bad(part, "it has zero bytes", "write the file again, or empty the cell")
        return data
    if isinstance(part, str) and part.lstrip()[:5].lower() == "data:":
        held = decode_base64(part)
        if held is None:
            raise location.bad(part[:80], "it is a data: URL that is not in base64", "give the file's path or bytes")
        return held
    if isinstance(part, str | os.PathLike):
        return _read_path(str(part).strip(), location)
    do = "give a path, bytes, or a mapping with 'bytes' or 'path'"
    raise location.bad(part, f"it is of type {type(part).__name__}, not a file", do)


def _read_path(name: str, location: CellLocation) -> bytes:
    """Read the file with this name, or decode the text as base64 if it is not a file's name."""
    may_hold = len(name) >= _SHORTEST_BASE64 and not os.path.splitext(name[-64:])[1]
    if may_hold and holds_base64(name, _STARTS) and not _file_exists(location.base_dir, name[:_LONGEST_PATH]):
        held = decode_base64(name)
        if held is None:
            raise location.bad(name[:80], "it starts as base64 but has other characters", "write the cell again")
        return held
    return _read_file(name, location)


def _read_file(name: str, location: CellLocation) -> bytes:
    if location.base_dir == NO_FILES:
        why = "it is a path or an address, and none is opened here"
        raise location.bad(name, why, "give the file's bytes, or its content in base64")
    if is_url(name):
        do = "download the file and give its path, or ask for it: data.read.media=[https], --media https"
        raise location.bad(name, "it is a URL, not a file", do)
    if name.startswith("file:"):
        raise location.bad(name, "it is a file: URL, not a path", "give the path alone, without 'file://'")
    path = location.base_dir / name
    try:
        if path.is_dir():
            raise location.bad(name, "it is a folder, not a file", "give the path of a file in it")
        if not path.exists():
            raise location.bad(name, f"there is no such file in {location.base_dir}", _nearest_file(path, name))
        if not path.is_file():
            raise location.bad(name, "it is a device or a pipe, not a file", "give the path of an ordinary file")
        num_bytes = path.stat().st_size
        if num_bytes > MAX_FILE_BYTES:
            raise location.bad(
                name, f"the file has {num_bytes:,} bytes, more than {MAX_FILE_BYTES:,}", "make it smaller"
            )
        data = path.read_bytes()
    except BadCell:
        raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise location.bad(name, f"the file cannot be read: {why}", "check the path and who may read it") from error
    if not data:
        raise location.bad(name, "the file has zero bytes", "copy or write the file again, or empty the cell")
    return data


def _nearest_file(path: Path, name: str) -> str:
    """Return advice about a missing file: the nearest name in its folder, or that the folder does not exist."""
    if "\\" in name and _exists(path.parent / name.replace("\\", "/")):
        return f"write the path with '/': {name.replace(chr(92), '/')!r}"
    if not path.parent.is_dir():
        return f"the folder {str(path.parent)!r} does not exist; paths start at the table's folder"
    with os.scandir(path.parent) as entries:
        names = [entry.name for _, entry in zip(range(_MAX_NAMES_COMPARED), entries, strict=False)]
    same = [known for known in names if known.casefold() == path.name.casefold()]
    if same:
        return f"did you mean {same[0]!r}?"
    return nearest(path.name, names) or "check the path; paths start at the table's folder"


def _file_exists(base_dir: Path, name: str) -> bool:
    return base_dir != NO_FILES and _exists(base_dir / name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL character
        return False


def detect_files(
    values: Sequence[Any], *, base_dir: Path, kind: str, endings: Collection[str], starts: re.Pattern[bytes]
) -> Detection:
    """Rate how well a column's cells fit a kind of media.

    Args:
        values: cells that are not missing.
        base_dir: folder that relative paths start from.
        kind: the kind's name, for the reason.
        endings: file extensions in lower case, such as ".png".
        starts: pattern of the first bytes of such files.
    """
    fitting = [cell for cell in values if _fits(cell, base_dir, endings, starts)]
    if not fitting:
        return Detection(0.0, f"no cell names or holds {kind}")
    share = len(fitting) / len(values)
    named = [
        part
        for cell in fitting
        for part in split_cell(cell, base_dir)
        if isinstance(part, str) and not holds_base64(part, starts)
    ]
    reason = f"{share:.0%} of {len(values)} cells {'name' if named else 'hold'} {kind} files"
    urls = sum(map(is_url, named))
    if urls:
        reason += f"; {urls} are URLs"
    checked = [part for part in named if not is_url(part)][:_MAX_FILES_CHECKED]
    missing = [part for part in checked if not _file_exists(base_dir, part)]
    if missing:
        reason += f"; {len(missing)} of {len(checked)} looked for do not exist in {base_dir}, such as {missing[0]!r}"
    return Detection(0.99 * share if share >= 0.5 else 0.0, reason)


def _fits(cell: Any, base_dir: Path, endings: Collection[str], starts: re.Pattern[bytes]) -> bool:
    if isinstance(cell, str) and holds_base64(cell, starts):
        return True
    parts = split_cell(cell, base_dir) if not isinstance(cell, str) or len(cell) < 10_000 else []
    return bool(parts) and all(_part_fits(part, endings, starts) for part in parts)


def _part_fits(part: Any, endings: Collection[str], starts: re.Pattern[bytes]) -> bool:
    if isinstance(part, dict):
        part = part.get("bytes") if part.get("bytes") is not None else part.get("path")
    if isinstance(part, bytes | bytearray | memoryview):
        return bool(starts.match(bytes(part[:64])))
    if not isinstance(part, str | os.PathLike):
        return False
    name = str(part).strip()
    if holds_base64(name, starts):
        return True
    if is_url(name):
        name = re.split("[?#]", name)[0]
    return "\n" not in name and os.path.splitext(name)[1].lower() in endings
