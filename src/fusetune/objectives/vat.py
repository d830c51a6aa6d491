"""Virtual adversarial training: keep predictions stable under small changes of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.models.perturb import Ball, Deltas, RngState, attacked_columns
from fusetune.objectives.base import Objective, weighted_mean
from fusetune.tasks.abilities import Divergent
from fusetune.tasks.required import divergence_of, require
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family
    from fusetune.tasks.base import TargetTask


class VirtualAdversarial(Objective):
    """Keep predictions stable when the input changes a little in the direction that changes them most.

    L = mean over rows of Σ over tasks D(p(x), p(x + δ)), without a gradient through p(x). Here δ = ε u_K, u_{k+1} =
    g / rms(g) with g = ∇_r D(p(x), p(x + r)) at r = ξ u_k, and u_0 is random. D is `Divergent.divergence`: the
    Kullback-Leibler divergence of probabilities, the squared difference of numbers. This is the power method for the
    dominant eigenvector of D's Hessian at r = 0, where D and its gradient are 0. Every distinct cell has its own δ, of
    a size relative to the input; `fusetune.models.perturb` says where δ is added. Dropout masks are the same for x and
    x + δ.

    Args:
        model: see `Objective`.
        tasks: see `Objective`; at least one.
        weight: factor of the loss in the total, above 0.
        epsilon: ε, the size of δ relative to the size of what it is added to, above 0.
        num_steps: steps of the power method; 0 takes a random direction.
        xi: ξ, the relative size at which the gradients are computed, above 0.
        columns: the columns to change. By default those of text, images and sounds, or all if there are none.

    Raises:
        ConfigError: a setting is out of range, there is no task, a task has no divergence, or the model has no such
            column.

    Inputs: the batch; rows need no target. It costs num_steps + 2 more forward and num_steps + 1 more backward passes.

    Requires: a task with a divergence.

    Relations: in `trainer.adversarial`, δ increases the loss, which needs targets; here it changes the prediction.
    `rdrop` compares two dropout masks instead of two inputs.

    Example:
        >>> from fusetune.testing.objectives import make_parts
        >>> model, tasks, examples = make_parts()
        >>> batch = examples.batch(range(12))
        >>> losses = VirtualAdversarial(model, tasks, epsilon=0.1)(model, batch, model(batch))
        >>> list(losses), bool(losses["vat"] >= 0)
        (['vat'], True)

    Reference: Miyato et al. 2018, "Virtual Adversarial Training" (arXiv 1704.03976), algorithm 1 and equation 11.
    """

    name = "vat"
    needs_target = False
    perturbs_inputs = True

    def __init__(
        self,
        model: Family,
        tasks: Mapping[str, TargetTask],
        *,
        weight: float = 1.0,
        epsilon: float = 0.02,
        num_steps: int = 1,
        xi: float = 0.01,
        columns: Sequence[str] | str = (),
    ) -> None:
        super().__init__(model, tasks, weight=weight)
        if not tasks:
            raise ConfigError("the objective vat compares predictions, and nothing is predicted", do="name a target")
        for option, value, least in (("epsilon", epsilon, "above 0"), ("xi", xi, "above 0")):
            if not value > 0:
                raise ConfigError(f"objectives.vat.{option} is out of range", expected=least, came=str(value))
        if num_steps < 0:
            raise ConfigError("objectives.vat.num_steps is out of range", expected="0 or more", came=str(num_steps))
        self.tasks = require(tasks, Divergent, where="objectives.vat")  # type: ignore[type-abstract]
        self.epsilon, self.num_steps, self.xi = epsilon, num_steps, xi
        self.columns = attacked_columns(
            model, [columns] if isinstance(columns, str) else columns, where="objectives.vat"
        )

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the mean divergence over the batch's rows, with or without targets."""
        ball = Ball(model, batch, self.columns)  # type: ignore[arg-type]
        if not ball.sites:
            return {self.name: torch.stack([logits.sum() for logits in outputs.logits.values()]).sum() * 0}
        directions = self._random(ball)
        rng_state = RngState(batch.rows.device)
        # Not under no_grad: autocast would cache the weights' casts without a graph, and later passes would reuse them.
        clean = {name: logits.detach() for name, logits in model(batch).logits.items()}
        for _ in range(self.num_steps):
            near = {column: (self.xi * delta).detach().requires_grad_() for column, delta in directions.items()}
            apart = (self._divergence(model, ball, near, clean, rng_state) * batch.weights).sum()
            grads = torch.autograd.grad(apart, list(near.values()), allow_unused=True)
            directions = ball.directions(
                {
                    column: torch.zeros_like(delta) if grad is None else grad
                    for (column, delta), grad in zip(near.items(), grads, strict=True)
                }
            )
        perturbation = {column: self.epsilon * delta.detach() for column, delta in directions.items()}
        return {self.name: weighted_mean(self._divergence(model, ball, perturbation, clean, rng_state), batch.weights)}

    def _random(self, ball: Ball) -> Deltas:
        """Return a random direction for each distinct cell of the columns."""
        return ball.directions({column: torch.randn_like(zero) for column, zero in ball.zeros().items()})

    def _divergence(
        self, model: nn.Module, ball: Ball, deltas: Deltas, clean: Mapping[str, Tensor], rng_state: RngState
    ) -> Tensor:
        """Return the divergence from the clean predictions, (batch,), summed over tasks.

        Args:
            model: the model.
            ball: the batch and its columns' sites.
            deltas: the change of each column.
            clean: by task, the logits without a change, (batch, ...).
            rng_state: restored first, so that dropout draws the same masks.
        """
        rng_state.restore()
        outputs = model(ball.perturbed(deltas))
        return divergence_of(self.tasks, clean, outputs.logits, outputs.columns)
