"""Reader of CSV and TSV files, which yields Arrow record batches of unchanged strings.

Python's `csv` does the parsing: it reports quotes that are not closed, and never converts "NA" or "00501". Only one
batch is in memory at a time.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config.read import ReadConfig
from fusetune.data.reading.dialect import CELL_CHARS, Dialect, find_dialect, long_cells
from fusetune.data.reading.text_files import (
    BATCH_CHARS,
    BATCH_ROWS,
    Parsed,
    check_names,
    header_only,
    wrong_encoding,
)
from fusetune.errors import TableError, shown

UNNAMED = "Unnamed: 0"
"""The name that pandas gives to a first column without a name, which is usually an exported index."""


class _Lines:
    """Iterator over a file's lines that records those of the current record."""

    def __init__(self, handle: io.TextIOBase) -> None:
        self.handle = handle
        self.record: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self.handle)
        self.record.append(line)
        return line


def read_delimited(path: Path, usual: str, read: ReadConfig) -> Parsed:
    """Read a CSV or TSV file. Blank lines are skipped; rows with too many or too few fields are rejected.

    Args:
        path: the file.
        usual: the separator of its extension.
        read: the settings.

    Raises:
        TableError: it is empty, has only a header, has invalid column names, or is not in its encoding.
    """
    dialect = find_dialect(path, usual, read)
    handle = path.open(encoding=dialect.encoding, newline="")
    lines = _Lines(handle)
    reader = dialect.reader(lines)
    try:
        names = _header(path, lines, reader, dialect)
    except TableError:
        handle.close()
        raise
    parsed = Parsed(pa.schema([pa.field(name, pa.string()) for name in names]), iter(()))
    parsed.notes += dialect.notes
    parsed.batches = _batches(parsed, path, lines, reader, dialect)
    return parsed


def _header(path: Path, lines: _Lines, reader: Any, dialect: Dialect) -> list[str]:
    names: list[str] = []
    try:
        for _ in range(dialect.header_line):
            next(lines.handle)
        with long_cells():
            while not names:
                lines.record.clear()
                names = next(reader)
    except StopIteration:
        raise TableError(
            "the file is empty", expected="a header line and rows", do="write it again", file=str(path)
        ) from None
    except UnicodeDecodeError as error:
        raise wrong_encoding(path, dialect.encoding) from error
    except csv.Error as error:
        raise TableError(
            f"the header cannot be read: {error}",
            came=shown("".join(lines.record[:1])),
            do="put the quotes of the first line right, or set data.read.quote=none if quotes are text",
            file=str(path),
        ) from error
    names[0] = names[0].lstrip("\ufeff")  # a second byte order mark, from concatenated files
    if len(names) > 1 and not names[0].strip() and UNNAMED not in names:
        names[0] = UNNAMED
    check_names(names, str(path))
    return names


def _batches(parsed: Parsed, path: Path, lines: _Lines, reader: Any, dialect: Dialect) -> Iterator[pa.RecordBatch]:
    width = len(parsed.schema)
    rows: list[list[str]] = []
    chars = joined = 0
    with lines.handle, long_cells():
        while True:
            lines.record.clear()
            try:
                record = next(reader)
            except StopIteration:
                break
            except UnicodeDecodeError as error:
                raise wrong_encoding(path, dialect.encoding) from error
            except csv.Error as error:
                _reject_lines(parsed, path, lines, reader.line_num + dialect.header_line, _quote_fault(error))
                continue
            last = reader.line_num + dialect.header_line
            joins = len(lines.record) > 1 and dialect.joins_rows(lines.record, width)
            if joins and (len(record) != width or dialect.refuses(lines.record)):
                why = "a quote opens that would join lines which are each a row; data.read.quote says what is meant"
                _reject_lines(parsed, path, lines, last, why)
            elif len(record) == width:
                rows.append(record)
                parsed.rows_in += 1
                chars += sum(map(len, record))
                joined += joins and dialect.trust < 2
            elif record:
                text = "".join(lines.record).rstrip("\r\n")
                many = f"{len(record)} field{'s' * (len(record) > 1)}"
                parsed.reject(text, f"line {last}: {many} where the header has {width}", path)
            if len(rows) >= BATCH_ROWS or chars >= BATCH_CHARS:
                yield _string_batch(parsed.schema, rows)
                rows, chars = [], 0
        if rows:
            yield _string_batch(parsed.schema, rows)
    if joined:
        parsed.notes.append(
            f"{path.name}: {joined} cells in quotes hold a line break between parts that could be rows of their own; "
            "if quotation marks are text, set data.read.quote=none"
        )
    if not parsed.rows_in:
        raise header_only(path)


def _quote_fault(error: csv.Error) -> str:
    if "end of data" in str(error):
        return "a quote is opened here and never closed"
    if "field limit" in str(error):
        return f"a cell is longer than {CELL_CHARS} characters, or a quote is not closed"
    return f"the quotes do not match ({error})"


def _reject_lines(parsed: Parsed, path: Path, lines: _Lines, last: int, why: str) -> None:
    """Reject each line of a record that a stray quote joined, so that every row is counted and none is guessed."""
    first = last - len(lines.record) + 1
    for number, line in enumerate(lines.record):
        if line.strip("\r\n"):
            reason = f"line {first}: {why}" if not number else f"swallowed by line {first}, where {why}"
            parsed.reject(line.rstrip("\r\n"), reason, path)


def _string_batch(schema: pa.Schema, rows: list[list[str]]) -> pa.RecordBatch:
    columns = [pa.array(cells, pa.string()) for cells in zip(*rows, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
