"""The contract of an objective: what is minimised besides the task losses."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.objectives.gather import gathered
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family
    from fusetune.tasks.base import Task


class Objective(nn.Module, abc.ABC):
    """A term of the total loss: sum of the task losses + sum of weight x objective.

    Attributes:
        name: in the registry; its losses are logged under it.
        figures: what is logged besides the losses, by name, as of the last forward pass; detached scalars.
        warnings: what the user should be told before training starts.
    """

    name: ClassVar[str]
    alone: ClassVar[bool] = False
    """Whether it can be minimised by itself, without any task."""

    def __init__(self, model: Family, tasks: Mapping[str, Task], *, weight: float = 1.0) -> None:
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
        """The losses by name, each a scalar with a gradient: a mean over the batch's rows, not yet weighted.

        A batch in which there is nothing to learn from (one row, no row with the columns) gives 0.

        Args:
            model: what gave the outputs; may be called again.
            batch: the rows.
            outputs: of the model for these rows.
        """


class BatchObjective(Objective):
    """An objective that compares rows with one another, so that it is no mean over rows.

    It is computed from `vectors`, which are made of each row by itself. So the rows of all processes are compared, and
    those of all micro-batches of an update (`fusetune.training.updates.grad_cache`): their vectors are concatenated
    first.
    """

    @abc.abstractmethod
    def vectors(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """What is compared and what says how: tensors whose first dimension is the batch's rows."""

    @abc.abstractmethod
    def of_vectors(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses by name from the vectors of any number of rows.

        Args:
            vectors: `vectors` of the rows; those of several processes are as `fusetune.objectives.gather` makes them.
        """

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """See `Objective.forward`."""
        return self.of_vectors(gathered(self.vectors(batch, outputs)))
