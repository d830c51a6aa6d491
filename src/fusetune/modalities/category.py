"""Category columns: one-hot vectors over a vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.base import Augmenter, Detection, Modality
from fusetune.modalities.fixed import FixedFeatures
from fusetune.modalities.naming import module_name
from fusetune.modalities.profile import plain, profile_cells
from fusetune.modalities.text import check_text
from fusetune.modalities.values import ValueIndex, merged

MAX_CHARS = 1000
"""Maximum length of a value; longer ones are text."""

OTHER = 0
"""The feature of all values outside the vocabulary, which are rare or absent in train rows."""


class CategoryModality(Modality):
    """A column of categories.

    The vocabulary holds the train rows' values, most frequent first. Rare and unseen values share one feature, which is
    trained on the rare ones. Surrounding white space is ignored. Equal values in different forms are one category: 3,
    3.0, "3" and "3.0"; True and "true"; and also 0 and false if the values are only 0 and 1.
    """

    kind = "category"

    def __init__(self, column: str, *, max_size: int = 1000, min_count: int = 2) -> None:
        """
        Args:
            column: the column's name.
            max_size: maximum size of the vocabulary, 1 or more.
            min_count: minimum number of train rows of a value in the vocabulary, 1 or more. If no value reaches it,
                all values are in the vocabulary.
        """
        super().__init__(column)
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

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells: few distinct short values that repeat."""
        seen = profile_cells(values)
        counted = f"{seen.num_distinct} distinct values in {seen.num} cells"
        if seen.scalars < 0.95:
            return Detection(0.0, "the cells are not names")
        if seen.booleans >= 0.5:
            return Detection(0.95, "the cells are true or false")
        if seen.codes and seen.numbers >= 0.95:
            return Detection(0.7 if seen.distinct <= 0.8 else 0.3, f"codes with a zero in front, {counted}")
        if seen.numeric:
            return Detection(0.3 if seen.num_distinct <= 20 else 0.05, f"numbers, {counted}")
        if seen.repeats:
            return Detection(0.85, f"{counted}, {seen.words:.1f} words each")
        return Detection(0.2 if seen.words < 3 else 0.1, f"{counted}: they hardly repeat")

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

    def augmenter(self, **options: Any) -> Augmenter:
        """Return a `CellAugmenter`."""
        from fusetune.modalities.augment.tabular import CellAugmenter

        return CellAugmenter("category", options)

    def collate(self, examples: Sequence[str]) -> dict[str, Tensor]:
        """Return `values`, (examples, 1 + vocabulary) float32, one-hot; the first feature is `OTHER`."""
        matches = [self._index.find(name) for name in examples]
        indices = [OTHER if index is None else index for index in matches]
        values = torch.zeros(len(indices), len(self.vocabulary) + 1)
        values[torch.arange(len(indices)), indices] = 1
        return {"values": values}

    @property
    def encoder_key(self) -> str:
        """Each category column has its own encoder."""
        return module_name(self.kind, self.column)

    def build_encoder(self) -> FixedFeatures:
        """Return `FixedFeatures` of the fitted dimension; call it after `fit`."""
        return FixedFeatures(len(self.vocabulary) + 1)

    @property
    def part_of(self) -> str:
        """ "tabular"."""
        return "tabular"

    def state(self) -> dict[str, Any]:
        """Return the options and the vocabulary."""
        return {
            "max_size": self.max_size,
            "min_count": self.min_count,
            "vocabulary": self.vocabulary,
        }

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> CategoryModality:
        """Return the modality that `state()` described."""
        modality = cls(column, max_size=state["max_size"], min_count=state["min_count"])
        modality._set_vocabulary(list(state["vocabulary"]))
        return modality
