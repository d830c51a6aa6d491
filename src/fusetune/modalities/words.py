"""Cells as texts, and texts as token ids, without torch: shared by text columns and `fusetune.runtime`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

import numpy as np

from fusetune.errors import BadCell

CHARS_PER_TOKEN = 20
"""Characters a token that a long text is first truncated to, several times the average of any language."""

MAX_CHARS = 2**20
"""Characters of a text that are tokenised at most; it bounds the time for texts with very few tokens."""


def check_text(text: str, *, row: int, column: str) -> None:
    """Refuse text that cannot be encoded as UTF-8.

    Raises:
        BadCell: it holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        why = f"character {error.start} is half a character (the lone surrogate {text[error.start]!a})"
        do = "write the file again as UTF-8; such halves come from cutting text between two UTF-16 units"
        raise BadCell(row=row, column=column, value=ascii(text[:120]), why=why, do=do) from error


def lists_of_words(values: Sequence[Any]) -> bool:
    """Return whether cells are lists of words, as taggers read them: all strings, without spaces."""
    lists = [value for value in values if isinstance(value, list) and value]
    words = [word for value in lists[:200] for word in value]
    plain = bool(words) and all(isinstance(word, str) and not any(map(str.isspace, word)) for word in words)
    return plain and len(lists) == len(values)


def is_blank(text: str) -> bool:
    """Return whether a text has nothing but white space."""
    return not text or text.isspace()


def words_text(cell: Any, *, row: int, column: str) -> str:
    """Return a cell as one text: a string as it is, a list of words separated by single spaces.

    Raises:
        BadCell: it is neither.
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list | tuple) and all(isinstance(word, str) for word in cell):
        return " ".join(cell)
    if cell is None:
        return ""
    if isinstance(cell, bool | int | float):
        return str(cell)
    why = f"it is of type {type(cell).__name__}, not text"
    raise BadCell(row=row, column=column, value=cell, why=why, do="give one string, or a list of words")


def read_text(cell: Any, *, row: int, column: str) -> str:
    """Return a cell as one text: a string unchanged, a number, date or truth value in words, or a list of words joined.

    Raises:
        BadCell: it is none of these, or holds a lone surrogate.
    """
    if isinstance(cell, bool | int | float | Decimal | date | time):
        cell = str(cell)
    if isinstance(cell, list) and not lists_of_words([cell]):
        why = "it is of type list, not text, and no list of words"
        raise BadCell(row=row, column=column, value=cell, why=why, do="give one string")
    text = words_text(cell, row=row, column=column)
    check_text(text, row=row, column=column)
    return text


def tokenize_start(text: str, tokenize: Callable[[str], np.ndarray], max_tokens: int) -> tuple[np.ndarray, bool]:
    """Tokenise as much of a text as an encoder reads, in time proportional to `max_tokens`.

    A long text is first truncated generously at white space. If that leaves too few tokens (a page of spaces), the
    limit is doubled, so that the tokens are those of the text's first `MAX_CHARS` characters.

    Args:
        text: of any length.
        tokenize: returns up to `max_tokens` token ids of a text.
        max_tokens: most tokens.

    Returns:
        The token ids, (tokens,) int32, and whether the text may be longer than they are.
    """
    cut_off, text = len(text) > MAX_CHARS, text[:MAX_CHARS]
    num_chars = max(max_tokens * CHARS_PER_TOKEN, 1000)
    while num_chars < len(text):
        cut = text[:num_chars]
        space = max(cut.rfind(" "), cut.rfind("\n"), cut.rfind("\t"))
        tokens = tokenize(cut[:space] if space > num_chars // 2 else cut)
        if len(tokens) >= max_tokens:
            return np.asarray(tokens, dtype=np.int32), True
        num_chars *= 2
    tokens = tokenize(text)
    return np.asarray(tokens, dtype=np.int32), cut_off or len(tokens) >= max_tokens
