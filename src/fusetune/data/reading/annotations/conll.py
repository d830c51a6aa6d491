"""Reader of CoNLL files: one word a line with its tags in columns, a blank line between sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fusetune.config.read import ReadConfig
from fusetune.data.reading.annotations.sample import Sample
from fusetune.data.reading.annotations.tags import OUTSIDE, TagFault, TagReader, are_tags, have_prefixes
from fusetune.data.reading.records import parse_records
from fusetune.data.reading.text_files import Parsed, wrong_encoding
from fusetune.errors import ConfigError, shown

ENDINGS = (".conll", ".conllu", ".bio", ".bioes", ".iob", ".iob2")
CONLL_U = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
DOCUMENT = re.compile(r"-DOCSTART-|-X- -DOCSTART-|# ?newdoc\b")
NO_WORD = re.compile(r"\d+[-.]\d+")
"""The number of a multi-word token or of an empty node in CoNLL-U."""
HEADER = {"word", "words", "token", "tokens", "form", "text"}
GROUPS = 10
"""Files of fewer documents have no column of them, as they are too few to split by."""


@dataclass(frozen=True)
class Columns:
    """How the lines of a file are laid out.

    Attributes:
        separator: "\\t", or None for any white space.
        width: the number of columns.
        word: the index of the words' column.
        tag: that of the tags, None without one.
        names: the columns' names, where the file has some.
        prefixed: whether the tags have prefixes, as B-person.
        header: whether the first line names the columns.
    """

    separator: str | None
    width: int
    word: int
    tag: int | None
    names: tuple[str, ...]
    prefixed: bool
    header: bool

    def split(self, line: str) -> list[str]:
        """Return a line's cells."""
        return [cell.strip() for cell in line.split(self.separator)]

    def is_comment(self, line: str) -> bool:
        """Return whether a line is a comment, and not the word "#"."""
        if not line.startswith("#"):
            return False
        cells = self.split(line)
        return len(cells) != self.width or (self.prefixed and not are_tags_or_outside(cells[self.tag or 0]))


def are_tags_or_outside(cell: str) -> bool:
    """Return whether a cell is a tag or says that the word is outside of entities."""
    return cell in OUTSIDE or are_tags([cell])


def detect(sample: Sample) -> str | None:
    """Return why a file is of CoNLL's kind, None if it is not."""
    if sample.is_json:
        return None
    if sample.path.suffix.lower() in ENDINGS:
        return f"the ending {sample.path.suffix}"
    columns = _columns(sample.lines, None)
    if columns is None or columns.width < 2 or columns.tag is None or not columns.prefixed:
        return None
    blank = any(not line.strip() for line in sample.lines[1:-1])
    documents = any(DOCUMENT.match(line) for line in sample.lines)
    if not (blank or documents) or (columns.header and columns.separator == ","):
        return None
    what = f"column {columns.tag + 1} of {columns.width} has tags"
    return f"{what}, and blank lines end sentences" if blank else f"{what}, and -DOCSTART- begins documents"


def read_conll(sample: Sample, read: ReadConfig) -> Parsed:
    """Read the sentences: columns `tokens`, a list of words, and `tags`; `document_id` where there are many documents.

    A sentence with a line of another number of columns, without a word, or with a tag of an unknown scheme is rejected.

    Raises:
        ConfigError: `data.read.tag_column` is no column of the file.
    """
    path = sample.path
    columns = _columns(sample.lines, read.tag_column) or Columns(None, 1, 0, None, (), False, False)
    tags = TagReader(columns.prefixed)
    with path.open(encoding=sample.encoding, errors="replace") as handle:
        documents = sum(bool(DOCUMENT.match(line)) for line in handle) >= GROUPS

    def records(parsed: Parsed) -> Iterator[dict[str, Any]]:
        try:
            with path.open(encoding=sample.encoding) as handle:
                for document, lines in _sentences(handle, columns):
                    record, fault = _sentence(lines, columns, tags)
                    if record is None:
                        parsed.reject("\n".join(line for _, line in lines), fault, path)
                        continue
                    parsed.rows_in += 1
                    yield ({"document_id": document} if documents else {}) | record
        except UnicodeDecodeError as error:
            raise wrong_encoding(path, sample.encoding) from error

    parsed = parse_records(path, records, expected="a word and its tag a line, a blank line between sentences")
    parsed.notes += [f"{path.name}: {note}" for note in (_layout_note(columns, tags), *tags.notes())]
    return parsed


def _layout_note(columns: Columns, tags: TagReader) -> str:
    if columns.tag is None:
        return "words without tags"
    names = columns.names or tuple(map(str, range(1, columns.width + 1)))
    others = [name for index, name in enumerate(names) if index not in (columns.word, columns.tag)]
    rest = f"; {', '.join(others)} not read (data.read.tag_column)" if others else ""
    return f"words from column {names[columns.word]}, tags from column {names[columns.tag]} ({tags.scheme}){rest}"


