"""Where words begin and end in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

Unit = Literal["spaced", "word", "token"]
"""What entities begin and end with: what spaces separate, words of letters and digits, or any token."""
UNITS: tuple[Unit, ...] = ("spaced", "word")
"""Units that spans may split, the longest first."""

SPACELESS = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
"""Scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, Japanese kana, Chinese characters."""


def _of_word(character: str) -> bool:
    code = ord(character)
    if code >= 0x20000:  # Chinese characters beyond the basic plane
        return False
    return character.isalnum() and not any(first <= code <= last for first, last in SPACELESS)


def splits_word(text: str, index: int, unit: Unit) -> bool:
    """Return whether an index of a text lies within a unit.

    Characters of scripts without spaces between words are words of their own.
    """
    if not 0 < index < len(text) or unit == "token":
        return False
    before, after = text[index - 1], text[index]
    if unit == "spaced":
        return not before.isspace() and not after.isspace()
    return _of_word(before) and _of_word(after)


_SPACELESS = "".join(f"{chr(first)}-{chr(last)}" for first, last in SPACELESS) + f"{chr(0x20000)}-{chr(0x10FFFF)}"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")


def word_starts(text: str) -> np.ndarray:
    """Return the first character of each word of letters and digits, (words,), ascending.

    Characters of scripts without spaces between words are words of their own.

    Example:
        >>> word_starts("Ada's 東京").tolist()
        [0, 4, 6, 7]
    """
    return np.array([match.start() for match in _WORD.finditer(text)], dtype=np.int64)


def word_numbers(starts: np.ndarray, places: Sequence[int]) -> list[int]:
    """Return the number of the word that begins at each place, or before it, from 0; 0 for a place before all words.

    Args:
        starts: as `word_starts` returns them.
        places: characters of the text.
    """
    numbers: list[int] = np.maximum(np.searchsorted(starts, places, side="right") - 1, 0).tolist()
    return numbers


def continues_word(text: str, spans: np.ndarray, unit: Unit) -> np.ndarray:
    """Return which tokens go on with the unit of the token before, (tokens,) bool.

    Args:
        text: the tokens' text.
        spans: (tokens, 2) the tokens' characters.
        unit: whose.
    """
    if unit == "token":
        return np.zeros(len(spans), dtype=bool)
    starts, ends = spans[1:, 0], spans[:-1, 1]
    inside = [start <= end and splits_word(text, int(start), unit) for start, end in zip(starts, ends, strict=True)]
    return np.array([False, *inside][: len(spans)], dtype=bool)


def splits_by_unit(text: str, spans: Iterable[tuple[int, int, str]]) -> dict[Unit, int]:
    """Return by unit how many of the spans begin or end within one."""
    spans = list(spans)
    return {unit: sum(any(splits_word(text, at, unit) for at in span[:2]) for span in spans) for unit in UNITS}
