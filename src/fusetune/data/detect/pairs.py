"""Detection of two text columns that are a pair, by their names."""

from __future__ import annotations

from collections.abc import Sequence

from fusetune.data.detect.roles import words_of

COUNTERPARTS = (
    ("a", "b"),
    ("0", "1"),
    ("1", "2"),
    ("i", "ii"),
    ("x", "y"),
    ("one", "two"),
    ("first", "second"),
    ("left", "right"),
)
"""Words in which the names of a pair's columns differ, as in sentence_a and sentence_b."""
PAIRS = (
    ("premise", "hypothesis"),
    ("text", "hypothesis"),
    ("claim", "evidence"),
    ("statement", "evidence"),
    ("query", "passage"),
    ("query", "document"),
    ("question", "passage"),
    ("question", "paragraph"),
    ("question", "sentence"),
    ("question", "answer"),
    ("question", "context"),
    ("sentence", "paraphrase"),
    ("reference", "candidate"),
    ("post", "reply"),
    ("comment", "reply"),
)
"""Names of columns that are read against each other, in the field's data sets."""


def is_pair(first: str, second: str) -> bool:
    """Return whether two columns' names say that they are a pair, in either order.

    A title and a body are none: each says something of its own.

    Example:
        >>> is_pair("premise", "hypothesis"), is_pair("question1", "question2"), is_pair("title", "body")
        (True, True, False)
    """
    words = [_words(first), _words(second)]
    for left, right in ((words[0], words[1]), (words[1], words[0])):
        if (" ".join(left), " ".join(right)) in PAIRS:
            return True
        differing = [pair for pair in zip(left, right, strict=False) if pair[0] != pair[1]]
        if len(left) == len(right) and len(differing) == 1 and differing[0] in COUNTERPARTS and len(left) > 1:
            return True
    return False


def _words(name: str) -> Sequence[str]:
    """Split a name into words, with a number or a capital letter at its end as a word of its own."""
    words = words_of(name)
    if not words:
        return words
    last = words[-1]
    stem = last.rstrip("0123456789")
    return [*words[:-1], stem, last[len(stem) :]] if stem and stem != last else words
