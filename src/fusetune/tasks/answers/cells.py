"""Cells that hold answers to questions about a text: as SQuAD has them, with a start, or as text alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusetune.data.distinct import is_missing
from fusetune.errors import BadCell, shown

STARTS = ("answer_start", "start")
"""The keys of an answer's first character."""


@dataclass(frozen=True)
class Gold:
    """The right answers of a row.

    Attributes:
        texts: none if the context has no answer.
        spans: where they are in the context, as (first character, the one after the last).
        repeated: whether an answer given without its start occurs several times; the first occurrence is in `spans`.
    """

    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    repeated: bool = False


def parsed(value: Any) -> Any:
    """Return a cell, parsed if it is a list or an object as JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def is_answer_dict(value: Any) -> bool:
    """Return whether a value is an object with an answer's text and its start."""
    return isinstance(value, Mapping) and "text" in value and any(key in value for key in STARTS)


def gold(value: Any, start: Any, context: str, *, row: int, column: str) -> Gold:
    """Return a row's right answers.

    Args:
        value: the answer's cell: text, `{"text", "answer_start"}` with one value each or a list each, or a list of
            any of these. Empty for no answer.
        start: the cell of the start's column; None without one, -1 for no answer.
        context: the text that has the answer.
        row, column: for errors.

    Raises:
        BadCell: an answer is not in the context, or not at its start.
    """
    value = parsed(value)
    pairs = _pairs(None if is_missing(value) else value, row=row, column=column)
    pairs = [(text, begin) for text, begin in pairs if text]
    if not is_missing(start) and (begin := _number(start, row=row, column=column)) >= 0:
        if len(pairs) != 1:
            why = f"there is a start, {begin}, and {'no answer' if not pairs else 'more than one answer'}"
            raise BadCell(row=row, column=column, value=value, why=why, do="give -1 for no answer")
        pairs = [(pairs[0][0], begin)]
    texts, spans, repeated = [], [], False
    for text, given in pairs:
        begin = _find(text, context, row=row, column=column) if given is None else given
        if given is None:
            repeated |= context.find(text, begin + 1) >= 0
        elif context[begin : begin + len(text)] != text or begin < 0:
            there = shown(context[max(begin, 0) : max(begin, 0) + len(text)])
            why = f"the answer starts at {begin}, where the context has {there}"
            do = "count characters from 0, or leave the start out"
            raise BadCell(row=row, column=column, value=text, why=why, do=do)
        texts.append(text)
        spans.append((begin, begin + len(text)))
    return Gold(tuple(texts), tuple(dict.fromkeys(spans)), repeated)


def _find(text: str, context: str, *, row: int, column: str) -> int:
    begin = context.find(text)
    if begin < 0:
        why = "the answer is not in the context"
        do = "give it word by word as the context has it"
        raise BadCell(row=row, column=column, value=text, why=why, do=do)
    return begin


def _pairs(value: Any, *, row: int, column: str) -> list[tuple[str, int | None]]:
    """Return a cell's answers as (text, start or None)."""
    if value is None:
        return []
    if isinstance(value, str):
        return [(value.strip(), None)]
    if isinstance(value, bool | int | float):
        return [(str(value), None)]
    if isinstance(value, list | tuple):
        return [pair for entry in value for pair in _pairs(parsed(entry), row=row, column=column)]
    if isinstance(value, Mapping) and "text" in value:
        texts = value["text"]
        begins = next((value[key] for key in STARTS if key in value), None)
        if not isinstance(texts, list | tuple):
            texts, begins = [texts], [begins]
        begins = [None] * len(texts) if begins is None else begins
        if isinstance(begins, list | tuple) and len(begins) == len(texts):
            return [_pair(*pair, row=row, column=column) for pair in zip(texts, begins, strict=True)]
        why = f"there are {len(texts)} texts, and their starts are {shown(begins)}"
        raise BadCell(row=row, column=column, value=value, why=why, do="give one start a text")
    why = f"{shown(value)} is no answer"
    do = 'give a text, or {"text": ["in Rome"], "answer_start": [12]}'
    raise BadCell(row=row, column=column, value=value, why=why, do=do)


def _pair(text: Any, begin: Any, *, row: int, column: str) -> tuple[str, int | None]:
    text = "" if text is None else str(text)
    if is_missing(begin):
        return text.strip(), None
    number = _number(begin, row=row, column=column)
    return ("", None) if number == -1 and not text else (text, number)


def _number(start: Any, *, row: int, column: str) -> int:
    try:
        number = float(start)
        if number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        why = f"the start {shown(start)} is no whole number"
        raise BadCell(row=row, column=column, value=start, why=why, do="count characters from 0") from None
    return int(number)
