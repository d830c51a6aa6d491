"""The contract of a family of models: a reader and what is computed from the columns that it has read."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusetune.models.reader import Encoded, Reader
from fusetune.types import Batch, Outputs, Tokens


class Family(Reader, abc.ABC):
    """A reader with what is computed after it; the tasks choose which family a model is of.

    Attributes:
        tasks: whose logits the model gives, in order; empty for a family without heads.
        replays: gives the outputs instead of `forward`'s own way, while it is set; see `fusetune.models.replays`.
    """

    name: ClassVar[str]

    tasks: Sequence[str] = ()
    replays: Callable[[Batch], Outputs] | None = None

    def forward(self, batch: Batch) -> Outputs:
        """Compute the outputs for each row of the batch; a column that the batch does not bring is absent."""
        if self.replays is not None:
            return self.replays(batch)

        def encoded(column: str) -> Tokens | None:
            return self.encode(column, tensors) if (tensors := batch.inputs.get(column)) else None

        return self.combine(encoded, batch.cells, batch.rows)

    @abc.abstractmethod
    def combine(self, encoded: Encoded, cells: Mapping[str, Tensor], rows: Tensor) -> Outputs:
        """Compute what comes after the encoders.

        Args:
            encoded: gives a column's distinct cells, (cells, tokens, encoder dim), or None where no row has it.
            cells: per column, (batch,) int64, which of its cells a row has, -1 for none.
            rows: (batch,).
        """

    @abc.abstractmethod
    def after_encoders(self) -> list[nn.Module]:
        """Return the modules that `combine` runs."""

    def linear_part(self) -> nn.Module | None:
        """Return what a linear probe can be put into, or None for a family without one."""
        return None

    def parts(self) -> dict[str, nn.Module]:
        """Return every pretrained part, or small one in its place, by the name of its submodule in the model.

        Freezing, layer-wise learning rates, adapters and hashes of weights go by these parts.
        """
        return {f"encoders.{key}": encoder for key, encoder in self.encoders.items()}


def presence(columns: Sequence[str], cells: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Return per column, (batch,) bool, which rows have it."""
    nowhere = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    return {column: cells[column] >= 0 if column in cells else nowhere for column in columns}
