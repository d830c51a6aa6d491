"""The base class of model families: a reader, and the outputs computed from the columns that it encodes."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusetune.models.reader import Encoded, Reader
from fusetune.types import Batch, Outputs, Tokens


class Family(Reader, abc.ABC):
    """A reader and the computation of outputs from its encoded columns. The tasks determine a model's family.

    Attributes:
        name: of the family.
        tasks: names of the tasks with logits, in order; empty for a family without heads.
        replays: while set, computes the outputs in place of `forward`; see `fusetune.models.replays`.
    """

    name: ClassVar[str]

    tasks: Sequence[str] = ()
    replays: Callable[[Batch], Outputs] | None = None

    def forward(self, batch: Batch) -> Outputs:
        """Compute the outputs of a batch; a column without inputs in the batch counts as absent in every row."""
        if self.replays is not None:
            return self.replays(batch)

        def encoded(column: str) -> Tokens | None:
            return self.encode(column, tensors) if (tensors := batch.inputs.get(column)) else None

        return self.combine(encoded, batch.cells, batch.rows)

    @abc.abstractmethod
    def combine(self, encoded: Encoded, cells: Mapping[str, Tensor], rows: Tensor) -> Outputs:
        """Compute the outputs from encoded columns.

        Args:
            encoded: returns a column's distinct cells, (cells, tokens, encoder dim), or None if no row has the column.
            cells: by column, (batch,) int64: the index of the row's cell, -1 if the row lacks the column.
            rows: (batch,) int64 row ids.
        """

    @abc.abstractmethod
    def after_encoders(self) -> list[nn.Module]:
        """Return the modules that `combine` runs."""

    @property
    def compared(self) -> dict[str, tuple[str, ...]]:
        """What is compared with others, by name the columns that it is computed from: each column, or each side."""
        return {column: (column,) for column in self.columns}

    def linear_part(self) -> nn.Module | None:
        """Return the linear layers that can be initialised from a linear probe, or None if the family has none."""
        return None

    def parts(self) -> dict[str, nn.Module]:
        """Return the encoders by the name of their submodule in the model, also those without pretrained weights.

        Freezing, layer-wise learning rates, adapters and hashes of weights work on these parts.
        """
        return {f"encoders.{key}": encoder for key, encoder in self.encoders.items()}


def presence(columns: Sequence[str], cells: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Return by column which rows have it, (batch,) bool."""
    absent = torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
    return {column: cells[column] >= 0 if column in cells else absent for column in columns}
