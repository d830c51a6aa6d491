"""Reader of the text files of SemEval-2010 task 8: a numbered sentence with two marked entities, and their relation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fusetune.config.read import ReadConfig
from fusetune.data.reading.annotations.sample import Sample
from fusetune.data.reading.records import parse_records
from fusetune.data.reading.text_files import Parsed, wrong_encoding

SENTENCE = re.compile(r"\s*(\d+) *\t\s*([^\t]*\S)\s*")
MARKS = ("<e1>", "</e1>", "<e2>", "</e2>")


def detect(sample: Sample) -> str | None:
    """Return why a file is one of the task, None if it is not."""
    lines = [line for line in sample.lines[:60] if line.strip()]
    if sample.path.suffix.lower() != ".txt":
        lines = lines[:1]  # a table has a header
    matches = filter(None, map(SENTENCE.fullmatch, lines))
    if any(all(mark in match[2] for mark in MARKS) for match in matches):
        return "numbered sentences with <e1> and <e2>"
    return None


def read_semeval(sample: Sample, read: ReadConfig) -> Parsed:
    """Read the sentences: columns `id`, `text` and `relation`. Comments are left out: they are about the relation."""
    path = sample.path

    def records(parsed: Parsed) -> Iterator[dict[str, Any]]:
        try:
            with path.open(encoding=sample.encoding) as handle:
                for number, lines in _examples(handle):
                    record, fault = _row(lines)
                    if record is None:
                        parsed.reject("\n".join(lines), f"line {number}: {fault}", path)
                        continue
                    parsed.rows_in += 1
                    yield record
        except UnicodeDecodeError as error:
            raise wrong_encoding(path, sample.encoding) from error

    return parse_records(path, records, expected='lines as 1<TAB>"The <e1>cause</e1> of the <e2>effect</e2>."')


def _examples(handle: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, lines) of each example: a sentence, its relation and the comment."""
    first, lines = 0, list[str]()
    for number, line in enumerate(handle, start=1):
        if lines and (not line.strip() or SENTENCE.fullmatch(line)):
            yield first, lines
            lines = []
        if line.strip():
            first = first if lines else number
            lines.append(line.rstrip("\r\n"))
    if lines:
        yield first, lines


def _row(lines: list[str]) -> tuple[dict[str, Any] | None, str]:
    """Return the example, or None and why it cannot be used."""
    sentence = SENTENCE.fullmatch(lines[0])
    if sentence is None:
        return None, "no number, tab and sentence"
    text = sentence[2].removeprefix('"').removesuffix('"') if sentence[2].startswith('"') else sentence[2]
    if "\0" in text:
        return None, "a NUL character"
    places = [[match.start() for match in re.finditer(mark, text)] for mark in MARKS]
    if any(len(place) != 1 for place in places):
        return None, "the sentence has not exactly one <e1>...</e1> and one <e2>...</e2>"
    if not (places[0] < places[1] and places[2] < places[3] and (places[1] < places[2] or places[3] < places[0])):
        return None, "the tags are crossed"
    relations = [line.strip() for line in lines[1:] if not line.lstrip().lower().startswith("comment")]
    if len(relations) > 1:
        return None, f"{len(relations)} lines between the sentence and its comment, where the relation is one"
    return {"id": sentence[1], "text": text, "relation": relations[0] if relations else None}, ""
