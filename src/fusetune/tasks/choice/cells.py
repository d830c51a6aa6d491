"""The answers of multiple-choice questions: an index, a letter, a column's name, or the text of the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from fusetune.errors import BadCell, TableError, shown
from fusetune.modalities.words import is_blank, words_text
from fusetune.tasks.cells import is_whole, label_text

Form = Literal["text", "letter", "index0", "index1", "column"]
FORMS: tuple[Form, ...] = ("text", "letter", "index0", "index1", "column")
"""How an answer names its choice. index0: counted from 0. index1: counted from 1. column: by its column's name."""
MEANINGS: dict[Form, str] = {
    "text": "the text of a choice",
    "letter": "a letter, A for the first choice",
    "index0": "an index counted from 0",
    "index1": "an index counted from 1",
    "column": "the name of a choice's column",
}
MIN_SHARE = 0.5
"""The least share of rows whose answers must fit a form."""


@dataclass(frozen=True)
class Answered:
    """A target's cell beside the choices that it is about, "" for blank ones."""

    value: Any
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Right:
    """The right answer: its position among the row's choices, "" for blank ones."""

    position: int
    choices: tuple[str, ...]

    @property
    def real(self) -> list[int]:
        """The positions of the choices that are not blank."""
        return real_choices(self.choices)

    @property
    def longest(self) -> int:
        """The position of the choice with the most characters, the first of several."""
        return max(self.real, key=lambda place: len(self.choices[place].strip()))


def real_choices(choices: Sequence[str]) -> list[int]:
    """Return the positions of the choices that are not blank."""
    return [position for position, choice in enumerate(choices) if not is_blank(choice)]


def letter(position: int) -> str:
    """Return the letter of a position: A, B, ..., Z, AA, AB, ...

    Example:
        >>> letter(0), letter(27)
        ('A', 'AB')
    """
    rest, last = divmod(position, 26)
    return (letter(rest - 1) if rest else "") + ascii_uppercase[last]


def answered(value: Any, cell: Any, *, num_before: int, row: int, column: str) -> Answered:
    """Return a target's cell with its row's choices.

    Args:
        value: the target's cell.
        cell: the texts before the choices and, last, the list of choices; None for a row without any of them.
        num_before: texts before the choices.
        row, column: for errors.

    Raises:
        BadCell: the row has no choices, or a choice is no text.
    """
    choices = tuple(words_text(choice, row=row, column=column) for choice in cell[num_before]) if cell else ()
    if not real_choices(choices):
        why = "the row has no choices"
        raise BadCell(row=row, column=column, value=value, why=why, do="give the row's choices, or leave the row out")
    return Answered(value, choices)


def position_of(value: Any, choices: Sequence[str], form: Form, columns: Sequence[str] = ()) -> int | None:
    """Return the position of the choice that an answer names, None if it names none, or more than one.

    Args:
        value: the target's cell.
        choices: the row's choices.
        form: how the answer names it.
        columns: the choices' columns, for the form "column".
    """
    text = label_text(value).strip()
    if form == "text":
        return _by_text(text, choices)
    if form == "column":
        place = columns.index(text) if text in columns else None
    elif form == "letter":
        mark = text.strip("().: ").upper()
        place = ascii_uppercase.index(mark) if len(mark) == 1 and mark in ascii_uppercase else None
    else:
        place = int(text) - (form == "index1") if is_whole(text) else None
    if place is None or not 0 <= place < len(choices) or is_blank(choices[place]):
        return None
    return place


def same_text(one: str, other: str) -> bool:
    """Return whether two choices are the same but for white space and case."""
    return _plain(one) == _plain(other)


def has_equal(choices: Sequence[str]) -> bool:
    """Return whether two of the choices have the same text."""
    texts = [_plain(choices[place]) for place in real_choices(choices)]
    return len(set(texts)) < len(texts)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _by_text(text: str, choices: Sequence[str]) -> int | None:
    """Return the position of the only choice with this text; where several differ in case only, of the exact one."""
    places = [place for place, choice in enumerate(choices) if not is_blank(choice) and same_text(choice, text)]
    if len(places) > 1:
        places = [place for place in places if choices[place].strip() == text]
    return places[0] if len(places) == 1 else None


@dataclass(frozen=True)
class FoundForm:
    """The form of a target's answers, the reason for it, and the share of rows whose answers fit it."""

    form: Form
    reason: str
    share: float


def find_form(rows: Sequence[Answered], columns: Sequence[str], *, target: str) -> FoundForm:
    """Find the form that fits the most answers; where the text of the choices fits as many as another form, text.

    Args:
        rows: one or more.
        columns: the choices' columns; a single one holds lists.
        target: for errors.

    Raises:
        TableError: fewer than half of the answers fit any form, or indices may be counted from 0 or from 1.
    """
    fits = {form: sum(position_of(row.value, row.choices, form, columns) is not None for row in rows) for form in FORMS}
    form = max(FORMS, key=lambda form: fits[form])
    if fits[form] < MIN_SHARE * len(rows):
        raise TableError(
            "the answers are none of the choices",
            expected="; ".join(MEANINGS[form] for form in FORMS if form != "column" or len(columns) > 1),
            came=f"{shown(rows[0].value, 60)}, of the choices {_few(rows[0].choices)}",
            do=f"name the columns of the choices: tasks.{target}.choices=[...]",
            column=target,
        )
    if form in ("index0", "index1") and fits["index0"] == fits["index1"]:
        raise TableError(
            "the answers may be indices counted from 0 or from 1: none is 0 or the number of choices",
            do=f"say which: tasks.{target}.form=index0 or tasks.{target}.form=index1",
            column=target,
        )
    return FoundForm(form, f"{fits[form]:,} of {len(rows):,} answers are {MEANINGS[form]}", fits[form] / len(rows))


def check_answer(answer: Answered, form: Form, columns: Sequence[str], *, row: int, column: str) -> None:
    """Refuse an answer that names no choice, or one of two that are the same, and a row with a single choice.

    Raises:
        BadCell: with the choices that there are.
    """
    choices, value = answer.choices, answer.value
    real = real_choices(choices)
    if len(real) < 2:
        why = "the row has one choice only"
        raise BadCell(row=row, column=column, value=value, why=why, do="give two choices or more, or leave it out")
    place = position_of(value, choices, form, columns)
    if place is None:
        why = f"it is none of the choices {_few(choices)}"
        twice = form == "text" and any(same_text(choice, label_text(value)) for choice in choices)
        if twice:
            why = "several of the choices have this text"
        do = f"answers are {MEANINGS[form]}" if not twice else "give every choice a text of its own"
        raise BadCell(row=row, column=column, value=value, why=why, do=do)
    same = [other for other in real if other != place and same_text(choices[other], choices[place])]
    if same:
        why = f"the choices {letter(place)} and {letter(same[0])} are the same: {shown(choices[place], 60)}"
        raise BadCell(row=row, column=column, value=value, why=why, do="give every choice a text of its own")


def _few(choices: Sequence[str]) -> str:
    named = [f"{letter(place)}: {shown(choices[place], 40)}" for place in real_choices(choices)[:8]]
    return "; ".join(named) + ("; …" if len(choices) > 8 else "")
