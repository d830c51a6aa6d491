"""CSV and TSV files to Arrow record batches, every cell as it was written; what all text files share.

Python's `csv` does the parsing: it tells a closed quote from one that is not, and never turns "NA" or "00501" into
something else. Memory stays at one batch, however long the file is.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.data.quarantine import Rejected, check_rate
from fusetune.errors import TableError, shown

BATCH_ROWS = 16_384
BATCH_CHARS = 16_000_000
CELL_CHARS = 1 << 28
VALUE_CHARS = 500
HOPELESS = 10_000
"""After so many rejected rows, a file of which most rows are rejected is not read to its end."""

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
"""What files that are no text start with."""

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}


@dataclass
class Parsed:
    """A text file being read: complete once `batches` is exhausted.

    Attributes:
        schema: the columns.
        batches: the accepted rows.
        rejected: the others.
        rows_in: rows so far, accepted and rejected.
        notes: what a user should know about how it was read.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    rejected: list[Rejected] = field(default_factory=list)
    rows_in: int = 0
    notes: list[str] = field(default_factory=list)

    def reject(self, value: Any, why: str, path: Path) -> None:
        """Set the next row aside."""
        text = value if isinstance(value, str) else str(value)
        self.rejected.append(Rejected(self.rows_in, None, text[:VALUE_CHARS], why))
        self.rows_in += 1
        if len(self.rejected) >= HOPELESS and len(self.rejected) * 2 > self.rows_in:
            check_rate(self.rejected, self.rows_in, source=str(path))


def encoding_of(path: Path) -> str:
    """The encoding that a byte order mark tells, else UTF-8.

    Raises:
        TableError: UTF-16 or UTF-32 that cannot be told apart safely, or a file that is no text.
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
    if len(head) >= 4 and (head[1:4:2] == b"\0\0" or head[0:3:2] == b"\0\0"):
        raise TableError(
            "the file looks like UTF-16 without a byte order mark",
            expected="UTF-8, or UTF-16 with a byte order mark",
            do="save it as UTF-8",
            file=str(path),
        )
    return "utf-8-sig"


def wrong_encoding(path: Path, encoding: str) -> TableError:
    """The error for a file that does not decode: finds the first bad byte's offset and line."""
    offset, lines, error = 0, 1, None
    with path.open("rb") as handle:
        big = handle.read(2) == codecs.BOM_UTF16_BE
        handle.seek(0)
        # The mark is decoded as a character, so that offsets count it.
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
        do="save it as UTF-8; if it came from Windows: "
        f"iconv -f WINDOWS-1252 -t UTF-8 {shown(path.name)} > fixed{path.suffix}",
        file=str(path),
    )


@contextmanager
def long_cells() -> Iterator[None]:
    """Let `csv` read cells of up to `CELL_CHARS` characters, its own limit being 131,072."""
    before = csv.field_size_limit(CELL_CHARS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class _Lines:
    """The lines of a file, remembering those of the record being read."""

    def __init__(self, handle: io.TextIOBase) -> None:
        self.handle = handle
        self.record: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self.handle)
        self.record.append(line)
        return line


def pick_delimiter(path: Path, encoding: str, usual: str) -> str:
    """`usual`, unless the first rows agree on another delimiter and not on it."""
    with path.open(encoding=encoding, newline="", errors="replace") as handle:
        lines = [line for line in (handle.readline(1 << 20) for _ in range(200)) if line]
    best, best_score, needed = usual, 0.0, 0.5
    for delimiter in sorted(DELIMITERS, key=lambda one: one != usual):
        records = []
        try:
            for record in csv.reader(lines, delimiter=delimiter):
                records.append(len(record))
        except csv.Error:
            pass
        widths = [width for width in records[:50] if width]
        if not widths or widths[0] < 2:
            continue
        agree = sum(width == widths[0] for width in widths[1:]) / max(len(widths) - 1, 1)
        if delimiter == usual:
            if agree >= 0.5:
                return usual
            needed = 0.9
        elif (agree >= needed and agree > best_score) or len(widths) == 1:
            best, best_score = delimiter, agree
    return best


