"""The contract of an objective: what is minimised besides the task losses."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.objectives.gather import gathered
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family
    from fusetune.tasks.base import TargetTask


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return sum of weight x loss / sum of weight, a scalar; 0, with a gradient, where no weight is above 0.

    Args:
        losses: (rows,), finite.
        weights: (rows,), 0 or more.
    """
    total = weights.sum()
    return (losses * weights).sum() / total.clamp(min=torch.finfo(total.dtype).tiny)


class Objective(nn.Module, abc.ABC):
    """A term of the total loss: sum of the task losses + sum of weight x objective.

    Rules, one test each in `fusetune.testing.objectives.ObjectiveContract`:

    - Losses are finite scalars, called `name` or `name/...`, whose gradients reach the model and every parameter of the
      objective. `figures` are detached scalars.
    - A loss is a mean over rows, weighted by `batch.weights`: neither more rows nor larger weights make it larger, and
      a row of weight 0 has no part in it. The total applies `weight`; the objective does not.
    - The batch and the outputs are left as they are. The model's parameters are no parameters of the objective.
    - One row, rows that all lack a column and rows without any target give a finite loss. Values of missing targets are
      not read. bf16 autocast works.

    Attributes:
        name: in the registry; its losses are logged under it.
        figures: what is logged besides the losses, by name, as of the last forward pass; detached scalars.
        warnings: what the user should be told before training starts.
    """

    name: ClassVar[str]
    alone: ClassVar[bool] = False
    """Whether it can be minimised by itself, without any task."""

    def __init__(self, model: Family, tasks: Mapping[str, TargetTask], *, weight: float = 1.0) -> None:
        """
        Args:
            model: what will be trained: its columns and sizes are looked at, its parameters are not kept.
            tasks: fitted, by target; none where the objective is minimised alone.
            weight: what the losses count in the total, above 0.

        Raises:
            ConfigError: a setting is out of range, or the model lacks what the objective needs.
        """
        super().__init__()
        if not weight > 0:
            raise ConfigError(f"objectives.{self.name}.weight is out of range", expected="above 0", came=str(weight))
        self.weight = weight
        self.figures: dict[str, Tensor] = {}
        self.warnings: list[str] = []

    @abc.abstractmethod
    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the losses by name, each a scalar with a gradient and not yet multiplied by `weight`.

        Each is a mean over the batch's rows, weighted by `batch.weights`. A batch in which there is nothing to learn
        from (one row, no row with the columns) gives 0, with a gradient.

        Args:
            model: the model that gave the outputs; it may be called again.
            batch: the rows; neither it nor the outputs are changed.
            outputs: of the model for these rows.
        """


class BatchObjective(Objective):
    """An objective that compares rows with one another.

    It is computed from `vectors`, each of which depends on its own row alone. Therefore the rows of all processes are
    compared, and those of all micro-batches of an update (`fusetune.training.updates.grad_cache`): their vectors are
    concatenated first. The order of the rows does not matter.
    """

    @abc.abstractmethod
    def vectors(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is compared, and the rows' weights if they count: tensors of shape (batch, ...)."""

    @abc.abstractmethod
    def of_vectors(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses by name from the vectors of any number of rows.

        Args:
            vectors: `vectors` of the rows; those of several processes are as `fusetune.objectives.gather` makes them.
        """

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """See `Objective.forward`."""
        return self.of_vectors(gathered(self.vectors(batch, outputs)))
