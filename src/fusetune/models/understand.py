"""The understand family: encoders, one fusion, a head a task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusetune.fusion.base import Fusion
from fusetune.types import Batch, Outputs, Tokens

FEATURES = "features"
"""The input under which a batch brings a column's encoder output, computed before, instead of raw tensors."""


class Projection(nn.Module):
    """One column's encoder output on the fusion's scale: standardised, dropped out, mapped to `dim`.

    The standardisation is a fixed shift and scale that `set_scale` learns from train rows, as a linear probe's is;
    it keeps columns with large features from drowning the others, and unlike a layer norm it keeps each row's norm.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, in_dim: int, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(in_dim))
        self.register_buffer("scale", torch.ones(in_dim))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_dim, dim)

    @torch.no_grad()
    def set_scale(self, features: Tensor) -> None:
        """Learn shift and scale from encoder outputs, (cells, in_dim); features that never vary stay as they are."""
        std = features.std(0, unbiased=False)
        self.shift.copy_(features.mean(0))
        self.scale.copy_(torch.where(std > 1e-6 * features.abs().amax(0).clamp(min=1e-6), 1 / std, torch.ones_like(std)))

    def forward(self, values: Tensor) -> Tensor:
        """(cells, tokens, in_dim) to (cells, tokens, dim)."""
        out: Tensor = self.linear(self.dropout((values - self.shift) * self.scale))
        return out


class Understand(nn.Module):
    """Columns to logits: each column's cells through its encoder and projection, all columns through the fusion.

    Columns may share an encoder; each has a projection of its own.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        routes: Mapping[str, str],
        fusion: Fusion,
        heads: Mapping[str, nn.Module],
        *,
        dropout: float = 0.1,
    ) -> None:
        """
        Args:
            encoders: by key; `forward(**tensors) -> Tokens`, with the attribute `dim`.
            routes: per column, the key of its encoder.
            fusion: over exactly these columns.
            heads: per task, from (batch, fusion.dim) to logits.
            dropout: on the encoders' outputs.
        """
        super().__init__()
        self.columns = list(routes)
        self.routes = dict(routes)
        self.tasks = list(heads)
        self.encoders = nn.ModuleDict(dict(encoders))
        # Names of columns and tasks are the user's and may be no module names, hence lists.
        self.projections = nn.ModuleList(
            Projection(int(encoders[key].dim), fusion.dim, dropout=dropout)  # type: ignore[arg-type]
            for key in routes.values()
        )
        self.fusion = fusion
        self.heads = nn.ModuleList(heads.values())

    def encode(self, column: str, tensors: dict[str, Tensor]) -> Tokens:
        """A column's distinct cells as its encoder's tokens, (cells, tokens, encoder dim)."""
        if FEATURES in tensors:
            values = tensors[FEATURES]
            return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))
        tokens: Tokens = self.encoders[self.routes[column]](**tensors)
        return tokens

    def forward(self, batch: Batch) -> Outputs:
        """Logits of every task for each row of the batch; a column that the batch does not bring is absent."""
        columns = {column: self._tokens(position, column, batch) for position, column in enumerate(self.columns)}
        nowhere = torch.zeros(len(batch), dtype=torch.bool, device=batch.rows.device)
        fused = self.fusion(columns, {column: batch.present.get(column, nowhere) for column in self.columns})
        pooled = fused.pooled  # (batch, dim)
        logits = {task: head(pooled) for task, head in zip(self.tasks, self.heads, strict=True)}
        return Outputs(logits=logits, pooled=pooled, columns=columns, fused=fused.tokens)

    def _tokens(self, position: int, column: str, batch: Batch) -> Tokens:
        tensors = batch.inputs.get(column)
        if not tensors:
            zeros = torch.zeros(len(batch), 1, self.fusion.dim, device=batch.rows.device, dtype=self._dtype)
            return Tokens(zeros, torch.zeros(len(batch), 1, dtype=torch.bool, device=batch.rows.device))
        cells = batch.cells[column]
        encoded = self.encode(column, tensors)
        values = self.projections[position](encoded.values)  # (cells, tokens, dim)
        row_cells = cells.clamp(min=0)
        mask = encoded.mask[row_cells] & (cells >= 0).unsqueeze(1)  # (batch, tokens)
        return Tokens(values[row_cells].masked_fill(~mask.unsqueeze(-1), 0), mask)

    @property
    def _dtype(self) -> torch.dtype:
        return self.projections[0].linear.weight.dtype  # type: ignore[union-attr, return-value]
