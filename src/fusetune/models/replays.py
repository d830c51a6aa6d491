"""What a model computes after its encoders, replayed from CUDA graphs: see `fusetune.backbones.graphs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.backbones.compiled import bucket
from fusetune.backbones.graphs import Replays
from fusetune.models.family import Family
from fusetune.models.understand import Understand
from fusetune.types import Batch, Outputs, Tokens


class FusionReplays(Replays):
    """A model's passes after its encoders: projections, fusion, heads."""

    def __init__(self, model: Family) -> None:
        """
        Args:
            model: on a GPU, with the parameters trainable that will be.
        """
        found = [p for part in model.after_encoders() for p in part.parameters() if p.requires_grad]
        super().__init__("the fusion", found)
        self.model = model

    def __call__(self, batch: Batch) -> Outputs:
        """The model's outputs; its encoders run as they do."""
        model = self.model
        brought = [column for column in model.columns if batch.inputs.get(column)]
        encoded = {column: model.encode(column, batch.inputs[column]) for column in brought}
        if torch.is_grad_enabled() and not self.failed and all(map(_is_steady, encoded.values())):
            tensors = {"rows": batch.rows}
            for number, column in enumerate(batch.cells):
                tensors[f"{number} cells"] = batch.cells[column]
            for number, column in enumerate(brought):
                more = bucket(len(encoded[column].values)) - len(encoded[column].values)
                tensors[f"{number} values"] = F.pad(encoded[column].values, (0, 0, 0, 0, 0, more))
                tensors[f"{number} mask"] = F.pad(encoded[column].mask, (0, 0, 0, more))
            columns = (tuple(batch.cells), tuple((column, encoded[column].grid) for column in brought))
            found = self.run(_Fusing(model, *columns), tensors, columns)
            if found is not None:
                return self._outputs(found, encoded)
        return model.combine(encoded.get, batch.cells, batch.rows)

    def _outputs(self, found: Sequence[Tensor], encoded: Mapping[str, Tokens]) -> Outputs:
        """What `_Fusing` gave, in its places."""
        model, rest = self.model, list(found)
        pooled = rest.pop(0) if isinstance(model, Understand) else None
        columns = {}
        for number, column in enumerate(model.columns):
            grid = encoded[column].grid if column in encoded else None
            columns[column] = Tokens(rest[2 * number], rest[2 * number + 1], grid)
        logits = dict(zip(model.tasks, rest[2 * len(model.columns) :], strict=True))
        return Outputs(logits=logits, pooled=pooled, columns=columns)


def _is_steady(tokens: Tokens) -> bool:
    """Whether a column has as many tokens in every batch."""
    return tokens.values.shape[1] == 1 or tokens.grid is not None


class _Fusing(nn.Module):
    """The pass after the encoders, over tensors in a fixed order."""

    def __init__(
        self, model: Family, with_cells: Sequence[str], brought: Sequence[tuple[str, tuple[int, int, int] | None]]
    ) -> None:
        """
        Args:
            model: whose it is.
            with_cells: the columns that the batch says the cells of.
            brought: those that it brings cells of, with their tokens' grid.
        """
        super().__init__()
        self.parts = nn.ModuleList(model.after_encoders())
        self.combine, self.with_cells, self.brought = model.combine, with_cells, brought

    def forward(self, rows: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The pooled vectors where there are any, each column's tokens, each task's logits."""
        cells = dict(zip(self.with_cells, tensors, strict=False))
        given = tensors[len(cells) :]
        encoded = {
            column: Tokens(given[2 * n], given[2 * n + 1], grid) for n, (column, grid) in enumerate(self.brought)
        }
        out = self.combine(encoded.get, cells, rows)
        columns = [tensor for tokens in out.columns.values() for tensor in (tokens.values, tokens.mask)]
        return *([] if out.pooled is None else [out.pooled]), *columns, *out.logits.values()
