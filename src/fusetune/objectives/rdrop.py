"""R-Drop: make predictions agree between two dropout masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.objectives.base import Objective, weighted_mean
from fusetune.tasks.abilities import Divergent
from fusetune.tasks.base import TargetTask
from fusetune.tasks.required import divergence_of, require
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class RDrop(Objective):
    """Make predictions agree between two dropout masks.

    L = mean over rows of ½ (KL(p‖q) + KL(q‖p)), where p and q are the predictions of two forward passes with different
    dropout masks. For numbers it is the squared difference on the learned scale (`Divergent.divergence`). Several tasks
    are added up. The paper averages the task's loss over both passes; here it is the first pass's, which has the same
    expectation.

    Args:
        model: see `Objective`.
        tasks: see `Objective`.
        weight: α, the factor of the loss in the total, above 0; the paper uses 1 to 5.

    Raises:
        ConfigError: there is no task, a task has no divergence, or the weight is not above 0.

    Inputs: the model's logits; rows need no target. It costs one more forward pass.

    Requires: a task with a divergence, and dropout somewhere in the model.

    Relations: `vat` changes the input instead of the dropout mask.

    Example:
        >>> from fusetune.testing.objectives import make_parts
        >>> model, tasks, examples = make_parts(dropout=0.1)
        >>> batch = examples.batch(range(12))
        >>> losses = RDrop(model, tasks)(model.train(), batch, model(batch))
        >>> list(losses), bool(losses["rdrop"] > 0)
        (['rdrop'], True)

    Reference: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks" (arXiv 2106.14448); α is `weight`.
    """

    name = "rdrop"
    needs_target = False

    def __init__(self, model: Family, tasks: Mapping[str, TargetTask], *, weight: float = 1.0) -> None:
        super().__init__(model, tasks, weight=weight)
        if not tasks:
            raise ConfigError("the objective rdrop compares predictions, and nothing is predicted", do="name a target")
        self.tasks = require(tasks, Divergent, where="objectives.rdrop")  # type: ignore[type-abstract]
        drops = [m for m in model.modules() if isinstance(m, DROPOUTS) and m.p > 0]
        if not drops and not any(getattr(module, "modality_dropout", 0) for module in model.modules()):
            self.warnings.append("objectives.rdrop: the model has no dropout, so both passes predict alike")

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the mean divergence over the batch's rows, with or without targets."""
        first, second = outputs.logits, model(batch).logits
        apart = divergence_of(self.tasks, first, second, outputs.columns)
        apart = apart + divergence_of(self.tasks, second, first, outputs.columns)
        return {self.name: weighted_mean(apart, batch.weights) / 2}
