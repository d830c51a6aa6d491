"""Statistics of a sample of cells, on which the modalities base their detection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""A plain decimal number: optional sign, digits, a point as the decimal mark, an optional exponent."""

_CODE = re.compile(r"[+-]?0\d+", re.ASCII)  # 00501: a number would lose the leading zeros
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # scripts that write few spaces
_MAX_CHARS = 2000
_EXACT_INTEGER = 2**53


@dataclass(frozen=True)
class CellProfile:
    """Counts and shares of a sample of cells.

    Attributes:
        num: number of cells.
        num_distinct: number of distinct cells, after stripping white space.
        scalars: share of strings, numbers and booleans, 0 to 1.
        booleans: share of booleans, 0 to 1.
        numbers: share of numbers and of strings that spell a number, 0 to 1.
        codes: share of digit strings with a leading zero, such as 00501, 0 to 1.
        num_inexact: number of integers beyond 2^53, which a float cannot represent exactly.
        words: mean number of words a cell; in scripts without spaces, two characters count as one word.
        chars: mean number of characters a cell.
    """

    num: int
    num_distinct: int
    scalars: float
    booleans: float
    numbers: float
    codes: float
    num_inexact: int
    words: float
    chars: float

    @property
    def distinct(self) -> float:
        """Share of the cells that are distinct, 0 to 1."""
        return self.num_distinct / self.num if self.num else 0.0

    @property
    def repeats(self) -> bool:
        """Whether the cells come from a small set of short values; longer values must repeat more often."""
        if not self.num or self.chars > 100 or (self.words > 12 and self.num_distinct > 30):
            return False
        return (
            self.distinct <= 0.2
            or (self.distinct <= 0.5 and self.words <= 4)
            or (self.num < 50 and self.distinct <= 0.8 and self.words <= 2)
        )

    @property
    def numeric(self) -> bool:
        """Whether nearly all cells are numbers, and none is a code or a boolean."""
        return self.numbers >= 0.95 and self.codes == 0 and self.booleans < 0.5


def plain(cell: Any) -> Any:
    """Convert a numpy scalar to a Python value; return other objects, and numpy times, unchanged."""
    return cell.item() if isinstance(cell, np.generic) and cell.dtype.kind in "biufcU" else cell


def profile_cells(values: Sequence[Any]) -> CellProfile:
    """Return the profile of a sample of cells, none of which is missing."""
    scalars = [value for value in values if isinstance(value, str | bool | int | float | np.generic)]
    texts = [str(value)[:_MAX_CHARS].strip() for value in scalars]
    spelled = [text for text in texts if NUMBER.fullmatch(text)]
    num = len(values)
    return CellProfile(
        num=num,
        num_distinct=len(set(texts)) + (num - len(scalars)),
        scalars=_share(len(scalars), num),
        booleans=_share(sum(isinstance(value, bool | np.bool_) for value in scalars), num),
        numbers=_share(len(spelled), num),
        codes=_share(sum(bool(_CODE.fullmatch(text)) for text in spelled), num),
        num_inexact=sum(text.lstrip("+-").isdigit() and abs(float(text)) > _EXACT_INTEGER for text in spelled),
        words=_share(sum(_num_words(text) for text in texts), len(texts)),
        chars=_share(sum(len(str(value)) for value in scalars), len(texts)),
    )


def _num_words(text: str) -> float:
    return len(text.split()) + len(_UNSPACED.findall(text)) / 2


def _share(part: float, total: int) -> float:
    return part / total if total else 0.0
