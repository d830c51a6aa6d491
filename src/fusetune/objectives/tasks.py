"""The task losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusetune.tasks.abilities import Prefers
from fusetune.tasks.base import TargetTask
from fusetune.types import Batch, Outputs


class TaskLosses(nn.Module):
    """Compute each task's mean loss over its labelled rows, by the task's name.

    Tasks that an objective learns in place of their own loss have none.

    Args:
        tasks: fitted, by target.

    Attributes:
        figures: further values to log, by task and name, from the last forward pass.
    """

    def __init__(self, tasks: Mapping[str, TargetTask]) -> None:
        super().__init__()
        self.tasks = {name: task for name, task in tasks.items() if task.learned_by is None}
        self.figures: dict[str, Tensor] = {}

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the losses by task, each a scalar."""
        with torch.no_grad():
            self.figures = {
                f"{name}/{key}": value
                for name, task in self.tasks.items()
                if isinstance(task, Prefers)
                for key, value in task.figures(outputs.logits[name].detach(), batch.targets[name]).items()
            }
        return {
            name: task.loss(outputs.logits[name], batch.targets[name], batch.weights)
            for name, task in self.tasks.items()
        }
