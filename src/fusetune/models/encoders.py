"""The encoders alone, without projections, fusion and heads: what is tuned before the task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusetune.models.family import Family
from fusetune.models.reader import Encoded
from fusetune.types import Outputs, Tokens

SECOND = " (second pass)"


class Encoders(Family):
    """Encodes each column once or twice; the outputs are each row's tokens as the encoder gives them.

    In training mode the passes have different dropout masks.

    Args:
        encoders: by key; see `Reader`.
        routes: by column, the key of its encoder.
        passes: 2; or 0 for objectives that run the encoders themselves, which gives empty outputs.

    Attributes:
        twins: by column, the name of its second pass.
    """

    name = "encoders"

    def __init__(self, encoders: Mapping[str, nn.Module], routes: Mapping[str, str], *, passes: int) -> None:
        width = max(int(encoder.dim) for encoder in encoders.values())  # type: ignore[arg-type]
        super().__init__(encoders, routes, width)
        self.projections = nn.ModuleList()
        self.twins = {column: column + SECOND for column in self.columns} if passes else {}

    @property
    def compared(self) -> dict[str, tuple[str, ...]]:
        """Both passes of each column."""
        return {name: (column,) for column, twin in self.twins.items() for name in (column, twin)}

    def after_encoders(self) -> list[nn.Module]:
        """Return no module."""
        return []

    def combine(self, encoded: Encoded, cells: Mapping[str, Tensor], rows: Tensor) -> Outputs:
        """See `Family.combine`. The outputs have the tokens of each pass, (batch, tokens, dim), under its name."""
        columns = {}
        for column, twin in self.twins.items():
            for name in (column, twin):
                tokens = encoded(column)
                columns[name] = self._by_row(column, tokens, cells.get(column), rows)
        return Outputs(logits={}, columns=columns)

    def _by_row(self, column: str, tokens: Tokens | None, row_cells: Tensor | None, rows: Tensor) -> Tokens:
        """Return each row's tokens; a row without the column has no real token."""
        if tokens is None or row_cells is None:
            values = torch.zeros(len(rows), 1, self.encoder_dim(column), device=rows.device)
            return Tokens(values, torch.zeros(len(rows), 1, dtype=torch.bool, device=rows.device))
        index = row_cells.clamp(min=0)
        mask = tokens.mask[index] & (row_cells >= 0).unsqueeze(1)
        return Tokens(tokens.values[index].masked_fill(~mask.unsqueeze(-1), 0), mask)
