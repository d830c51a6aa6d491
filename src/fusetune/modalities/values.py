"""When two cells are the same value: 1, 1.0 and "1", True and "true", in tables of any format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_WHOLE_FLOAT = re.compile(r"([+-]?(?:0|[1-9]\d*))\.0+", re.ASCII)
_TWINS = {"true": "1", "false": "0", "1": "true", "0": "false"}
_SWITCHES = ({"true", "false"}, {"1", "0"})


def canonical(text: str) -> str:
    """Return one text for all ways to write a value: "1" for "1.0", "true" for "True"; others unchanged.

    Codes keep their zeros: "01" and "1.10" are not "1" and "1.1".

    Example:
        >>> [canonical(text) for text in ["1.0", "1", "TRUE", "01", "1.10", "Yes"]]
        ['1', '1', 'true', '01', '1.10', 'Yes']
    """
    if whole := _WHOLE_FLOAT.fullmatch(text):
        return whole[1]
    lowered = text.lower() if len(text) <= 5 else text
    return lowered if lowered in _SWITCHES[0] else text


def merged(counts: Mapping[str, int], *, numbers: bool = False) -> Counter[str]:
    """Add up the counts of texts that are one value, under its most frequent text; the first in order wins ties.

    Args:
        counts: by text.
        numbers: whether values that all are whole numbers are called by them: "1" for "1.0".
    """
    forms: dict[str, list[str]] = {}
    for text in counts:
        forms.setdefault(canonical(text), []).append(text)
    whole = numbers and all(re.fullmatch(r"[+-]?\d+", value) for value in forms)
    return Counter(
        {
            value if whole else min(texts, key=lambda text: (-counts[text], text)): sum(counts[text] for text in texts)
            for value, texts in forms.items()
        }
    )


class ValueIndex:
    """Places of values, found by any of their forms.

    True and 1 are the same only where the values are 0 and 1, or true and false, and nothing else.
    """

    def __init__(self, names: Sequence[str] = (), *, start: int = 0) -> None:
        """
        Args:
            names: one text a value.
            start: the first one's place.
        """
        self._places: dict[str, int] = {}
        for index, name in enumerate(names, start):
            self._places.setdefault(canonical(name), index)
        values = set(self._places)
        if values and any(values <= switch for switch in _SWITCHES):
            self._places |= {_TWINS[value]: index for value, index in list(self._places.items())}
        self._places |= {name: index for index, name in enumerate(names, start)}

    def find(self, text: str) -> int | None:
        """Return the place of a text's value, or None."""
        index = self._places.get(text)
        return self._places.get(canonical(text)) if index is None else index


def num_distinct(texts: Iterable[str]) -> int:
    """Return how many different values these texts are."""
    return len({canonical(text) for text in texts})
