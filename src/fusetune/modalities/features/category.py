"""Features of categories: one-hot vectors over a vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import numpy as np

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.profile import plain
from fusetune.modalities.values import ValueIndex, merged
from fusetune.modalities.words import check_text

MAX_CHARS = 1000
"""Maximum length of a value; longer ones are text."""

OTHER = 0
"""The feature of all values outside the vocabulary, which are rare or absent in train rows."""


class CategoryFeatures:
    """Decodes categories and computes their features; see `fusetune.modalities.category.CategoryModality`."""

    def __init__(self, column: str, *, max_size: int = 1000, min_count: int = 2) -> None:
        """
        Args:
            column: the column's name.
            max_size: maximum size of the vocabulary, 1 or more.
            min_count: minimum number of train rows of a value in the vocabulary, 1 or more.
        """
        self.column = column
        if max_size < 1 or min_count < 1:
            raise ConfigError(
                "a category column's options are out of range",
                column=column,
                expected="max_size and min_count of 1 or more",
                came=f"max_size={max_size}, min_count={min_count}",
            )
        self.max_size, self.min_count = max_size, min_count
        self.vocabulary: list[str] = []
        self._index = ValueIndex()

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> str:
        """Return the value's name.

        Raises:
            BadCell: it is bytes, a list or a mapping, blank, longer than `MAX_CHARS`, or holds a lone surrogate.
        """
        cell = plain(cell)
        if not isinstance(cell, str | bool | int | float | Decimal | date | time):
            why = f"it is of type {type(cell).__name__}, not a name"
            raise BadCell(row=row, column=self.column, value=cell, why=why, do="give one string, number or boolean")
        if isinstance(cell, float) and cell.is_integer():
            cell = int(cell)
        name = str(cell).strip()
        if not name:
            do = "empty the cell if the value is missing"
            raise BadCell(row=row, column=self.column, value=cell, why="it is only white space", do=do)
        if len(name) > MAX_CHARS:
            why, do = f"it has {len(name):,} characters, more than {MAX_CHARS:,}", f"make {self.column!r} a text column"
            raise BadCell(row=row, column=self.column, value=cell, why=why, do=do)
        check_text(name, row=row, column=self.column)
        return name

    def fit(self, examples: Sequence[str]) -> None:
        """Fit the vocabulary on train rows; equally frequent values are in alphabetical order."""
        counts = sorted(merged(Counter(examples)).items(), key=lambda item: (-item[1], item[0]))
        frequent = [name for name, count in counts if count >= self.min_count] or [name for name, _ in counts]
        self._set_vocabulary(frequent[: self.max_size])

    def _set_vocabulary(self, names: list[str]) -> None:
        self.vocabulary = names
        self._index = ValueIndex(names, start=OTHER + 1)

    def is_known(self, example: str) -> bool:
        """Return whether the value is in the vocabulary."""
        return self._index.find(example) is not None

    def features(self, examples: Sequence[str]) -> np.ndarray:
        """Return (examples, 1 + vocabulary) float32, one-hot; the first feature is `OTHER`."""
        matches = [self._index.find(name) for name in examples]
        values = np.zeros((len(matches), self.dim), dtype=np.float32)
        values[np.arange(len(matches)), [OTHER if index is None else index for index in matches]] = 1
        return values

    @property
    def dim(self) -> int:
        """How many features a category has."""
        return len(self.vocabulary) + 1

    def state(self) -> dict[str, Any]:
        """Return the options and the vocabulary."""
        return {
            "max_size": self.max_size,
            "min_count": self.min_count,
            "vocabulary": self.vocabulary,
        }

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> Self:
        """Return the object that `state()` described."""
        restored = cls(column, max_size=state["max_size"], min_count=state["min_count"])
        restored._set_vocabulary(list(state["vocabulary"]))
        return restored
