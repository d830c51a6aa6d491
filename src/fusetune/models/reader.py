"""Read a table's columns: each column's cells through its encoder and projection."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fusetune.backbones.shift import encode
from fusetune.types import Tokens

FEATURES = "features"
"""The input under which a batch brings a column's encoder output, computed before, instead of raw tensors."""
REAL = "real"
"""The input beside it that says which of its tokens are real, (cells, tokens) bool."""
Encoded = Callable[[str], Tokens | None]
"""From a column to its distinct cells as `Reader.encode` gives them, or None where no row has the column."""


class Projection(nn.Module):
    """One column's encoder output on the fusion's scale: standardised, dropped out, mapped to `dim`.

    The standardisation is a fixed shift and scale, learned from train rows; it keeps columns with large features from
    drowning the others, and unlike a layer norm it keeps the differences between rows.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, in_dim: int, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(in_dim))
        self.register_buffer("scale", torch.ones(in_dim))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_dim, dim)

    def standardise(self, values: Tensor) -> Tensor:
        """(cells, tokens, in_dim) with zero mean and unit variance over the train rows."""
        return (values - self.shift) * self.scale

    def forward(self, values: Tensor) -> Tensor:
        """Standardised (cells, tokens, in_dim) to (cells, tokens, dim)."""
        out: Tensor = self.linear(self.dropout(values))
        return out


class Reader(nn.Module):
    """Encoders, routes and projections: from a batch's cells to each column's projected tokens.

    Columns may share an encoder; each has a projection of its own.

    Attributes:
        columns: in order.
        routes: per column, the key of its encoder.
        encoders: by key.
        dim: features of the projected tokens.
    """

    def __init__(
        self, encoders: Mapping[str, nn.Module], routes: Mapping[str, str], dim: int, *, dropout: float = 0.1
    ) -> None:
        """
        Args:
            encoders: by key; `forward(**tensors) -> Tokens`, with the attributes `dim` and `pretrained`.
            routes: per column, the key of its encoder.
            dim: features of the projected tokens.
            dropout: on the encoders' outputs, in [0, 1).
        """
        super().__init__()
        self.columns, self.routes, self.dim = list(routes), dict(routes), dim
        self.encoders = nn.ModuleDict(dict(encoders))
        # Names of columns are the user's and may be no module names, hence a list.
        self.projections = nn.ModuleList(
            Projection(self.encoder_dim(column), dim, dropout=dropout) for column in self.columns
        )

    def encoder_dim(self, column: str) -> int:
        """Return how many features a column's encoder gives."""
        return int(self.encoders[self.routes[column]].dim)  # type: ignore[arg-type]

    def projection(self, column: str) -> Projection:
        """Return a column's projection."""
        projection = self.projections[self.columns.index(column)]
        assert isinstance(projection, Projection)
        return projection

    @torch.no_grad()
    def set_scale(self, column: str, shift: Tensor, scale: Tensor) -> None:
        """Standardise a column by (features - shift) * scale, each (dim,)."""
        projection = self.projection(column)
        projection.shift.copy_(shift)
        projection.scale.copy_(scale)

    def encode(self, column: str, tensors: dict[str, Tensor]) -> Tokens:
        """Encode a column's distinct cells, (cells, tokens, encoder dim)."""
        if FEATURES in tensors:
            grid = getattr(self.encoders[self.routes[column]], "grid", None)
            return Tokens(tensors[FEATURES], tensors[REAL], grid)
        return encode(self.encoders[self.routes[column]], tensors)

    def standardise(self, column: str, encoded: Tokens) -> Tokens:
        """Standardise a column's distinct cells as its projection wants them, (cells, tokens, encoder dim)."""
        return Tokens(self.projection(column).standardise(encoded.values), encoded.mask, encoded.grid)

    def project(self, column: str, cells: Tokens | None, row_cells: Tensor | None, rows: Tensor) -> Tokens:
        """Project a column's cells and hand them out to the rows.

        Args:
            column: its name.
            cells: as `standardise` gives them, (cells, tokens, encoder dim); None where no row has the column.
            row_cells: (batch,) int64, which of the cells a row has, -1 for none.
            rows: (batch,), on the device of the result.

        Returns:
            (batch, tokens, dim), no token real where a row lacks the column.
        """
        projection = self.projection(column)
        if cells is None or row_cells is None:
            values = torch.zeros(len(rows), 1, self.dim, device=rows.device, dtype=projection.linear.weight.dtype)
            return Tokens(values, torch.zeros(len(rows), 1, dtype=torch.bool, device=rows.device))
        values = projection(cells.values)  # (cells, tokens, dim)
        index = row_cells.clamp(min=0)
        mask = cells.mask[index] & (row_cells >= 0).unsqueeze(1)  # (batch, tokens)
        return Tokens(values[index].masked_fill(~mask.unsqueeze(-1), 0), mask, cells.grid)
