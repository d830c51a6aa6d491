"""Augmented views of a column, made once and used in turn, so that a frozen encoder runs once a view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusetune.data.column import Column
from fusetune.data.examples import Examples


class View(Column):
    """A column with one cell a row, augmented with draws that depend on (seed, view, row, column) alone."""

    def __init__(self, examples: Examples, name: str, number: int) -> None:
        """
        Args:
            examples: prepared rows; the view holds the used rows that have the column.
            name: of an augmented column.
            number: of the view, which has the cells of epoch `number` without views.
        """
        source = examples.columns[name]
        super().__init__(source.modality, examples.table, name, examples.used[source.codes[examples.used] >= 0])
        self.sizes = source.sizes[source.codes[self._first]]
        self._source, self._name, self._number = examples, name, number

    def examples(self, indices: Sequence[int] | np.ndarray) -> list[Any]:
        """Augment and return some rows' cells."""
        return self._source.augmented(self._name, self._first[np.asarray(indices, dtype=np.int64)], self._number)
