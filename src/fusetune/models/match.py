"""The match family: columns, or sides of several columns, are projected into one space, in which matches are close."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusetune.fusion.base import Fusion
from fusetune.models.family import Family, presence
from fusetune.models.reader import Encoded
from fusetune.types import Batch, Outputs, Tokens


class SideVector(nn.Module):
    """One vector from the columns of a side.

    vector = Σ_c mean of column c's projected tokens + W fusion(projected columns), summed over the present columns. W
    starts at zero, so that training starts from the linear part, which a closed-form alignment can initialise.

    Args:
        fusion: over the side's columns.
    """

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion
        self.out = nn.Linear(fusion.dim, fusion.dim, bias=False)
        nn.init.zeros_(self.out.weight)

    @property
    def columns(self) -> tuple[str, ...]:
        """The side's columns."""
        return self.fusion.columns

    def forward(self, columns: Mapping[str, Tokens], present: Mapping[str, Tensor]) -> Tokens:
        """Return the vectors as one token a row, (batch, 1, dim); a row without the side has no real token.

        Args:
            columns: by column, (batch, tokens, dim); more than the side's are ignored.
            present: by column, (batch,) bool.
        """
        own = {column: columns[column] for column in self.columns}
        has = {column: present[column] & tokens.mask.any(1) for column, tokens in own.items()}
        absent = ~torch.stack(list(has.values())).any(0)  # (batch,)
        linear = torch.stack([tokens.mean() for tokens in own.values()]).sum(0)  # (batch, dim)
        # A fusion needs a column in every row: rows without the side get a token of zeros, and no vector.
        first, *_ = self.columns
        mask = own[first].mask.clone()
        mask[:, 0] |= absent
        own[first], has[first] = Tokens(own[first].values, mask, own[first].grid), has[first] | absent
        vectors = linear + self.out(self.fusion(own, has).pooled)
        return Tokens(vectors.masked_fill(absent.unsqueeze(1), 0).unsqueeze(1), ~absent.unsqueeze(1))


class Match(Family):
    """Projects every column into one space. What is compared is each column, or each side if there are sides.

    A column's vector is the mean of its projected tokens; for a side's see `SideVector`.
    """

    name = "match"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        routes: Mapping[str, str],
        dim: int,
        *,
        sides: Mapping[str, Fusion] | None = None,
        dropout: float = 0.1,
    ) -> None:
        """
        Args:
            encoders: by key; `forward(**tensors) -> Tokens`, with the attributes `dim` and `pretrained`.
            routes: by column, the key of its encoder.
            dim: width of the common space.
            sides: by name, the fusion of a side's columns; None compares the columns.
            dropout: on the encoders' outputs, in [0, 1).
        """
        super().__init__(encoders, routes, dim, dropout=dropout)
        sides = sides or {}
        self.side_names = list(sides)
        self._columns = {name: fusion.columns for name, fusion in sides.items()}
        self.sides = nn.ModuleList(SideVector(fusion) for fusion in sides.values())

    @property
    def compared(self) -> dict[str, tuple[str, ...]]:
        """See `Family.compared`."""
        if not self.side_names:
            return super().compared
        return self._columns

    def after_encoders(self) -> list[nn.Module]:
        """See `Family.after_encoders`."""
        return [self.projections]

    def forward(self, batch: Batch) -> Outputs:
        """See `Family.forward`."""
        outputs = super().forward(batch)
        present = presence(self.columns, batch.cells, batch.rows)
        for name, side in zip(self.side_names, self.sides, strict=True):
            outputs.sides[name] = side(outputs.columns, present)
        return outputs

    def combine(self, encoded: Encoded, cells: Mapping[str, Tensor], rows: Tensor) -> Outputs:
        """See `Family.combine`. The outputs have each column's tokens, but no pooled vector and no logits."""
        columns = {}
        for column in self.columns:
            read = encoded(column)
            scaled = None if read is None else self.standardise(column, read)
            columns[column] = self.project(column, scaled, cells.get(column), rows)
        return Outputs(logits={}, columns=columns)
