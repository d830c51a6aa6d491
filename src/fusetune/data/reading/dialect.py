"""The dialect of a delimited text file: encoding, separator, quoting, and lines before the header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusetune.config.read import ReadConfig
from fusetune.data.reading.text_files import encoding_of
from fusetune.errors import shown

CELL_CHARS = 1 << 28
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
SNIFFED_CHARS = 4 << 20
"""Characters at the start of a file from which its dialect is detected."""

_SEPARATOR_LINE = re.compile(r"\ufeff?\"?sep=(.)\"?\r?\n?", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """How a delimited text file is parsed.

    Attributes:
        encoding: a codec of Python.
        separator: one character.
        quote: one character, or "" if quotes are ordinary text.
        header_line: number of lines before the header, which are skipped.
        trust: confidence that quotes enclose cells: 0 without evidence, 1 if a quoted cell holds a separator or a
            quote, 2 if the header is quoted or the settings name the quote.
        notes: remarks for the user on what was detected.
    """

    encoding: str
    separator: str
    quote: str
    header_line: int = 0
    trust: int = 2
    notes: tuple[str, ...] = ()

    def reader(self, lines: Any) -> Any:
        """Return a strict `csv.reader`, which raises `csv.Error` on unmatched quotes."""
        if not self.quote:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE, quotechar=None, strict=True)
        return csv.reader(lines, delimiter=self.separator, quotechar=self.quote, strict=True)

    def quoted(self, cell: str) -> str:
        """Return a cell in quotes, with the quotes inside doubled."""
        return self.quote + cell.replace(self.quote, self.quote * 2) + self.quote

    def joins_rows(self, lines: Sequence[str], width: int) -> bool:
        """Return whether each of a record's lines would be a row of `width` cells if quotes were text."""
        some = [line for line in lines if line.strip("\r\n")]
        return len(some) > 1 and width > 1 and all(line.count(self.separator) == width - 1 for line in some)

    def refuses(self, lines: Sequence[str]) -> bool:
        """Return whether such a record more likely has a stray quote than a cell with line breaks."""
        return self.trust == 0 or (self.trust == 1 and len(lines) > 2)


@contextmanager
def long_cells() -> Iterator[None]:
    """Raise the limit of `csv` on a cell's length from 131,072 to `CELL_CHARS` characters."""
    before = csv.field_size_limit(CELL_CHARS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def find_dialect(path: Path, usual: str, read: ReadConfig) -> Dialect:
    """Return the dialect of a file: the settings, completed by detection.

    Args:
        path: the file.
        usual: the separator of the file's extension.
        read: the settings.

    Raises:
        TableError: the encoding cannot be detected, or the file is not text.
    """
    encoding = encoding_of(path, read.encoding)
    lines = _first_lines(path, encoding)
    named = _SEPARATOR_LINE.fullmatch(lines[0]) if lines else None
    separator, notes = read.separator, []
    if named:
        separator = separator or named[1]
        notes.append(f"{path.name}: the line {shown(lines[0].strip())} names the separator and is no row")
        lines = lines[1:]
    if separator is None:
        separator = pick_delimiter(lines[:200], usual)
        if separator != usual:
            notes.append(f"{path.name}: the columns are separated by {DELIMITERS[separator]}, not {DELIMITERS[usual]}")
    dialect = Dialect(encoding, separator, '"' if read.quote is None else read.quote, int(named is not None))
    if read.quote is None:
        dialect, note = _judge_quotes(dialect, lines, path.name)
        notes += note
    return replace(dialect, notes=tuple(notes))


def _first_lines(path: Path, encoding: str) -> list[str]:
    lines, chars = [], 0
    with path.open(encoding=encoding, newline="", errors="replace") as handle:
        while chars < SNIFFED_CHARS and (line := handle.readline(1 << 20)):
            lines.append(line)
            chars += len(line)
    return lines


def pick_delimiter(lines: Sequence[str], usual: str) -> str:
    """Return `usual`, unless the first rows have equal numbers of fields only with another delimiter."""
    best, best_score, needed = usual, 0.0, 0.5
    for delimiter in sorted(DELIMITERS, key=lambda item: item != usual):
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


def _judge_quotes(dialect: Dialect, lines: list[str], name: str) -> tuple[Dialect, list[str]]:
    """Decide whether quotes enclose cells or are text.

    A quote that encloses a separator or another quote within a line proves that quotes enclose cells. Without such
    proof, if quotes would join lines that are complete rows, quotes in tab-separated files are text, as in tables of
    sentences. In other files the reader rejects such lines as ambiguous.
    """
    width, trust, joined = _scan_records(dialect, lines)
    if trust or not joined:
        return replace(dialect, trust=trust), []
    complete = [line for line in lines[:-1] or lines if line.strip("\r\n")]
    if dialect.separator == "\t" and all(line.count("\t") == width - 1 for line in complete):
        note = (
            f"{name}: quotation marks are read as part of the text: they would join lines that are each a row of "
            f"{width} cells, such as line {joined}; data.read.quote=double reads them as quotes around cells"
        )
        return replace(dialect, quote=""), [note]
    return replace(dialect, trust=0), []


def _scan_records(dialect: Dialect, lines: list[str]) -> tuple[int, int, int]:
    """Return the header's width, the trust in quotes, and the first line of a record that joins rows (0: none)."""
    record: list[str] = []

    def remembered() -> Iterator[str]:
        for line in lines:
            record.append(line)
            yield line

    reader = dialect.reader(remembered())
    width, joined, trust = 0, 0, 0
    with long_cells():
        while not trust:
            record.clear()
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error:
                cells = []
            if not width and cells:
                width, trust = len(cells), 2 * record[0].lstrip("\ufeff").startswith(dialect.quote)
            elif dialect.joins_rows(record, width):
                joined = joined or reader.line_num - len(record) + 1 + dialect.header_line
            elif len(record) == 1 and len(cells) == width:
                line = record[0].rstrip("\r\n")
                doubled = any(dialect.quote in cell and dialect.quoted(cell) in line for cell in cells)
                trust = int(line.count(dialect.separator) != width - 1 or doubled)
    return width, trust, joined