def _columns(lines: Sequence[str], asked: str | int | None) -> Columns | None:
    """Find how the first lines of a file are laid out; None if they have no words.

    Raises:
        ConfigError: the column of tags that was asked for is none.
    """
    names = next((tuple(line.split("=", 1)[1].lower().split()) for line in lines if "global.columns" in line), ())
    filled = [line for line in lines if line.strip() and not DOCUMENT.match(line)]
    plain = [line for line in filled if not line.startswith("# ")]
    if not plain:
        return None
    separator = "\t" if sum("\t" in line for line in plain) * 2 > len(plain) else None
    width = Counter(len(line.split(separator)) for line in plain).most_common(1)[0][0]
    rows = [[cell.strip() for cell in line.split(separator)] for line in plain]
    rows = [row for row in rows if len(row) == width]
    header = len(rows) > 1 and rows[0][0].lower() in HEADER
    names = tuple(cell.lower() for cell in rows[0]) if header else names
    rows = rows[header:]
    if not names and width == len(CONLL_U) and separator and _numbered(rows):
        names = CONLL_U
    word = names.index("form") if "form" in names else int(width > 2 and _numbered(rows))
    tag = _tag_column(rows, width, names, word, asked)
    prefixed = tag is not None and have_prefixes(row[tag] for row in rows)
    return Columns(separator, width, word, tag, names if len(names) == width else (), prefixed, header)


def _numbered(rows: Iterable[Sequence[str]]) -> bool:
    """Return whether the first column numbers the words of each sentence from 1."""
    numbers = [row[0] for row in rows if not NO_WORD.fullmatch(row[0])]
    return "1" in numbers and all(
        number.isdecimal() and (number == "1" or int(number) == int(before) + 1)
        for before, number in zip(["0", *numbers], numbers, strict=False)
        if before.isdecimal()
    )


def _tag_column(
    rows: Sequence[Sequence[str]], width: int, names: Sequence[str], word: int, asked: str | int | None
) -> int | None:
    if asked is not None and width > 1:  # a file of words alone is one to predict
        text = str(asked).strip().lower()
        if text in names and names.index(text) != word:
            return names.index(text)
        number = int(text) if re.fullmatch(r"-?\d+", text) else 0
        index = number - 1 if number > 0 else width + number
        if number == 0 or not 0 <= index < width or index == word:
            raise ConfigError(
                "data.read.tag_column is no column of tags",
                expected=f"a number from 1 to {width}{', or ' + ', '.join(names) if names else ''}",
                came=str(asked),
            )
        return index
    others = [index for index in range(width) if index != word]
    looking = [index for index in others if are_tags(row[index] for row in rows)]
    if looking:
        return looking[-1]
    if "upos" in names:
        return names.index("upos")
    return others[-1] if others else None


def _sentences(handle: Iterable[str], columns: Columns) -> Iterator[tuple[Any, list[tuple[int, str]]]]:
    """Yield (document, lines with their numbers) of each sentence."""
    document: Any = None
    number_of_document, lines, header = 0, list[tuple[int, str]](), columns.header
    for number, raw in enumerate(handle, start=1):
        line = raw.rstrip("\r\n")
        begins = DOCUMENT.match(line)
        if begins or not line.strip(" \f\v\ufeff"):
            if lines:
                yield document, lines
                lines = []
            if begins:
                number_of_document += 1
                document = line.split("=", 1)[1].strip() if "=" in line else str(number_of_document)
        elif columns.is_comment(line):
            continue
        elif header:
            header = False
        else:
            lines.append((number, line))
    if lines:
        yield document, lines


def _sentence(lines: Sequence[tuple[int, str]], columns: Columns, tags: TagReader) -> tuple[dict[str, Any] | None, str]:
    """Return a sentence's record, or None and why it cannot be used."""
    words, labels, numbers = [], [], []
    for number, line in lines:
        cells = columns.split(line)
        if columns.names and columns.names[0] == "id" and NO_WORD.fullmatch(cells[0]):
            continue
        if len(cells) != columns.width:
            many = f"{len(cells)} column{'s' * (len(cells) > 1)}"
            return None, f"line {number}: {many} where the file has {columns.width}: {shown(line, 60)}"
        if "\0" in line:
            return None, f"line {number}: a NUL character"
        if not cells[columns.word]:
            return None, f"line {number}: no word"
        if columns.tag is not None and not cells[columns.tag]:
            return None, f"line {number}: no tag for the word {shown(cells[columns.word], 40)}"
        words.append(cells[columns.word])
        labels.append(cells[columns.tag] if columns.tag is not None else "")
        numbers.append(number)
    if not words:
        return None, f"line {lines[0][0]}: a sentence without a word"
    if columns.tag is None:
        return {"tokens": words}, ""
    try:
        return {"tokens": words, "tags": tags.read(labels)}, ""
    except TagFault as fault:
        index, why = fault.args
        return None, f"line {numbers[index]}: {why}"
