"""The task losses."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fusetune.tasks.base import TargetTask
from fusetune.types import Batch, Outputs


class TaskLosses(nn.Module):
    """Each task's own loss on the rows that are labelled for it, by the task's name."""

    def __init__(self, tasks: Mapping[str, TargetTask]) -> None:
        super().__init__()
        self.tasks = dict(tasks)

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the losses by task, each a scalar."""
        return {
            name: task.loss(outputs.logits[name], batch.targets[name], batch.weights)
            for name, task in self.tasks.items()
        }
