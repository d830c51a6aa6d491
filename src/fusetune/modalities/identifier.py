"""Columns of identifiers (ids), such as users and items: a learned embedding for each id of the train rows."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.base import Augmenter, Detection, Modality
from fusetune.modalities.naming import module_name
from fusetune.modalities.profile import plain
from fusetune.modalities.words import check_text
from fusetune.types import Tokens

UNSEEN = 0
"""The embedding of every id that no train row has, and of ids that are dropped in training."""
DROPPED = ""
"""The example of an id that is dropped; no cell is decoded to it."""
NORM = 0.1
"""Approximate norm of an embedding at the start: small, so that rare ids stay near the unseen one."""


class IdentifierModality(Modality):
    """A column of ids, each with an embedding of its own that is learned.

    The vocabulary holds the ids of the train rows, in the order of their first row. All other ids share one embedding,
    `UNSEEN`. In training an id is dropped with the probability `dropout`: its row then has that embedding, too, so that
    it stands for "an id about which nothing is known", and the side's other columns are learned to work without the id.

    Equal ids in different forms are one id: 12, 12.0, "12" and " 12 ".
    """

    kind = "identifier"

    def __init__(self, column: str, *, dim: int = 32, dropout: float = 0.1, min_count: int = 1) -> None:
        """
        Args:
            column: the column's name.
            dim: width of the embeddings, 1 or more.
            dropout: the probability that a train row's id is dropped in an epoch, in [0, 1).
            min_count: train rows that an id needs for an embedding of its own, 1 or more.
        """
        super().__init__(column)
        if dim < 1 or min_count < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                "an id column's options are out of range",
                column=column,
                expected="dim and min_count of 1 or more, dropout from 0 to below 1",
                came=f"dim={dim}, dropout={dropout}, min_count={min_count}",
            )
        self.dim, self.dropout, self.min_count = dim, dropout, min_count
        self.vocabulary: list[str] = []
        self._index: dict[str, int] = {}

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells: never by themselves, as an id says nothing about new rows."""
        return Detection(0.0, "a column is one of ids only where it is named as one")

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> str:
        """Return the id as text.

        Raises:
            BadCell: it is neither text nor a whole number, or blank.
        """
        cell = plain(cell)
        if isinstance(cell, float) and cell.is_integer():
            cell = int(cell)
        if isinstance(cell, bool) or not isinstance(cell, str | int | Decimal):
            why = f"it is of type {type(cell).__name__}, not an id"
            raise BadCell(row=row, column=self.column, value=cell, why=why, do="give a text or a whole number")
        name = str(cell).strip()
        if not name:
            do = "empty the cell if the id is missing"
            raise BadCell(row=row, column=self.column, value=cell, why="it is only white space", do=do)
        check_text(name, row=row, column=self.column)
        return name

    def fit(self, examples: Sequence[str]) -> None:
        """Fit the vocabulary on train rows."""
        counts: dict[str, int] = {}
        for name in examples:
            counts[name] = counts.get(name, 0) + 1
        self._set_vocabulary([name for name, count in counts.items() if count >= self.min_count])

    def _set_vocabulary(self, names: list[str]) -> None:
        self.vocabulary = names
        self._index = {name: number for number, name in enumerate(names, start=UNSEEN + 1)}

    def augmenter(self, **options: Any) -> Augmenter:
        """Return a `DropId` with this column's dropout.

        Raises:
            ConfigError: there are options; the probability is the column's option `dropout`.
        """
        if options:
            raise ConfigError(
                f"augment.{self.kind} has no settings",
                column=self.column,
                do=f"take columns.{self.column}.dropout=0.2",
            )
        return DropId(self.dropout)

    def collate(self, examples: Sequence[str]) -> dict[str, Tensor]:
        """Return `indices`, (examples,) int64: each id's place in the embedding; `UNSEEN` for unknown ids."""
        return {"indices": torch.tensor([self._index.get(name, UNSEEN) for name in examples], dtype=torch.int64)}

    @property
    def encoder_key(self) -> str:
        """Each column has its own encoder."""
        return module_name(self.kind, self.column)

    def build_encoder(self) -> IdentifierEncoder:
        """Return an `IdentifierEncoder`; call it after `fit`."""
        return IdentifierEncoder(len(self.vocabulary), self.dim)

    def state(self) -> dict[str, Any]:
        """Return the options and the vocabulary."""
        return {
            "dim": self.dim,
            "dropout": self.dropout,
            "min_count": self.min_count,
            "vocabulary": self.vocabulary,
        }

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> IdentifierModality:
        """Return the modality that `state()` described."""
        modality = cls(column, **{name: state[name] for name in ("dim", "dropout", "min_count")})
        modality._set_vocabulary([str(name) for name in state["vocabulary"]])
        return modality


class DropId(Augmenter):
    """Drop an id now and then.

    Args:
        rate: the probability, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, cell: Any, example: str, rng: np.random.Generator, base_dir: Path) -> str:
        """See `Augmenter.__call__`."""
        return DROPPED if rng.random() < self.rate else example


class IdentifierEncoder(nn.Module):
    """An embedding of ids, one token each; the first row is that of unseen ids.

    Args:
        num: ids in the vocabulary.
        dim: width.
    """

    pretrained = False
    identifies = True
    """Equal cells of the column are of one user or item, whatever the side's other columns have."""

    def __init__(self, num: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(num + 1, dim)
        nn.init.normal_(self.embedding.weight, std=NORM / dim**0.5)

    def forward(self, *, indices: Tensor) -> Tokens:
        """
        Args:
            indices: (cells,) int64.

        Returns:
            (cells, 1, dim), all real.
        """
        values = self.embedding(indices).unsqueeze(1)
        return Tokens(values, torch.ones(values.shape[0], 1, dtype=torch.bool, device=values.device))
