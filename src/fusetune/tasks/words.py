"""Where words begin and end in a text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

SPACELESS = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
"""Scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, Japanese kana, Chinese characters."""


def _of_word(character: str) -> bool:
    code = ord(character)
    if code >= 0x20000:  # Chinese characters beyond the basic plane
        return False
    return character.isalnum() and not any(first <= code <= last for first, last in SPACELESS)


def splits_word(text: str, index: int) -> bool:
    """Return whether an index of a text lies within a word: between two letters or digits.

    Characters of scripts without spaces between words are words of their own.
    """
    return 0 < index < len(text) and _of_word(text[index - 1]) and _of_word(text[index])


def continues_word(text: str, spans: np.ndarray) -> np.ndarray:
    """Return which tokens go on with the word of the token before, (tokens,) bool.

    Args:
        text: the tokens' text.
        spans: (tokens, 2) the tokens' characters.
    """
    starts, ends = spans[1:, 0], spans[:-1, 1]
    inside = [start == end and splits_word(text, int(start)) for start, end in zip(starts, ends, strict=True)]
    return np.array([False, *inside][: len(spans)], dtype=bool)


def split_words(text: str, spans: Iterable[tuple[int, int, str]]) -> int:
    """Return how many of the spans begin or end within a word."""
    return sum(splits_word(text, start) or splits_word(text, end) for start, end, _ in spans)
