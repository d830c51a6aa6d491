"""Categories: one of a set of names, each with a learned vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.base import Detection, Modality
from fusetune.modalities.naming import module_name
from fusetune.modalities.profile import plain, profile_cells
from fusetune.modalities.text import check_whole
from fusetune.types import Tokens

MAX_CHARS = 1000
"""Longer values are text, not names."""

OTHER = 0
"""The index of every value that is not in the vocabulary: rare in train rows or never seen there."""


class CategoryModality(Modality):
    """A column of names from a set.

    The vocabulary is the train rows' values, most frequent first. Rarer ones, and values first met at prediction,
    share one index; its vector is trained by the rare values and by hiding a small share of the others in training.
    White space around a value is dropped. 3 and 3.0 and "3" are the same value; "3.0" as text is another.
    """

    kind = "category"

    def __init__(
        self, column: str, *, max_size: int = 1000, min_count: int = 2, hidden: float = 0.02, width: int | None = None
    ) -> None:
        """
        Args:
            column: the column's name.
            max_size: most values in the vocabulary, 1 or more.
            min_count: train rows that a value must be in to enter the vocabulary, 1 or more. Where no value is in
                as many, all enter.
            hidden: the chance that a value is hidden as if unknown, in training mode only, 0 up to but not 1.
            width: features of a value's vector, 1 or more; by default it grows with the vocabulary, from 8 to 64.
        """
        super().__init__(column)
        if max_size < 1 or min_count < 1 or not 0 <= hidden < 1 or (width is not None and width < 1):
            raise ConfigError(
                "a category column's options are out of range",
                column=column,
                expected="max_size, min_count and width of 1 or more, hidden of 0 or more and below 1",
                came=f"max_size={max_size}, min_count={min_count}, hidden={hidden}, width={width}",
            )
        self.max_size, self.min_count, self.hidden, self.width = max_size, min_count, hidden, width
        self.vocabulary: list[str] = []
        self._index: dict[str, int] = {}

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Few distinct short values that repeat."""
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
        """The value's name.

        Raises:
            BadCell: it is bytes, a list or a mapping, only white space, longer than a name, or holds half a character.
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
        check_whole(name, row=row, column=self.column)
        return name

    def fit(self, examples: Sequence[str]) -> None:
        """Learn the vocabulary from train rows; equally frequent values are in the order of their characters."""
        counts = sorted(Counter(examples).items(), key=lambda item: (-item[1], item[0]))
        frequent = [name for name, count in counts if count >= self.min_count] or [name for name, _ in counts]
        self._set_vocabulary(frequent[: self.max_size])

    def _set_vocabulary(self, names: list[str]) -> None:
        self.vocabulary = names
        self._index = {name: index for index, name in enumerate(names, start=OTHER + 1)}

    def is_known(self, example: str) -> bool:
        """Whether the value has a vector of its own."""
        return example in self._index

    def collate(self, examples: Sequence[str]) -> dict[str, Tensor]:
        """`index` is (examples,) int64: 0 for a value outside the vocabulary."""
        return {"index": torch.tensor([self._index.get(name, OTHER) for name in examples], dtype=torch.int64)}

    @property
    def encoder_key(self) -> str:
        """Each category column has its own encoder."""
        return module_name(self.kind, self.column)

    def build_encoder(self) -> CategoryEncoder:
        """A vector for each value and one for all others; call it after `fit`."""
        size = len(self.vocabulary) + 1
        # A common rule of thumb, 1.6 n^0.56, kept between 8 and 64.
        width = self.width or int(min(64, max(8, round(1.6 * size**0.56))))
        return CategoryEncoder(size, width, hidden=self.hidden)

    @property
    def part_of(self) -> str:
        """ "tabular"."""
        return "tabular"

    def probe_features(self, examples: Sequence[str]) -> np.ndarray:
        """(examples, 1 + values) float32, one-hot; the first feature is "none of the known ones"."""
        features = np.zeros((len(examples), len(self.vocabulary) + 1), dtype=np.float32)
        features[np.arange(len(examples)), [self._index.get(name, OTHER) for name in examples]] = 1
        return features

    def state(self) -> dict[str, Any]:
        """Options and the vocabulary."""
        return {
            "max_size": self.max_size,
            "min_count": self.min_count,
            "hidden": self.hidden,
            "width": self.width,
            "vocabulary": self.vocabulary,
        }

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> CategoryModality:
        """The modality that `state()` described."""
        options = {name: state[name] for name in ("max_size", "min_count", "hidden", "width")}
        modality = cls(column, **options)
        modality._set_vocabulary(list(state["vocabulary"]))
        return modality


class CategoryEncoder(nn.Module):
    """One token a value: its row of a learned table."""

    pretrained = False

    def __init__(self, size: int, dim: int, *, hidden: float) -> None:
        """
        Args:
            size: rows of the table, the one for other values included.
            dim: features of the token.
            hidden: the chance that a value is taken for an unknown one in training mode.
        """
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.table = nn.Embedding(size, dim)

    def forward(self, *, index: Tensor) -> Tokens:
        """
        Args:
            index: (cells,) int64.

        Returns:
            (cells, 1, dim), all real.
        """
        if self.training and self.hidden:
            chance = torch.rand(index.shape, device=index.device)
            index = torch.where(chance < self.hidden, OTHER, index)
        token = self.table(index).unsqueeze(1)  # (cells, 1, dim)
        return Tokens(token, torch.ones(token.shape[:2], dtype=torch.bool, device=token.device))
