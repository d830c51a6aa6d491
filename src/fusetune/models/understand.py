"""The understand family: encoders, one fusion, a head a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fusetune.backbones.shift import encode
from fusetune.fusion.base import Fusion
from fusetune.types import Batch, Outputs, Tokens

FEATURES = "features"
"""The input under which a batch brings a column's encoder output, computed before, instead of raw tensors."""
REAL = "real"
"""The input beside it that says which of its tokens are real, (cells, tokens) bool."""


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


class Understand(nn.Module):
    """Columns to logits: each column's cells through its encoder and projection, all columns through the fusion.

    logits = head(fusion(projected columns)) + linear(standardised columns)

    The linear part reads the columns whose encoders are of use before any training. It starts as the best linear model
    on them (`start_from`) with the heads at zero, so training starts from a linear probe's predictions and can only
    choose to add to them; where no such model was given it stays at zero and the heads start as the tasks made them.
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
            encoders: by key; `forward(**tensors) -> Tokens`, with the attributes `dim` and `pretrained`.
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
        dims = {column: int(encoders[key].dim) for column, key in routes.items()}  # type: ignore[arg-type]
        self.projections = nn.ModuleList(Projection(dims[column], fusion.dim, dropout=dropout) for column in routes)
        self.fusion = fusion
        self.heads = nn.ModuleList(heads.values())
        self.replays: Callable[[Batch], Outputs] | None = None  # see `fusetune.models.replays`
        self.linear_columns = [column for column, key in routes.items() if encoders[key].pretrained]
        width = sum(dims[column] + 1 for column in self.linear_columns)
        sizes = [head(torch.zeros(1, fusion.dim)).numel() for head in self.heads]
        self.linear = nn.ModuleList(nn.Linear(width, size) for size in sizes) if width else None
        for layer in self.linear or ():
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def set_scale(self, column: str, shift: Tensor, scale: Tensor) -> None:
        """Standardise a column by (features - shift) * scale, each (dim,)."""
        projection = self.projections[self.columns.index(column)]
        assert isinstance(projection, Projection)
        projection.shift.copy_(shift)
        projection.scale.copy_(scale)

    @torch.no_grad()
    def start_from(self, task: str, weight: Tensor, bias: Tensor) -> None:
        """Start a task from a linear model, its head at zero.

        Args:
            task: the task's name.
            weight: (features, logits), over each linear column's standardised features divided by the square root of
                their number, then whether the column is absent.
            bias: (logits,).
        """
        place = self.tasks.index(task)
        assert self.linear is not None, "there are columns for the linear part"
        layer = self.linear[place]
        assert isinstance(layer, nn.Linear)
        head = self.heads[place]
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        device = layer.weight.device
        at_zero = head(torch.zeros(1, self.fusion.dim, device=device)).view(-1)  # not zero for ordered thresholds
        layer.weight.copy_(weight.T.to(device))
        layer.bias.copy_(bias.to(device) - at_zero)

    def encode(self, column: str, tensors: dict[str, Tensor]) -> Tokens:
        """A column's distinct cells as its encoder's tokens, (cells, tokens, encoder dim)."""
        if FEATURES in tensors:
            grid = getattr(self.encoders[self.routes[column]], "grid", None)
            return Tokens(tensors[FEATURES], tensors[REAL], grid)
        return encode(self.encoders[self.routes[column]], tensors)

    def forward(self, batch: Batch) -> Outputs:
        """Logits of every task for each row of the batch; a column that the batch does not bring is absent."""
        if self.replays is not None:
            return self.replays(batch)

        def encoded(column: str) -> Tokens | None:
            return self.encode(column, tensors) if (tensors := batch.inputs.get(column)) else None

        return self.combine(encoded, batch.cells, batch.rows)

    def combine(self, encoded: Callable[[str], Tokens | None], cells: Mapping[str, Tensor], rows: Tensor) -> Outputs:
        """What is computed after the encoders.

        Args:
            encoded: gives a column's cells as `encode` does, or None where no row has the column.
            cells: per column, (batch,) int64, which of them a row has, -1 for none.
            rows: (batch,).
        """
        columns, blocks = {}, []
        for column, projection in zip(self.columns, self.projections, strict=True):
            assert isinstance(projection, Projection)
            columns[column], block = self._column(projection, encoded(column), cells.get(column), rows)
            if column in self.linear_columns:
                blocks.append(block)
        nowhere = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        present = {column: cells[column] >= 0 if column in cells else nowhere for column in self.columns}
        pooled = self.fusion(columns, present).pooled
        logits = {}
        for place, (task, head) in enumerate(zip(self.tasks, self.heads, strict=True)):
            logits[task] = head(pooled)
            if self.linear is not None:
                logits[task] = logits[task] + self.linear[place](torch.cat(blocks, 1)).view_as(logits[task])
        return Outputs(logits=logits, pooled=pooled, columns=columns)

    def _column(
        self, projection: Projection, encoded: Tokens | None, cells: Tensor | None, rows: Tensor
    ) -> tuple[Tokens, Tensor]:
        """A column's projected tokens, (batch, tokens, dim), and its block for the linear part, (batch, in_dim + 1)."""
        if encoded is None or cells is None:
            device, dtype = rows.device, projection.linear.weight.dtype
            values = torch.zeros(len(rows), 1, self.fusion.dim, device=device, dtype=dtype)
            block = torch.zeros(len(rows), projection.linear.in_features + 1, device=device, dtype=dtype)
            block[:, -1] = 1
            return Tokens(values, torch.zeros(len(rows), 1, dtype=torch.bool, device=device)), block
        scaled = Tokens(projection.standardise(encoded.values), encoded.mask)
        values = projection(scaled.values)  # (cells, tokens, dim)
        absent = (cells < 0).unsqueeze(1)  # (batch, 1)
        row_cells = cells.clamp(min=0)
        mask = encoded.mask[row_cells] & ~absent  # (batch, tokens)
        vector = (scaled.mean() / projection.linear.in_features**0.5)[row_cells].masked_fill(absent, 0)
        block = torch.cat([vector, absent.to(vector.dtype)], dim=1)
        return Tokens(values[row_cells].masked_fill(~mask.unsqueeze(-1), 0), mask, encoded.grid), block
