"""CUDA-graph replays of the passes after the encoders; see `fusetune.backbones.passes.graphs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.backbones.passes.compiled import bucket
from fusetune.backbones.passes.graphs import Replays
from fusetune.models.family import Family
from fusetune.models.understand import Understand
from fusetune.types import Batch, Outputs, Tokens


class FusionReplays(Replays):
    """Replays a model's passes after its encoders: projections, fusion, heads."""

    def __init__(self, model: Family) -> None:
        """
        Args:
            model: on a GPU, with its parameters already frozen or trainable.
        """
        trained = [p for part in model.after_encoders() for p in part.parameters() if p.requires_grad]
        super().__init__("the fusion", trained)
        self.model = model

    def __call__(self, batch: Batch) -> Outputs:
        """Compute the model's outputs; only the passes after the encoders are replayed."""
        model = self.model
        available = [column for column in model.read_columns if batch.inputs.get(column)]
        encoded = {column: model.encode(column, batch.inputs[column]) for column in available}
        if torch.is_grad_enabled() and not self.failed and all(map(_has_fixed_length, encoded.values())):
            tensors = {"rows": batch.rows}
            for number, column in enumerate(batch.cells):
                tensors[f"{number} cells"] = batch.cells[column]
            for number, column in enumerate(available):
                padding = bucket(len(encoded[column].values)) - len(encoded[column].values)
                tensors[f"{number} values"] = F.pad(encoded[column].values, (0, 0, 0, 0, 0, padding))
                tensors[f"{number} mask"] = F.pad(encoded[column].mask, (0, 0, 0, padding))
            columns = (tuple(batch.cells), tuple((column, encoded[column].grid) for column in available))
            outputs = self.run(_CombinePass(model, *columns), tensors, columns)
            if outputs is not None:
                return self._outputs(outputs, encoded)
        return model.combine(encoded.get, batch.cells, batch.rows)

    def _outputs(self, tensors: Sequence[Tensor], encoded: Mapping[str, Tokens]) -> Outputs:
        """Assemble outputs from the tensors that `_CombinePass` returned."""
        model, rest = self.model, list(tensors)
        pooled = rest.pop(0) if isinstance(model, Understand) else None
        columns = {}
        for number, column in enumerate(model.read_columns):
            grid = encoded[column].grid if column in encoded else None
            columns[column] = Tokens(rest[2 * number], rest[2 * number + 1], grid)
        logits = dict(zip(model.tasks, rest[2 * len(model.read_columns) :], strict=True))
        return Outputs(logits=logits, pooled=pooled, columns=columns)


def _has_fixed_length(tokens: Tokens) -> bool:
    """Return whether a column has the same number of tokens in every batch."""
    return tokens.values.shape[1] == 1 or tokens.grid is not None


class _CombinePass(nn.Module):
    """The pass after the encoders, over tensors in a fixed order."""

    def __init__(
        self, model: Family, with_cells: Sequence[str], grids: Sequence[tuple[str, tuple[int, int, int] | None]]
    ) -> None:
        """
        Args:
            model: computes the outputs.
            with_cells: the columns in the batch's `cells`, in order.
            grids: the columns with encoded cells, in order, each with its tokens' grid.
        """
        super().__init__()
        self.parts = nn.ModuleList(model.after_encoders())
        self.combine, self.with_cells, self.grids = model.combine, with_cells, grids

    def forward(self, rows: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the pooled vectors if there are any, then each column's values and mask, then each task's logits."""
        cells = dict(zip(self.with_cells, tensors, strict=False))
        features = tensors[len(cells) :]
        encoded = {
            column: Tokens(features[2 * n], features[2 * n + 1], grid) for n, (column, grid) in enumerate(self.grids)
        }
        out = self.combine(encoded.get, cells, rows)
        columns = [tensor for tokens in out.columns.values() for tensor in (tokens.values, tokens.mask)]
        return *([] if out.pooled is None else [out.pooled]), *columns, *out.logits.values()
