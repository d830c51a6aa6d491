"""The contract of an objective, a loss that is minimised besides the task losses."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fusetune.data.examples import Examples
from fusetune.errors import ConfigError
from fusetune.objectives.gather import gather_rows
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.data.examples import Examples
    from fusetune.models.family import Family
    from fusetune.tasks.base import TargetTask


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return Σ weight · loss / Σ weight, a scalar; 0, with a gradient, if no weight is above 0.

    Args:
        losses: (rows,), finite.
        weights: (rows,), 0 or more.
    """
    total = weights.sum()
    return (losses * weights).sum() / total.clamp(min=torch.finfo(total.dtype).tiny)


def labelled_weights(batch: Batch) -> Tensor:
    """Return the weights of the rows that have a target, (batch,); 0 for the others."""
    return batch.weights * torch.stack([target.labelled for target in batch.targets.values()]).any(0)


class Objective(nn.Module, abc.ABC):
    """A term of the total loss, Σ task losses + Σ weight · objective.

    Rules, one test each in `fusetune.testing.objectives.ObjectiveContract`:

    - Losses are finite scalars named `name` or `name/...`. Their gradients reach the model and every parameter of the
      objective. `figures` are detached scalars.
    - A loss is a mean over rows, weighted by `batch.weights`: neither more rows nor larger weights make it larger, and
      rows of weight 0 do not enter it. The total multiplies by `weight`; the objective does not.
    - The batch and the outputs are not changed. The objective does not register the model's parameters as its own.
    - A single row, rows that all lack a column, and rows without targets give a finite loss. Values of missing targets
      are not read. bf16 autocast works.
    - With `needs_target` False, no target is read: rows with and without a target enter alike.

    Args:
        model: the model to be trained. The constructor reads its columns and sizes; it keeps no parameter of it.
        tasks: fitted, by target; empty if the objective is minimised without a task.
        weight: factor of the losses in the total, above 0.

    Raises:
        ConfigError: a setting is out of range, or the model lacks what the objective needs.

    Attributes:
        name: the name in the registry, under which the losses are logged.
        figures: further values to log, by name, from the last forward pass; detached scalars.
        warnings: messages to show to the user before training starts.
        teacher: the averaged weights by the model's parameter names, see `teacher_decay`; None before training.
    """

    name: ClassVar[str]
    standalone: ClassVar[bool] = False
    """Whether the objective can be minimised without any task."""
    family: ClassVar[str | None] = None
    """The only family of models that the objective trains; None for any."""
    needs_target: ClassVar[bool] = True
    """Whether only rows with a target enter the losses. Train rows without any target are used if some objective needs
    none."""
    perturbs_inputs: bool = False
    """Whether what enters the encoders is changed, so that frozen layers must run in every update."""
    teacher_decay: float | None = None
    """Decay of the moving average of the model's weights that the loop keeps in `teacher`; None keeps none."""

    def __init__(self, model: Family, tasks: Mapping[str, TargetTask], *, weight: float = 1.0) -> None:
        super().__init__()
        if not weight > 0:
            raise ConfigError(f"objectives.{self.name}.weight is out of range", expected="above 0", came=str(weight))
        self.weight = weight
        self.figures: dict[str, Tensor] = {}
        self.teacher: dict[str, Tensor] | None = None
        self.warnings: list[str] = []

    @abc.abstractmethod
    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the losses by name, each a scalar with a gradient, not multiplied by `weight`.

        Each is a mean over the batch's rows, weighted by `batch.weights`. A batch that the objective cannot learn from
        (a single row, no row with the columns) gives 0, with a gradient.

        Args:
            model: the model that computed the outputs; the objective may call it again.
            batch: the rows, not to be changed.
            outputs: the model's outputs for these rows, not to be changed.
        """

    def fit(self, train: Examples) -> None:
        """Learn from the train rows what the losses need of rows that are not in the batch; called before training."""

    def start_update(self) -> None:
        """Prepare for an update; called before its first forward pass, again if it must be repeated."""

    def end_update(self) -> None:
        """Learn from the update that was made; called on every process, not after a skipped update."""

    def counts(self, batch: Batch) -> Tensor:
        """Return each row's term in the denominator of the losses, (batch,).

        The means of an update's micro-batches are combined by it to the mean over all of its rows, so it is known
        before the forward pass. The default is the rows' weights; an objective that averages over rows with a target
        takes `labelled_weights`.
        """
        return batch.weights


class BatchObjective(Objective):
    """An objective that compares rows with one another, such as a contrastive loss.

    It is computed from `vectors`, each of which depends on a single row. So the vectors of all processes, and of all
    micro-batches of an update (`fusetune.training.updates.grad_cache`), can be concatenated before they are compared.
    The loss must not depend on the order of the rows.
    """

    @abc.abstractmethod
    def vectors(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the tensors to compare, by name, each (batch, ...), with the rows' weights if the loss uses them."""

    @abc.abstractmethod
    def of_vectors(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses by name from the vectors of any number of rows.

        Args:
            vectors: from `vectors`; those of several processes are combined by
                `fusetune.objectives.gather.gather_rows`.
        """

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """See `Objective.forward`."""
        return self.of_vectors(gather_rows(self.vectors(batch, outputs)))
