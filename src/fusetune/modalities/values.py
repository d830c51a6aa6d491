"""Equality of values across table formats: 1, 1.0 and "1" are the same, as are True and "true"."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_INTEGRAL_FLOAT = re.compile(r"([+-]?(?:0|[1-9]\d*))\.0+", re.ASCII)
_TWINS = {"true": "1", "false": "0", "1": "true", "0": "false"}
_SWITCHES = ({"true", "false"}, {"1", "0"})


def canonical(text: str) -> str:
    """Return the canonical form of a value: "1" for "1.0", "true" for "True"; other texts are unchanged.

    Codes keep their zeros: "01" and "1.10" differ from "1" and "1.1".

    Example:
        >>> [canonical(text) for text in ["1.0", "1", "TRUE", "01", "1.10", "Yes"]]
        ['1', '1', 'true', '01', '1.10', 'Yes']
    """
    if match := _INTEGRAL_FLOAT.fullmatch(text):
        return match[1]
    lowered = text.lower() if len(text) <= 5 else text
    return lowered if lowered in _SWITCHES[0] else text


def merged(counts: Mapping[str, int], *, numbers: bool = False) -> Counter[str]:
    """Merge the counts of texts that are the same value, under its most frequent text (ties: the first in order).

    Args:
        counts: by text.
        numbers: use the canonical form, "1" for "1.0", if all values are integers.
    """
    forms: dict[str, list[str]] = {}
    for text in counts:
        forms.setdefault(canonical(text), []).append(text)
    canonical_names = numbers and all(re.fullmatch(r"[+-]?\d+", value) for value in forms)
    result: Counter[str] = Counter()
    for value, texts in forms.items():
        name = value if canonical_names else min(texts, key=lambda text: (-counts[text], text))
        result[name] = sum(counts[text] for text in texts)
    return result


class ValueIndex:
    """Maps a value, in any of its forms, to its index.

    True and 1 are the same only if the values are just 0 and 1, or just true and false.
    """

    def __init__(self, names: Sequence[str] = (), *, start: int = 0) -> None:
        """
        Args:
            names: one text for each value.
            start: index of the first value.
        """
        self._indices: dict[str, int] = {}
        for index, name in enumerate(names, start):
            self._indices.setdefault(canonical(name), index)
        values = set(self._indices)
        if values and any(values <= switch for switch in _SWITCHES):
            self._indices |= {_TWINS[value]: index for value, index in list(self._indices.items())}
        self._indices |= {name: index for index, name in enumerate(names, start)}

    def find(self, text: str) -> int | None:
        """Return the index of a text's value, or None."""
        index = self._indices.get(text)
        return self._indices.get(canonical(text)) if index is None else index


def num_distinct(texts: Iterable[str]) -> int:
    """Return the number of distinct values among texts."""
    return len({canonical(text) for text in texts})
