"""Unimodal auxiliary heads: make every column predict the targets by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.objectives.base import Objective, labelled_weights
from fusetune.tasks.base import TargetTask
from fusetune.tasks.required import require_row_answers
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family


class Unimodal(Objective):
    """Make every column predict the targets by itself, with an auxiliary head for each column and task.

    L = mean over columns c of ℓ(h_c(v_c), y), where h_c is the head and v_c, (batch, dim), the mean of column c's
    projected tokens before the fusion. Each encoder receives a gradient of its own, so that a slow one keeps learning
    when another column already predicts most rows. Rows that lack a column do not enter its loss. The heads are not
    part of the trained model.

    Args:
        model: see `Objective`.
        tasks: see `Objective`.
        weight: factor of the loss in the total, above 0.

    Raises:
        ConfigError: there is no task, there is only one column, or the weight is not above 0.

    Inputs: each column's projected tokens, (batch, tokens, dim), and the targets.

    Requires: a task, and two or more columns.

    Relations: `fusion.modality_dropout` hides columns instead; both keep the model from ignoring a column.

    Figures: each column's loss, summed over tasks.

    Example:
        >>> from fusetune.testing.objectives import make_parts
        >>> model, tasks, examples = make_parts()
        >>> batch, objective = examples.batch(range(12)), Unimodal(model, tasks)
        >>> list(objective(model, batch, model(batch))), sorted(objective.figures)
        (['unimodal'], ['c', 'x', 'z'])

    Reference: the unimodal losses, with equal weights, of Wang et al. 2020, "What makes training multi-modal
    classification networks hard?" (arXiv 1905.12681).
    """

    name = "unimodal"

    def __init__(self, model: Family, tasks: Mapping[str, TargetTask], *, weight: float = 0.5) -> None:
        super().__init__(model, tasks, weight=weight)
        if not tasks or len(model.columns) < 2:
            what = "nothing is predicted" if not tasks else f"the only column is {model.columns[0]!r}"
            raise ConfigError(f"the objective unimodal has each column answer by itself, and {what}", do="leave it out")
        require_row_answers(tasks, where="objectives.unimodal")
        self.tasks, self.columns = dict(tasks), list(model.columns)
        # Lists, not dicts: the names of columns and tasks are the user's and may not be valid module names.
        self.heads = nn.ModuleList(
            nn.ModuleList(task.build_head(model.dim) for task in tasks.values()) for _ in self.columns
        )

    def counts(self, batch: Batch) -> Tensor:
        """Count rows that have a target."""
        return labelled_weights(batch)

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the mean loss over columns, summed over tasks."""
        losses = []
        self.figures = {}
        for column, heads in zip(self.columns, self.heads, strict=True):
            tokens = outputs.columns[column]
            present, vector = tokens.mask.any(1), tokens.mean()
            parts = []
            assert isinstance(heads, nn.ModuleList)
            for (name, task), head in zip(self.tasks.items(), heads, strict=True):
                target = batch.targets[name]
                parts.append(task.loss(head(vector), target.where(present), batch.weights))
            losses.append(torch.stack(parts).sum())
            self.figures[column] = losses[-1].detach()
        return {self.name: torch.stack(losses).mean()}