def check_names(names: list[str], file: str) -> None:
    """Refuse no column, and column names that are empty or appear twice.

    Raises:
        TableError: with all of them.
    """
    if not names:
        raise TableError(
            "there is no column", expected="rows with at least one named value", do="check how it was made", file=file
        )
    empty = [str(place) for place, name in enumerate(names, start=1) if not name.strip()]
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


def read_delimited(path: Path, usual: str) -> Parsed:
    """A CSV or TSV file. Blank lines are no rows; a row with a field too many or too few is rejected.

    Args:
        path: the file.
        usual: the delimiter its extension stands for.

    Raises:
        TableError: it is empty, has only a header, names that clash, or is not UTF-8.
    """
    encoding = encoding_of(path)
    delimiter = pick_delimiter(path, encoding, usual)
    handle = path.open(encoding=encoding, newline="")
    lines = _Lines(handle)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = _header(path, lines, reader, encoding)
    except TableError:
        handle.close()
        raise
    parsed = Parsed(pa.schema([pa.field(name, pa.string()) for name in names]), iter(()))
    if delimiter != usual:
        parsed.notes.append(
            f"{path.name}: the columns are separated by {DELIMITERS[delimiter]}, not {DELIMITERS[usual]}"
        )
    parsed.batches = _csv_batches(parsed, path, lines, reader, encoding)
    return parsed


def _header(path: Path, lines: _Lines, reader: Any, encoding: str) -> list[str]:
    names: list[str] = []
    try:
        with long_cells():
            while not names:
                lines.record.clear()
                names = next(reader)
    except StopIteration:
        raise TableError(
            "the file is empty", expected="a header line and rows", do="write it again", file=str(path)
        ) from None
    except UnicodeDecodeError as error:
        raise wrong_encoding(path, encoding) from error
    except csv.Error as error:
        raise TableError(
            f"the header cannot be read: {error}",
            came=shown("".join(lines.record[:1])),
            do="put the quotes of the first line right",
            file=str(path),
        ) from error
    names[0] = names[0].lstrip("\ufeff")  # a second byte order mark, as of files written one after the other
    check_names(names, str(path))
    return names


def _csv_batches(parsed: Parsed, path: Path, lines: _Lines, reader: Any, encoding: str) -> Iterator[pa.RecordBatch]:
    width = len(parsed.schema)
    rows: list[list[str]] = []
    chars = 0
    with lines.handle, long_cells():
        while True:
            lines.record.clear()
            try:
                record = next(reader)
            except StopIteration:
                break
            except UnicodeDecodeError as error:
                raise wrong_encoding(path, encoding) from error
            except csv.Error as error:
                _reject_lines(parsed, path, lines, reader.line_num, str(error))
                continue
            if len(record) == width:
                rows.append(record)
                parsed.rows_in += 1
                chars += sum(map(len, record))
            elif record:
                text = "".join(lines.record).rstrip("\r\n")
                many = f"{len(record)} field{'s' * (len(record) > 1)}"
                parsed.reject(text, f"line {reader.line_num}: {many} where the header has {width}", path)
            if len(rows) >= BATCH_ROWS or chars >= BATCH_CHARS:
                yield _string_batch(parsed.schema, rows)
                rows, chars = [], 0
        if rows:
            yield _string_batch(parsed.schema, rows)
    if not parsed.rows_in:
        raise header_only(path)


def _reject_lines(parsed: Parsed, path: Path, lines: _Lines, last: int, error: str) -> None:
    """Every line that a broken quote has swallowed is a rejected row: none is lost uncounted, none is guessed."""
    first = last - len(lines.record) + 1
    if "end of data" in error:
        why = "a quote is opened here and never closed"
    elif "field limit" in error:
        why = f"a cell is longer than {CELL_CHARS} characters, or a quote is not closed"
    else:
        why = f"the quotes do not match ({error})"
    for number, line in enumerate(lines.record):
        if line.strip("\r\n"):
            place = f"line {first}: {why}" if not number else f"swallowed by line {first}, where {why}"
            parsed.reject(line.rstrip("\r\n"), place, path)


def header_only(path: Path) -> TableError:
    """The error for a table of no rows."""
    return TableError(
        "there is a header and no row", expected="at least one row", do="check how it was written", file=str(path)
    )


def _string_batch(schema: pa.Schema, rows: list[list[str]]) -> pa.RecordBatch:
    columns = [pa.array(cells, pa.string()) for cells in zip(*rows, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
