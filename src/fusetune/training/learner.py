"""Model and objectives in one module: what is trained, and what data parallelism wraps."""

from __future__ import annotations

from torch import Tensor, nn

from fusetune.objectives.total import Pulls, Total
from fusetune.types import Batch, Outputs, as_numbers


class Learner(nn.Module):
    """A model with what is minimised, so that an objective's own parameters are trained too."""

    def __init__(self, model: nn.Module, objective: Total) -> None:
        """
        Args:
            model: from a batch to outputs.
            objective: what is minimised.
        """
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, pulls: Pulls | None = None) -> tuple[Tensor, dict[str, Tensor], Outputs]:
        """The total loss, its parts by name, and the model's outputs; for `pulls` see `Total.forward`."""
        outputs: Outputs = self.model(batch)
        parts: dict[str, Tensor] = self.objective(self.model, batch, outputs, pulls)
        return sum(parts.values(), batch.zero), parts, outputs

    def figures(self) -> dict[str, float]:
        """What the objectives and the balance have to log besides their losses, as of the last batch."""
        return as_numbers(self.objective.figures())
