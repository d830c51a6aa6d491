"""Which columns hold the choices of multiple-choice questions, and what is read with them: found by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

SERIES = (
    *("answer", "ans", "choice", "option", "opt", "op", "ending", "candidate", "alternative", "solution", "sol"),
    *("hypothesis", "response", "completion"),
)
"""Names of choices before their letter or number, as in answerA, option_1, ending0; without a plural's s."""
LISTS = ("choices", "options", "endings", "candidates", "alternatives", "answers", "solutions", "responses")
"""Names of columns whose cells are lists of choices."""
CONTEXTS = (
    *("context", "ctx", "passage", "article", "paragraph", "document", "story", "premise", "sent1", "startphrase"),
    *("sentence", "dialogue", "support", "text"),
)
QUESTIONS = ("question", "query", "question_stem", "stem", "sent2", "ask_for", "goal", "prompt")
"""Names of the columns that are read with the choices, contexts first."""
_LAST = re.compile(r"(?P<stem>.*?)s?[\s._-]*(?P<mark>[A-Za-z]|\d+)")


@dataclass(frozen=True)
class ChoiceColumns:
    """The columns of choices.

    Attributes:
        names: several columns, or one column of lists.
        reason: how they were found.
    """

    names: tuple[str, ...]
    reason: str


def find_choices(columns: Sequence[str]) -> ChoiceColumns | None:
    """Return the columns of choices by their names: a series such as answerA, answerB, or a list such as choices.

    Args:
        columns: names of a table's columns, without targets.

    Example:
        >>> find_choices(["context", "ending0", "ending1", "label"]).names
        ('ending0', 'ending1')
    """
    found = series(columns)
    for stem in (*SERIES, ""):
        if stem in found:
            names = found[stem]
            return ChoiceColumns(names, f"{', '.join(names)} are the choices by their names")
    known = {name.casefold(): name for name in columns}
    listed = next((known[name] for name in LISTS if name in known), None)
    return None if listed is None else ChoiceColumns((listed,), f"{listed} holds the choices by its name")


def series(columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return columns that differ in a last letter or number only, A, B, ... or 0, 1, ... or 1, 2, ..., by their stem.

    Columns called A, B, C and so on have the stem "".
    """
    marks: dict[str, dict[str, str]] = {}
    for name in columns:
        match = _LAST.fullmatch(name)
        if match is None or name.casefold() in LISTS:
            continue
        stem, mark = match["stem"].casefold(), match["mark"]
        if stem or (mark.isalpha() and mark.isupper()):
            marks.setdefault(stem, {}).setdefault(mark.upper(), name)
    found = {}
    for stem, named in marks.items():
        for orders in (ascii_uppercase, [str(n) for n in range(100)], [str(n) for n in range(1, 100)]):
            run = [mark for mark, expected in zip(sorted(named, key=_order), orders, strict=False) if mark == expected]
            if len(run) == len(named) >= 2:
                found[stem] = tuple(named[mark] for mark in run)
    return found


def _order(mark: str) -> tuple[bool, int, str]:
    return (mark.isalpha(), int(mark) if mark.isdigit() else 0, mark)


def find_context(kinds: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the columns that are read with the choices: those with usual names, else the only text; None if unclear.

    Args:
        kinds: by column, its kind; without targets and choices.
    """
    known = {name.casefold(): name for name in kinds}
    named = [next((known[name] for name in names if name in known), None) for names in (CONTEXTS, QUESTIONS)]
    if any(named):
        return tuple(name for name in named if name is not None)
    texts = [name for name, kind in kinds.items() if kind == "text"]
    return tuple(texts) if len(texts) <= 1 else None
