"""The tensors that travel between the parts.

Legend: batch = rows, cells = distinct cells of one column in this batch, tokens = tokens a cell, dim = features.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Tokens:
    """Feature vectors with a mask.

    Attributes:
        values: (batch, tokens, dim) float.
        mask: (batch, tokens) bool, True where a token is real.
        grid: (extra, height, width) where the tokens are maps: of each picture first `extra` tokens that lie nowhere
            (a class token), then height * width of them, row by row; a cell's pictures follow one another.
    """

    values: Tensor
    mask: Tensor
    grid: tuple[int, int, int] | None = None

    def mean(self) -> Tensor:
        """The mean of each row's real tokens, zeros where it has none: (batch, dim)."""
        weight = self.mask.unsqueeze(-1).to(self.values.dtype)  # (batch, tokens, 1)
        return (self.values * weight).sum(1) / weight.sum(1).clamp(min=1)


@dataclass
class Target:
    """One task's encoded targets.

    Attributes:
        values: (batch, ...), in the form that the task encodes; any value where a row is unlabelled.
        labelled: (batch,) bool, True where the row has this target.
    """

    values: Tensor
    labelled: Tensor

    def to(self, device: object) -> Target:
        """The same on another device."""
        return Target(self.values.to(device), self.labelled.to(device))  # type: ignore[call-overload]


@dataclass
class Batch:
    """Some rows as tensors. Equal cells of a column appear once.

    Attributes:
        inputs: `inputs[column][name]` is a tensor whose first dimension runs over the column's distinct cells
            (or over parts of them, as the modality decides); empty where no row of the batch has the column.
        cells: `cells[column]` is (batch,) int64: which of the cells a row has, -1 where the column is absent.
        codes: `codes[column]` is (batch,) int64: equal for rows with equal cells, whatever batch they come in, -1 where
            the column is absent.
        groups: (batch,) int64, equal for rows of one group (see the schema's `group` role), -1 for rows of none.
        targets: per task.
        weights: (batch,) float, the rows' weights in the loss.
        rows: (batch,) int64, the row ids that errors and predictions are reported under.
    """

    inputs: dict[str, dict[str, Tensor]]
    cells: dict[str, Tensor]
    weights: Tensor
    rows: Tensor
    targets: dict[str, Target] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def present(self) -> dict[str, Tensor]:
        """`present[column]` is (batch,) bool, True where the row has the column."""
        return {column: cells >= 0 for column, cells in self.cells.items()}

    def to(self, device: object) -> Batch:
        """The same on another device."""
        return Batch(
            inputs={
                column: {name: tensor.to(device) for name, tensor in tensors.items()}  # type: ignore[call-overload]
                for column, tensors in self.inputs.items()
            },
            cells={column: cells.to(device) for column, cells in self.cells.items()},  # type: ignore[call-overload]
            weights=self.weights.to(device),  # type: ignore[call-overload]
            rows=self.rows.to(device),  # type: ignore[call-overload]
            targets={task: target.to(device) for task, target in self.targets.items()},
            codes={column: codes.to(device) for column, codes in self.codes.items()},  # type: ignore[call-overload]
            groups=None if self.groups is None else self.groups.to(device),  # type: ignore[call-overload]
        )


@dataclass
class Outputs:
    """What a model gives for a batch.

    Attributes:
        logits: per task, in the form its head gives.
        pooled: (batch, dim), the fused representation that the heads read.
        columns: per column, the projected tokens that went into the fusion; none real in rows that lack it.
        fused: the tokens after the fusion.
    """

    logits: dict[str, Tensor]
    pooled: Tensor
    columns: dict[str, Tokens]
    fused: Tokens
