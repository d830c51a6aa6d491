"""Adversarial training: gradients at inputs that are perturbed to increase the loss.

See `fusetune.models.perturb` for where a perturbation δ is added and how its size is measured; ε bounds the size. Each
distinct cell has its own ball. With g = ∇_δ of the update's total loss L(δ):

    fgm     L(0) and L(ε g/rms(g)), g taken at 0                          Miyato et al. 2017, arXiv 1605.07725
    pgd     L(0) and L(δ_K), δ_t = Π_ε(δ_{t-1} + α g_{t-1}/rms(g_{t-1}))  Madry et al. 2018, arXiv 1706.06083
    freelb  (1/K) Σ_{t<K} L(δ_t), each with its gradients in the weights  Zhu et al. 2020, arXiv 1909.11764

fgm and pgd minimise (1 - weight) L(0) + weight L(δ): weight ½ gives the mean of both losses, 1 Madry's objective. The
clean pass yields the first g, so fgm costs two forward and two backward passes. pgd adds K forward passes, and backward
passes that stop at δ. All passes of a micro-batch use the same dropout masks: otherwise δ would be fitted to another
network than the next pass uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fusetune.config.adversarial import AdversarialConfig
from fusetune.config.attack import AttackConfig
from fusetune.models.perturb import Ball, Deltas, RngState, attacked_columns
from fusetune.training.updates.update import Shares, accumulate_losses, loss_shares, scale_losses
from fusetune.types import Batch

if TYPE_CHECKING:
    from fusetune.models.family import Family

STEPS = 3
"""Default number of steps of pgd and freelb."""


@dataclass(frozen=True)
class Ascent:
    """Size and steps of the gradient ascent of a perturbation.

    Attributes:
        epsilon: largest size of the perturbation, above 0.
        steps: number of ascent steps.
        step_size: size of each step.
    """

    epsilon: float
    steps: int
    step_size: float

    @classmethod
    def of(cls, settings: AttackConfig) -> Ascent:
        """Read the settings: fgm takes one step of size epsilon; others default to 2.5 epsilon / steps."""
        if settings.name == "fgm":
            return cls(settings.epsilon, 1, settings.epsilon)
        steps = settings.steps or STEPS
        return cls(settings.epsilon, steps, settings.step_size or 2.5 * settings.epsilon / steps)

    def climb(self, ball: Ball, deltas: Deltas, gradients: Sequence[Tensor | None]) -> Deltas:
        """Take one step; a column without a gradient is not moved."""
        filled = {
            column: torch.zeros_like(delta) if gradient is None else gradient
            for (column, delta), gradient in zip(deltas.items(), gradients, strict=True)
        }
        return ball.climb(deltas, filled, step=self.step_size, size=self.epsilon)


class Adversarial:
    """Computes an update's gradients at perturbed inputs; a `Gradients`, see `fusetune.training.updates.update`.

    Args:
        model: the learner's model.
        settings: the method, its size and steps.

    Raises:
        ConfigError: the settings name a column that the model lacks.
    """

    def __init__(self, model: Family, settings: AdversarialConfig) -> None:
        self.model, self.is_freelb, self.weight = model, settings.name == "freelb", settings.weight
        self.ascent = Ascent.of(settings)
        self.columns = attacked_columns(model, settings.columns, where="trainer.adversarial")
        self.random_start = self.is_freelb if settings.random_start is None else settings.random_start

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """See `Gradients`. Losses at perturbed inputs are "adversarial/NAME"; those of freelb keep their names."""
        totals: dict[str, Tensor] = {}
        counts = loss_shares(learner, micro_batches, accelerator)
        for position, (batch, shares) in enumerate(zip(micro_batches, counts, strict=True)):
            ball = Ball(self.model, batch.to(accelerator.device), self.columns)
            deltas = ball.uniform(self.ascent.epsilon) if self.random_start else ball.zeros()
            passes = _Passes(learner, shares, accelerator, last=position == len(micro_batches) - 1)
            if not ball.sites:
                passes.train(ball.batch, 1.0, last_pass=True)
            elif self.is_freelb:
                self._freelb(ball, deltas, passes)
            else:
                self._ascend(ball, deltas, passes)
            accumulate_losses(totals, passes.losses)
        return totals

    def _ascend(self, ball: Ball, deltas: Deltas, passes: _Passes) -> None:
        """Add (1 - weight) times the clean gradients and weight times those at the end of the ascent."""
        ascent, steps = self.ascent, self.ascent.steps
        if self.weight < 1:
            start = ball.zeros()
            passes.train(ball.perturbed(start), 1 - self.weight)
            if not self.random_start:
                deltas, steps = ascent.climb(ball, deltas, [delta.grad for delta in start.values()]), steps - 1
        for _ in range(steps):
            deltas = ascent.climb(ball, deltas, passes.input_gradients(ball.perturbed(deltas), deltas))
        detached = {column: delta.detach() for column, delta in deltas.items()}
        passes.train(ball.perturbed(detached), self.weight, prefix="adversarial/", last_pass=True)

    def _freelb(self, ball: Ball, deltas: Deltas, passes: _Passes) -> None:
        """Add the mean of the gradients over the steps of the ascent (FreeLB)."""
        for step in range(self.ascent.steps):
            last_pass = step == self.ascent.steps - 1
            passes.train(ball.perturbed(deltas), 1 / self.ascent.steps, last_pass=last_pass)
            if not last_pass:
                deltas = self.ascent.climb(ball, deltas, [delta.grad for delta in deltas.values()])


class _Passes:
    """Passes over one micro-batch, all with the same RNG state.

    Attributes:
        losses: the losses minimised so far, by name.
    """

    def __init__(self, learner: nn.Module, shares: Shares, accelerator: Accelerator, *, last: bool) -> None:
        self.learner, self.shares, self.accelerator, self.last = learner, shares, accelerator, last
        self.losses: dict[str, Tensor] = {}
        self.rng_state = RngState(accelerator.device)

    def train(self, batch: Batch, factor: float, *, prefix: str = "", last_pass: bool = False) -> None:
        """Add the gradients of the loss times a factor to the weights and to the batch's perturbations.

        Args:
            batch: the micro-batch, possibly perturbed.
            factor: the loss's weight.
            prefix: of the losses' names.
            last_pass: whether this is the micro-batch's last pass; in the last micro-batch it synchronises processes.
        """
        learner, accelerator = self.learner, self.accelerator
        self.rng_state.restore()
        with nullcontext() if last_pass and self.last else accelerator.no_sync(learner), accelerator.autocast():
            _, parts, _ = learner(batch)
            parts = {f"{prefix}{name}": part * factor for name, part in scale_losses(parts, self.shares).items()}
            accelerator.backward(sum(parts.values(), batch.zero))
        accumulate_losses(self.losses, parts)

    def input_gradients(self, batch: Batch, deltas: Deltas) -> tuple[Tensor | None, ...]:
        """Return the gradients of the loss at the perturbations only."""
        self.rng_state.restore()
        with self.accelerator.no_sync(self.learner), self.accelerator.autocast():
            _, parts, _ = self.learner(batch)
            loss: Tensor = sum(scale_losses(parts, self.shares).values(), batch.zero)
            if self.accelerator.scaler is not None:  # small float16 gradients would underflow
                loss = self.accelerator.scaler.scale(loss)
            return torch.autograd.grad(loss, list(deltas.values()), allow_unused=True)
