"""Predicted spans of a text as CoNLL columns: a word a line, a blank line between rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.words import words_text
from fusetune.tasks.base import TargetTask

WORD = re.compile(r"\w+|[^\w\s]")

Piece = tuple[str, int, int]
"""A word, its first character and the one after its last."""


@dataclass(frozen=True)
class Spans:
    """Columns of predicted spans of one text.

    Attributes:
        columns: their names.
        texts: the rows' cells that the spans lie in.
    """

    columns: tuple[str, ...]
    texts: Sequence[Any]


def span_targets(tasks: Iterable[TargetTask]) -> tuple[tuple[str, ...], str | None]:
    """Return the targets whose answers are spans of a text, and the column of that text; None if it is not one."""
    found = [task for task in tasks if task.answers_spans]
    texts = {task.reads for task in found}
    return tuple(task.target for task in found), texts.pop() if len(texts) == 1 else None


def require_spans(has: bool, path: str | Path) -> None:
    """Refuse to write predictions as CoNLL columns if they have no spans of one text.

    Raises:
        ConfigError: as described.
    """
    if not has:
        raise ConfigError(
            f"these predictions cannot be written as {str(path)!r}",
            expected="targets whose answers are spans of one text, as of the task entities",
            do=f"--out {Path(path).with_suffix('.csv')}",
        )


def conll_block(text: Any, spans: Mapping[str, Sequence[Mapping[str, Any]] | None], error: str | None, row: int) -> str:
    """Return a row as lines of word, start, end, and a score and a BIO tag for each target, separated by tabs.

    Words are those of the cell's list, else runs of letters and digits, and single other characters; a word is cut
    where a span begins or ends. The score is that of the word's span, `_` outside. A span that overlaps an earlier one
    is in a comment, as is the error of a row.

    Args:
        text: the cell that the spans lie in.
        spans: by target, as `{"start", "end", "label", "score"}`; None for a row without a prediction.
        error: of the row.
        row: its number.

    Example:
        >>> spans = {"tags": [{"start": 0, "end": 3, "label": "PER", "score": 0.9}]}
        >>> [line.split("\\t") for line in conll_block("Ada left", spans, None, 0).split("\\n")]
        [['Ada', '0', '3', '0.9000', 'B-PER'], ['left', '4', '8', '_', 'O']]
    """
    comments = [f"# row = {row}", f"# error = {_one_line(error)}"] if error is not None else []
    chosen: list[list[Mapping[str, Any]]] = []
    for target, entries in spans.items():
        apart, overlapping = _apart(entries or ())
        chosen.append(apart)
        comments += [
            f"# {_one_line(target)} = {entry['start']} {entry['end']} {_one_line(entry['label'])} {entry['score']:.4f}"
            for entry in overlapping
        ]
    cuts = {entry[end] for entries in chosen for entry in entries for end in ("start", "end")}
    lines = []
    for word, start, end in _pieces(text, cuts):
        cells = [_cells(entries, start, end) for entries in chosen]
        lines.append("\t".join([_one_line(word), str(start), str(end), *(cell for pair in cells for cell in pair)]))
    return "\n".join([*comments, *lines])


def _apart(entries: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return spans that do not overlap, the longest at each place, and the others."""
    apart: list[Mapping[str, Any]] = []
    others: list[Mapping[str, Any]] = []
    for entry in sorted(entries, key=lambda span: (span["start"], -span["end"], -span["score"])):
        (others if apart and entry["start"] < apart[-1]["end"] else apart).append(entry)
    return apart, others


def _pieces(cell: Any, cuts: set[int]) -> Iterable[Piece]:
    """Yield the words of a text, cut at some characters."""
    try:
        text = words_text(cell, row=0, column="")
    except BadCell:  # no text, which the row's error says
        return
    if isinstance(cell, list | tuple):
        words, start = [], 0
        for word in cell:
            words.append((start, start + len(word)))
            start += len(word) + 1
    else:
        words = [match.span() for match in WORD.finditer(text)]
    for start, end in words:
        for first, last in pairwise(sorted({start, end, *(cut for cut in cuts if start < cut < end)})):
            yield text[first:last], first, last


def _cells(entries: Sequence[Mapping[str, Any]], start: int, end: int) -> tuple[str, str]:
    """Return the score and the tag of a word."""
    entry = next((span for span in entries if span["start"] < end and span["end"] > start), None)
    if entry is None:
        return "_", "O"
    return f"{entry['score']:.4f}", f"{'B' if entry['start'] >= start else 'I'}-{_one_line(entry['label'])}"


def _one_line(text: str) -> str:
    return " ".join(str(text).split())
