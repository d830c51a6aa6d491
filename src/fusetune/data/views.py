"""Augmented views of a column that are made once and used in turn, so that a frozen encoder need not run again."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusetune.data.examples import Column, Examples


class View(Column):
    """A column whose cells are one row's each, augmented with draws that depend on (seed, view, row, column) alone."""

    def __init__(self, examples: Examples, name: str, number: int) -> None:
        """
        Args:
            examples: prepared rows; those in `used` that have the column are seen.
            name: of an augmented column.
            number: the view's; its cells are those of epoch `number` where none are kept.
        """
        self.source = examples.columns[name]
        super().__init__(self.source.modality, [], np.empty(0, dtype=np.int64), self.source.base_dir)
        self.examples, self.name, self.number = examples, name, number
        self.cells = [int(place) for place in examples.used if self.source.codes[place] >= 0]
        self.codes = np.full(len(examples.rows), -1, dtype=np.int64)
        self.codes[self.cells] = np.arange(len(self.cells))

    def example(self, place: int) -> Any:
        """A row's cell, augmented; made when asked for."""
        return self.examples.augmented(self.name, self.cells[place], self.number)

    def size(self, code: int) -> int:
        """What the row's cell costs to encode as it is."""
        return self.source.size(int(self.source.codes[self.cells[code]])) if code >= 0 else 0
