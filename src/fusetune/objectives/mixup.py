"""Mixup in feature space: train on interpolated vectors and targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.objectives.base import Objective, labelled_weights
from fusetune.tasks.base import TargetTask
from fusetune.tasks.required import require_row_answers
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family


class Mixup(Objective):
    """Train the heads on interpolations of two rows' vectors, with the targets interpolated alike.

    L = λ ℓ(f(λ z_i + (1 − λ) z_j), y_i) + (1 − λ) ℓ(f(λ z_i + (1 − λ) z_j), y_j), with λ ~ Beta(α, α) drawn for each
    batch and j a random permutation of its rows. z_i, (dim,), is row i's fused vector, which the head f reads; the
    logits of the linear part, which reads the columns' features, are interpolated with the same λ. A pair counts for a
    task if both rows have its target and a weight above 0.

    Args:
        model: see `Objective`.
        tasks: see `Objective`.
        weight: factor of the loss in the total, beside the task's own loss, above 0.
        alpha: α of the Beta distribution, above 0. Near 0, λ is close to 0 or 1; at 1 it is uniform.

    Raises:
        ConfigError: there is no task, or a setting is out of range.

    Inputs: the fused vectors, (batch, dim), and the targets. Only the heads run again, so it is cheap.

    Requires: a task.

    Relations: the papers interpolate raw inputs or hidden layers; here it is the last hidden layer, where columns of
    any kind have become one vector.

    Example:
        >>> from fusetune.testing.objectives import make_parts
        >>> model, tasks, examples = make_parts()
        >>> batch = examples.batch(range(12))
        >>> losses = Mixup(model, tasks, alpha=0.4)(model, batch, model(batch))
        >>> list(losses), losses["mixup"].shape
        (['mixup'], torch.Size([]))

    Reference: Zhang et al. 2018, "mixup" (arXiv 1710.09412); Verma et al. 2019, "Manifold Mixup" (arXiv 1806.05236).
    """

    name = "mixup"

    def __init__(
        self, model: Family, tasks: Mapping[str, TargetTask], *, weight: float = 1.0, alpha: float = 1.0
    ) -> None:
        super().__init__(model, tasks, weight=weight)
        if not tasks:
            raise ConfigError("the objective mixup mixes targets, and nothing is predicted", do="name a target")
        require_row_answers(tasks, where="objectives.mixup")
        if not alpha > 0:
            raise ConfigError("objectives.mixup.alpha is out of range", expected="above 0", came=str(alpha))
        self.tasks, self.alpha = dict(tasks), alpha

    def counts(self, batch: Batch) -> Tensor:
        """Count rows that have a target."""
        return labelled_weights(batch)

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the mean loss over pairs of rows, summed over tasks."""
        fused = outputs.fused
        order = torch.randperm(len(batch)).to(fused.device)
        share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        pooled = share * fused + (1 - share) * fused[order]
        total = fused.sum() * 0
        counts = batch.weights > 0
        for name, head in zip(model.tasks, model.heads, strict=True):  # type: ignore[arg-type]
            task, target, logits = self.tasks[name], batch.targets[name], outputs.logits[name]
            linear = logits - head(fused)
            mixed = head(pooled) + share * linear + (1 - share) * linear[order]
            other = target.take(order)
            for part, pair, weights in (
                (share, target.where(other.labelled & counts[order]), batch.weights),
                (1 - share, other.where(target.labelled & counts), batch.weights[order]),
            ):
                total = total + part * task.loss(mixed, pair, weights)
        return {self.name: total}
