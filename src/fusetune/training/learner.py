"""Model and objectives in one module, which data parallelism wraps."""

from __future__ import annotations

from torch import Tensor, nn

from fusetune.objectives.total import RepresentationGradients, Total
from fusetune.types import Batch, Outputs, as_numbers


class Learner(nn.Module):
    """A model and its objective as one `nn.Module`, so that the objective's own parameters are trained too.

    Args:
        model: maps a `Batch` to `Outputs`.
        objective: the total loss: task losses and weighted objectives.
    """

    def __init__(self, model: nn.Module, objective: Total) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, batch: Batch, gradients: RepresentationGradients | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Outputs]:
        """Return the total loss, its parts by name (all scalars), and the model's outputs.

        Args:
            batch: on the model's device.
            gradients: see `Total.forward`.
        """
        outputs: Outputs = self.model(batch)
        parts: dict[str, Tensor] = self.objective(self.model, batch, outputs, gradients)
        return sum(parts.values(), batch.zero), parts, outputs

    def figures(self) -> dict[str, float]:
        """Return the values that the objectives and the balance log besides their losses, as of the last batch."""
        return as_numbers(self.objective.figures())
