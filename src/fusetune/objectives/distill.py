"""Knowledge distillation: learn from what another model predicts for the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.objectives.base import Objective, weighted_mean
from fusetune.tasks.abilities import Distilled
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family
    from fusetune.tasks.base import TargetTask


class Distillation(Objective):
    """Learn from what a teacher, a model that was tuned before, predicts for the rows.

    With t the teacher's logits for a row, s the student's, and T the temperature, the loss is the mean over rows of

        T² KL(softmax(t / T) || softmax(s / T))                  one of several classes
        mean over labels of T² KL(sigmoid(t / T) || sigmoid(s / T))    any number of labels
        (t − s)², both on the student's scale                    numbers

    Classes and labels that the teacher does not know are left out of the sums: with the model before as the teacher,
    this is learning without forgetting. The teacher predicts once, for the rows as they are in the table, without
    augmentation. Rows need no target.

    Args:
        model: see `Objective`.
        tasks: see `Objective`. Of targets that the teacher does not predict, nothing is learned from it.
        teacher: the folder of a tuned model, or of versions, of which the one in use teaches.
        weight: factor of the loss in the total, above 0.
        temperature: T, above 0; the higher, the more the classes that the teacher finds unlikely matter.

    Raises:
        ConfigError: there is no teacher, a setting is out of range, or no task can be compared with a teacher's.

    Inputs: the batch with `Target.reference`. No further forward pass.

    Requires: a task with `Distilled`: `binary`, `multiclass`, `focal`, `multilabel` or `regression`.

    Relations: `semi` with `mean_teacher` is taught by its own average; `trainer.interpolate` averages weights.

    Example:
        >>> from fusetune.testing.objectives import make_parts
        >>> model, tasks, examples = make_parts()
        >>> batch = examples.batch(range(12))
        >>> losses = Distillation(model, tasks, teacher="runs/large")(model, batch, model(batch))
        >>> list(losses), bool(losses["distill"] > 0)
        (['distill'], True)

    Reference: Hinton et al. 2015, "Distilling the knowledge in a neural network" (arXiv 1503.02531); Li and Hoiem 2016,
    "Learning without forgetting" (arXiv 1606.09282).
    """

    name = "distill"
    needs_target = False

    def __init__(
        self,
        model: Family,
        tasks: Mapping[str, TargetTask],
        *,
        teacher: str = "",
        weight: float = 1.0,
        temperature: float = 2.0,
    ) -> None:
        super().__init__(model, tasks, weight=weight)
        if not temperature > 0:
            raise ConfigError(
                "objectives.distill.temperature is out of range", expected="above 0", came=str(temperature)
            )
        self.temperature = temperature
        self.tasks = {name: task for name, task in tasks.items() if isinstance(task, Distilled)}
        if not self.tasks:
            raise ConfigError(
                "objectives.distill finds no target that a teacher can teach",
                expected="a target with classes, labels or numbers",
                came=", ".join(f"{name!r}, {task.name}" for name, task in tasks.items()) or "no target",
            )

    def counts(self, batch: Batch) -> Tensor:
        """Return the weights of the rows that the teacher predicted, (batch,); 0 for the others."""
        taught = torch.zeros_like(batch.weights, dtype=torch.bool)
        for name in self.tasks:
            if (reference := batch.targets[name].reference) is not None:
                taught |= ~reference.isnan().all(1)
        return batch.weights * taught

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the mean loss over the rows that the teacher predicted, with or without targets."""
        losses = []
        for name, task in self.tasks.items():
            logits, reference = outputs.logits[name], batch.targets[name].reference
            if reference is None:
                losses.append(0 * logits.reshape(len(batch), -1).sum(1))
            else:
                losses.append(task.distillation(logits, reference, self.temperature))
        return {self.name: weighted_mean(torch.stack(losses).sum(0), self.counts(batch))}
