"""Unimodal auxiliary heads: every column must be able to answer by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.objectives.base import Objective
from fusetune.tasks.base import Task
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family


class Unimodal(Objective):
    """The mean over columns c of ℓ(h_c(v_c), y): a head of its own for every column and task, left out once trained.

    v_c is the mean of column c's projected tokens, before the fusion. Each column's encoder gets a gradient of its own,
    so one that learns slowly is not left behind by one that answers most rows already. Rows that lack a column take no
    part in its head.

    Reference: the unimodal losses of Wang et al. 2020, "What makes training multi-modal classification networks hard?",
    arXiv 1905.12681, with equal weights.

    Figures: each column's loss, the tasks added up: what it can tell by itself.

    Requires: a task, and two or more columns.
    """

    name = "unimodal"

    def __init__(self, model: Family, tasks: Mapping[str, Task], *, weight: float = 0.5) -> None:
        """
        Args:
            model: see `Objective`.
            tasks: see `Objective`.
            weight: what the loss counts in the total, above 0.

        Raises:
            ConfigError: there is no task, one column only, or the weight is not above 0.
        """
        super().__init__(model, tasks, weight=weight)
        if not tasks or len(model.columns) < 2:
            what = "nothing is predicted" if not tasks else f"the only column is {model.columns[0]!r}"
            raise ConfigError(f"the objective unimodal has each column answer by itself, and {what}", do="leave it out")
        self.tasks, self.columns = dict(tasks), list(model.columns)
        # Names of columns and tasks are the user's and may be no module names, hence lists.
        self.heads = nn.ModuleList(
            nn.ModuleList(task.build_head(model.dim) for task in tasks.values()) for _ in self.columns
        )

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """The mean over columns, several tasks added up."""
        losses = []
        self.figures = {}
        for column, heads in zip(self.columns, self.heads, strict=True):
            tokens = outputs.columns[column]
            there, vector = tokens.mask.any(1), tokens.mean()
            parts = []
            assert isinstance(heads, nn.ModuleList)
            for (name, task), head in zip(self.tasks.items(), heads, strict=True):
                target = batch.targets[name]
                parts.append(task.loss(head(vector), target.where(there), batch.weights))
            losses.append(torch.stack(parts).sum())
            self.figures[column] = losses[-1].detach()
        return {self.name: torch.stack(losses).mean()}
