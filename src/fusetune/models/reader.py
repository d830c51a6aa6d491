"""The reader: encodes each column's cells and projects them to a common width."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fusetune.backbones.word_embeddings import run_encoder
from fusetune.types import Tokens

FEATURES = "features"
"""Name of the batch input that holds a column's precomputed encoder output instead of raw tensors."""
REAL = "real"
"""Name of the batch input with the mask of `FEATURES`, (cells, tokens) bool, True for real tokens."""
Encoded = Callable[[str], Tokens | None]
"""Maps a column to the result of `Reader.encode`, or to None if no row has the column."""


class Projection(nn.Module):
    """Project a column's encoder output to `dim` features: standardise, dropout, linear layer.

    The standardisation is a fixed shift and scale, fitted on train rows. It brings all columns to one scale, and unlike
    a layer norm it preserves differences between rows in the norm of their features.
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
        """Standardise (cells, tokens, in_dim) to zero mean and unit variance over the train rows."""
        return (values - self.shift) * self.scale

    def forward(self, values: Tensor) -> Tensor:
        """Map standardised values, (cells, tokens, in_dim), to (cells, tokens, dim)."""
        out: Tensor = self.linear(self.dropout(values))
        return out


class Reader(nn.Module):
    """Encoders and projections: maps a batch's cells to each column's projected tokens.

    Columns may share an encoder, and columns of one encoder also a projection.

    Attributes:
        columns: names of the columns, in order.
        routes: by column, the key of its encoder.
        encoders: by key.
        dim: width of the projected tokens.
        aliases: names under which a batch may have further cells of a column, each with that column.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        routes: Mapping[str, str],
        dim: int,
        *,
        dropout: float = 0.1,
        joined: Mapping[str, int] | None = None,
        shares: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            encoders: by key; `forward(**tensors) -> Tokens`, with the attributes `dim` and `pretrained`.
            routes: by column, the key of its encoder.
            dim: width of the projected tokens.
            dropout: on the encoders' outputs, in [0, 1).
            joined: by column, how many of its encoder's vectors are side by side one token; 1 for the others.
            shares: by column without a projection of its own, the column of the same encoder whose projection, with
                its standardisation, it shares.
            aliases: see the attributes.
        """
        super().__init__()
        self.joined, self.aliases = dict(joined or {}), dict(aliases or {})
        self.columns, self.routes, self.dim = list(routes), dict(routes), dim
        self.encoders = nn.ModuleDict(dict(encoders))
        self.shares = dict(shares or {})
        own = [column for column in self.columns if column not in self.shares]
        self._projection_of = {column: own.index(self.shares.get(column, column)) for column in self.columns}
        # A list, as names of columns need not be valid module names.
        self.projections = nn.ModuleList(Projection(self.encoder_dim(column), dim, dropout=dropout) for column in own)

    @property
    def read_columns(self) -> list[str]:
        """The names under which a batch may have cells: the columns, then the aliases."""
        return [*self.columns, *self.aliases]

    def encoder_dim(self, column: str) -> int:
        """Return the width of a column's encoder output."""
        return int(self.encoders[self.routes[column]].dim) * self.joined.get(column, 1)  # type: ignore[arg-type]

    def projection(self, column: str) -> Projection:
        """Return a column's projection."""
        projection = self.projections[self._projection_of[self.aliases.get(column, column)]]
        assert isinstance(projection, Projection)
        return projection

    @torch.no_grad()
    def set_scale(self, column: str, shift: Tensor, scale: Tensor) -> None:
        """Set a column's standardisation, (features - shift) * scale, with shift and scale of shape (encoder dim,).

        A column that shares a projection keeps the standardisation of the other one.
        """
        if column in self.shares:
            return
        projection = self.projection(column)
        projection.shift.copy_(shift)
        projection.scale.copy_(scale)

    def encode(self, column: str, tensors: dict[str, Tensor]) -> Tokens:
        """Encode a column's distinct cells, or take their precomputed features: (cells, tokens, encoder dim)."""
        column = self.aliases.get(column, column)
        if FEATURES in tensors:
            grid = getattr(self.encoders[self.routes[column]], "grid", None)
            return Tokens(tensors[FEATURES], tensors[REAL], grid)
        tokens = run_encoder(self.encoders[self.routes[column]], tensors)
        if (num := self.joined.get(column, 1)) > 1:
            return Tokens(
                tokens.values.reshape(len(tokens.values), -1, num * tokens.values.shape[2]), tokens.mask[:, ::num]
            )
        return tokens

    def standardise(self, column: str, encoded: Tokens) -> Tokens:
        """Standardise a column's encoded cells, (cells, tokens, encoder dim), for its projection."""
        return Tokens(self.projection(column).standardise(encoded.values), encoded.mask, encoded.grid)

    def project(self, column: str, cells: Tokens | None, row_cells: Tensor | None, rows: Tensor) -> Tokens:
        """Project a column's cells and gather them by row.

        Args:
            column: its name.
            cells: the result of `standardise`, (cells, tokens, encoder dim); None if no row has the column.
            row_cells: (batch,) int64: the index of the row's cell, -1 if the row lacks the column.
            rows: (batch,) row ids, on the device of the result.

        Returns:
            (batch, tokens, dim); a row without the column has no real token.
        """
        projection = self.projection(column)
        if cells is None or row_cells is None:
            values = torch.zeros(rows.shape[0], 1, self.dim, device=rows.device, dtype=projection.linear.weight.dtype)
            return Tokens(values, torch.zeros(rows.shape[0], 1, dtype=torch.bool, device=rows.device))
        values = projection(cells.values)  # (cells, tokens, dim)
        index = row_cells.clamp(min=0)
        mask = cells.mask[index] & (row_cells >= 0).unsqueeze(1)  # (batch, tokens)
        return Tokens(values[index].masked_fill(~mask.unsqueeze(-1), 0), mask, cells.grid)
