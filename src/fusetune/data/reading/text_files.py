"""Shared parts of the readers of text files: encodings, column names, and the rows that were parsed and rejected."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.data.quarantine import Rejected, check_rate
from fusetune.errors import EmptyTable, TableError, shown

BATCH_ROWS = 16_384
BATCH_CHARS = 16_000_000
VALUE_CHARS = 500
HOPELESS = 10_000
"""Number of rejected rows after which reading stops if most rows are rejected."""

_STARTS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\x1f\x8b": "packed with gzip",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"PAR1": "Parquet",
    b"ARROW1\0": "Arrow",
    b"SQLite format 3\0": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"%PDF-": "a PDF",
}
"""Magic numbers of common binary formats."""


@dataclass
class Parsed:
    """A file that is being read; `rejected` and `rows_in` are complete once `batches` is exhausted.

    Attributes:
        schema: the columns.
        batches: the accepted rows.
        rejected: the rejected rows.
        rows_in: number of rows so far, accepted and rejected.
        notes: remarks for the user on how it was read.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    rejected: list[Rejected] = field(default_factory=list)
    rows_in: int = 0
    notes: list[str] = field(default_factory=list)

    def reject(self, value: Any, why: str, path: Path) -> None:
        """Reject the next row."""
        text = value if isinstance(value, str) else str(value)
        self.rejected.append(Rejected(self.rows_in, None, text[:VALUE_CHARS], why))
        self.rows_in += 1
        if len(self.rejected) >= HOPELESS and len(self.rejected) * 2 > self.rows_in:
            check_rate(self.rejected, self.rows_in, source=str(path))


def encoding_of(path: Path, given: str | None = None) -> str:
    """Return the encoding of a file's byte order mark, else the given one, else UTF-8.

    Raises:
        TableError: the file is UTF-32, UTF-16 without a byte order mark, or not text.
    """
    with path.open("rb") as handle:
        head = handle.read(64)
    other = next((what for start, what in _STARTS.items() if head.startswith(start)), None)
    if other is not None:
        raise TableError(
            f"the file is {other}, not text as its name says",
            expected=f"{path.suffix} as text in UTF-8",
            do="give it the extension of what it is where tables are read from such files, else unpack or export it",
            file=str(path),
        )
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise TableError("the file is UTF-32", expected="UTF-8", do="save it as UTF-8", file=str(path))
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if given is not None and codecs.lookup(given).name != "utf-8":
        return given
    if len(head) >= 4 and (head[1:4:2] == b"\0\0" or head[0:3:2] == b"\0\0"):
        raise TableError(
            "the file looks like UTF-16 without a byte order mark",
            expected="UTF-8, or UTF-16 with a byte order mark",
            do="save it as UTF-8",
            file=str(path),
        )
    return "utf-8-sig"


def wrong_encoding(path: Path, encoding: str) -> TableError:
    """Return the error for a file that does not decode, with the first bad byte's offset and line."""
    if encoding not in ("utf-8-sig", "utf-16"):
        return TableError(
            f"the file is not in the encoding {encoding}",
            expected="the encoding that the file was written in",
            do="change data.read.encoding, or save the file as UTF-8 and leave it out",
            file=str(path),
        )
    offset, lines, error = 0, 1, None
    with path.open("rb") as handle:
        big = handle.read(2) == codecs.BOM_UTF16_BE
        handle.seek(0)
        # These codecs decode the mark as a character, so that offsets include it.
        plain = "utf-8" if encoding != "utf-16" else "utf-16-be" if big else "utf-16-le"
        decoder = codecs.getincrementaldecoder(plain)("strict")
        while error is None:
            chunk = handle.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
                lines += text.count("\n")
                offset += len(chunk)
            except UnicodeDecodeError as found:
                error = found
                offset += found.start - pending
                lines += found.object[: found.start].decode(plain, "ignore").count("\n")
            if not chunk:
                break
    byte = f"0x{error.object[error.start]:02x}" if error is not None else "a cut-off character"
    return TableError(
        f"byte {offset} (line {lines}) is not {'UTF-16' if encoding == 'utf-16' else 'UTF-8'}",
        expected="a file in UTF-8, or in UTF-16 with a byte order mark",
        came=f"{byte} ({error.reason})" if error is not None else byte,
        do="name its encoding, as data.read.encoding=cp1252, or save it as UTF-8; if it came from Windows: "
        f"iconv -f WINDOWS-1252 -t UTF-8 {shown(path.name)} > fixed{path.suffix}",
        file=str(path),
    )


def check_names(names: list[str], file: str) -> None:
    """Check that there are columns, and that their names are non-empty and unique.

    Raises:
        TableError: names are invalid; the message lists all of them.
    """
    if not names:
        raise TableError(
            "there is no column", expected="rows with at least one named value", do="check how it was made", file=file
        )
    empty = [str(index) for index, name in enumerate(names, start=1) if not name.strip()]
    twice = sorted(name for name, count in Counter(names).items() if name.strip() and count > 1)
    if empty:
        raise TableError(
            f"column{'s' * (len(empty) > 1)} {', '.join(empty)} of {len(names)} without a name",
            expected="a name for every column, each once",
            came=shown(names),
            do="name it in the first line, or take it out (pandas: to_csv(..., index=False))",
            file=file,
        )
    if twice:
        raise TableError(
            f"column names appear more than once: {', '.join(map(repr, twice))}",
            expected="every column name once",
            came=shown(names),
            do="rename or take out one of the columns",
            file=file,
        )


def header_only(path: Path) -> TableError:
    """Return the error for a table without rows."""
    return EmptyTable(
        "there is a header and no row", expected="at least one row", do="check how it was written", file=str(path)
    )
