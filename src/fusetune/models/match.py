"""The match family: columns, or sides of several columns, are projected into one space, in which matches are close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.fusion.base import Fusion
from fusetune.models.family import Family, presence
from fusetune.models.reader import Encoded
from fusetune.types import Batch, Outputs, Tokens


class SideVector(nn.Module):
    """One vector from the columns of a side.

    vector = Σ_c mean of column c's projected tokens + W fusion(projected columns), summed over the present columns. W
    starts at zero, so that training starts from the linear part, which a closed-form alignment can initialise. Without
    a fusion the vector is the linear part.

    Args:
        columns: of the side.
        fusion: over these columns, or None.
    """

    def __init__(self, columns: Sequence[str], fusion: Fusion | None) -> None:
        super().__init__()
        self.columns, self.fusion = tuple(columns), fusion
        if fusion is not None:
            self.out = nn.Linear(fusion.dim, fusion.dim, bias=False)
            nn.init.zeros_(self.out.weight)

    def forward(self, columns: Mapping[str, Tokens], present: Mapping[str, Tensor]) -> Tokens:
        """Return the vectors as one token a row, (batch, 1, dim); a row without the side has no real token.

        Args:
            columns: by column, (batch, tokens, dim); more than the side's are ignored.
            present: by column, (batch,) bool.
        """
        own = {column: columns[column] for column in self.columns}
        has = {column: present[column] & tokens.mask.any(1) for column, tokens in own.items()}
        absent = ~torch.stack(list(has.values())).any(0)  # (batch,)
        vectors = torch.stack([tokens.mean() for tokens in own.values()]).sum(0)  # (batch, dim)
        if self.fusion is not None:
            # A fusion needs a column in every row: rows without the side get a token of zeros, and no vector.
            first, *_ = self.columns
            mask = own[first].mask.clone()
            mask[:, 0] |= absent
            own[first], has[first] = Tokens(own[first].values, mask, own[first].grid), has[first] | absent
            vectors = vectors + self.out(self.fusion(own, has).pooled)
        return Tokens(vectors.masked_fill(absent.unsqueeze(1), 0).unsqueeze(1), ~absent.unsqueeze(1))


@dataclass(frozen=True)
class Negative:
    """Cells that are read as a side's are, and that a query should be told apart from.

    Attributes:
        side: its name.
        columns: by the side's column, the name under which a batch has the cells.
        mined: whether they are chosen while the model is trained; then the names are aliases of the side's columns.
    """

    side: str
    columns: Mapping[str, str]
    mined: bool = False


@dataclass(frozen=True)
class Sides:
    """What a `Match` model fuses and compares.

    Attributes:
        columns: by side, its columns.
        fusions: by side, its fusion; None for a side that is not fused. Empty: each column is compared.
        heads: by task, the head that maps the first two sides' vectors, (batch, 2 · dim), to its logits.
        negatives: by name; see `Outputs.negatives`.
        shares: by column without a projection of its own, the column whose projection it shares.
    """

    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    fusions: Mapping[str, Fusion | None] = field(default_factory=dict)
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    negatives: Mapping[str, Negative] = field(default_factory=dict)
    shares: Mapping[str, str] = field(default_factory=dict)


class Match(Family):
    """Projects every column into one space. What is compared is each column, or each side if there are sides.

    A column's vector is the mean of its projected tokens; for a side's see `SideVector`. Tasks about pairs have logits:
    a head's, of the two sides' vectors.
    """

    name = "match"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        routes: Mapping[str, str],
        dim: int,
        *,
        sides: Sides | None = None,
        dropout: float = 0.1,
        joined: Mapping[str, int] | None = None,
    ) -> None:
        """
        Args:
            encoders: by key; `forward(**tensors) -> Tokens`, with the attributes `dim` and `pretrained`.
            routes: by column, the key of its encoder.
            dim: width of the common space.
            sides: what is fused and compared; None compares the columns.
            dropout: on the encoders' outputs, in [0, 1).
            joined: see `Reader`.
        """
        sides = sides or Sides()
        mined = [negative for negative in sides.negatives.values() if negative.mined]
        aliases = {name: column for negative in mined for column, name in negative.columns.items()}
        super().__init__(encoders, routes, dim, dropout=dropout, joined=joined, shares=sides.shares, aliases=aliases)
        self.side_names, self.negatives = list(sides.columns), dict(sides.negatives)
        self._columns = {name: tuple(columns) for name, columns in sides.columns.items()}
        self.sides = nn.ModuleList(SideVector(columns, sides.fusions[name]) for name, columns in sides.columns.items())
        self.tasks = list(sides.heads)
        self.heads = nn.ModuleList(sides.heads.values())

    @property
    def compared(self) -> dict[str, tuple[str, ...]]:
        """See `Family.compared`."""
        if not self.side_names:
            return super().compared
        return self._columns

    def after_encoders(self) -> list[nn.Module]:
        """See `Family.after_encoders`."""
        return [self.projections]

    def side(self, name: str, batch: Batch) -> Tensor:
        """Compute a side's vectors of rows, (batch, dim), scaled to unit length, from its own columns alone."""
        columns = {}
        for column in self._columns[name]:
            read = self.encode(column, tensors) if (tensors := batch.inputs.get(column)) else None
            scaled = None if read is None else self.standardise(column, read)
            columns[column] = self.project(column, scaled, batch.cells.get(column), batch.rows)
        present = presence(self._columns[name], batch.cells, batch.rows)
        part = self.sides[self.side_names.index(name)]
        return F.normalize(part(columns, present).values.squeeze(1), dim=1, eps=1e-6)

    def forward(self, batch: Batch) -> Outputs:
        """See `Family.forward`."""
        outputs = super().forward(batch)
        present = presence(self.read_columns, batch.cells, batch.rows)
        for name, side in zip(self.side_names, self.sides, strict=True):
            outputs.sides[name] = side(outputs.columns, present)
        for name, negative in self.negatives.items():
            side, read = self.sides[self.side_names.index(negative.side)], negative.columns
            own = {column: outputs.columns[other] for column, other in read.items()}
            outputs.negatives[name] = side(own, {column: present[other] for column, other in read.items()})
        if self.tasks:
            pair = torch.cat([outputs.sides[name].values.squeeze(1) for name in self.side_names[:2]], 1)
            outputs.logits |= {task: head(pair) for task, head in zip(self.tasks, self.heads, strict=True)}
        return outputs

    def combine(self, encoded: Encoded, cells: Mapping[str, Tensor], rows: Tensor) -> Outputs:
        """See `Family.combine`. The outputs have each column's tokens, but no pooled vector and no logits."""
        columns = {}
        for column in self.read_columns:
            read = encoded(column)
            scaled = None if read is None else self.standardise(column, read)
            columns[column] = self.project(column, scaled, cells.get(column), rows)
        return Outputs(logits={}, columns=columns)
