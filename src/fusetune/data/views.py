"""Augmented views of a column that are made once and used in turn, so that a frozen encoder need not run again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusetune.data.column import Column
from fusetune.data.examples import Examples


class View(Column):
    """A column whose cells are one row's each, augmented with draws that depend on (seed, view, row, column) alone."""

    def __init__(self, examples: Examples, name: str, number: int) -> None:
        """
        Args:
            examples: prepared rows; those in `used` that have the column are seen.
            name: of an augmented column.
            number: the view's; its cells are those of epoch `number` where none are kept.
        """
        source = examples.columns[name]
        super().__init__(source.modality, examples.table, name, examples.used[source.codes[examples.used] >= 0])
        self.sizes = source.sizes[source.codes[self._first]]
        self._source, self._name, self._number = examples, name, number

    def examples(self, places: Sequence[int] | np.ndarray) -> list[Any]:
        """Some rows' cells, augmented; made when asked for."""
        return self._source.augmented(self._name, self._first[np.asarray(places, dtype=np.int64)], self._number)
