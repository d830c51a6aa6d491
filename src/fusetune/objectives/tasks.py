"""The task losses."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fusetune.tasks.base import TargetTask
from fusetune.types import Batch, Outputs


class TaskLosses(nn.Module):
    """Compute each task's mean loss over its labelled rows, by the task's name.

    Tasks that an objective learns in place of their own loss have none.

    Args:
        tasks: fitted, by target.
    """

    def __init__(self, tasks: Mapping[str, TargetTask]) -> None:
        super().__init__()
        self.tasks = {name: task for name, task in tasks.items() if task.learned_by is None}

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the losses by task, each a scalar."""
        return {
            name: task.loss(outputs.logits[name], batch.targets[name], batch.weights)
            for name, task in self.tasks.items()
        }
