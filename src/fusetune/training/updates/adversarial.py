"""Adversarial training: gradients at inputs that are perturbed so that the loss grows.

See `fusetune.models.perturb` for where a perturbation δ is added and for its size, to which ε is the bound. Each
distinct cell has a ball of its own. With g = ∇_δ of the update's total loss L(δ):

    fgm     L(0) and L(ε g/rms(g)), g taken at 0                          Miyato et al. 2017, arXiv 1605.07725
    pgd     L(0) and L(δ_K), δ_t = Π_ε(δ_{t-1} + α g_{t-1}/rms(g_{t-1}))  Madry et al. 2018, arXiv 1706.06083
    freelb  (1/K) Σ_{t<K} L(δ_t), each with its gradients in the weights  Zhu et al. 2020, arXiv 1909.11764

fgm and pgd minimise (1 - weight) L(0) + weight L(δ): at weight ½ the sum of both up to a factor that leaves the
learning rate its meaning, at 1 Madry's. The clean pass gives the first g, so fgm costs two forward and two backward
passes, pgd K more forward passes and backward passes that stop at δ. Dropout draws the same masks in all passes of a
micro-batch: else δ would be fitted to a network that the next pass does not meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fusetune.config.sections import AdversarialConfig, AttackConfig
from fusetune.models.perturb import Ball, Deltas, RngState, attacked_columns
from fusetune.training.updates.update import Shares, add_up, loss_shares, scaled
from fusetune.types import Batch

if TYPE_CHECKING:
    from fusetune.models.family import Family

STEPS = 3
"""Steps of pgd and freelb where none are given."""


@dataclass(frozen=True)
class Ascent:
    """How far and in which steps a perturbation climbs.

    Attributes:
        epsilon: its largest size.
        steps: gradients that are followed.
        step_size: of each.
    """

    epsilon: float
    steps: int
    step_size: float

    @classmethod
    def of(cls, settings: AttackConfig) -> Ascent:
        """As the settings say: fgm is one step of size epsilon, others are 2.5 · epsilon / steps where not given."""
        if settings.name == "fgm":
            return cls(settings.epsilon, 1, settings.epsilon)
        steps = settings.steps or STEPS
        return cls(settings.epsilon, steps, settings.step_size or 2.5 * settings.epsilon / steps)

    def climb(self, ball: Ball, deltas: Deltas, gradients: Sequence[Tensor | None]) -> Deltas:
        """One step; a column that the loss does not depend on stays where it is."""
        known = {
            column: torch.zeros_like(delta) if gradient is None else gradient
            for (column, delta), gradient in zip(deltas.items(), gradients, strict=True)
        }
        return ball.climb(deltas, known, step=self.step_size, size=self.epsilon)


class Adversarial:
    """Computes an update's gradients at perturbed inputs; a `Gradients`, see `fusetune.training.updates.update`."""

    def __init__(self, model: Family, settings: AdversarialConfig) -> None:
        """
        Args:
            model: what the learner wraps.
            settings: the method, its size and steps.

        Raises:
            ConfigError: the settings name a column that the model has not.
        """
        self.model, self.free, self.weight = model, settings.name == "freelb", settings.weight
        self.ascent = Ascent.of(settings)
        self.columns = attacked_columns(model, settings.columns, where="trainer.adversarial")
        self.random_start = self.free if settings.random_start is None else settings.random_start

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """See `Gradients`; the losses at perturbed inputs are under "adversarial/NAME", freelb's under their names."""
        totals: dict[str, Tensor] = {}
        counts = loss_shares(micro_batches, accelerator)
        for position, (batch, shares) in enumerate(zip(micro_batches, counts, strict=True)):
            ball = Ball(self.model, batch.to(accelerator.device), self.columns)
            deltas = ball.uniform(self.ascent.epsilon) if self.random_start else ball.zeros()
            passes = _Passes(learner, shares, accelerator, last=position == len(micro_batches) - 1)
            if not ball.sites:
                passes.train(ball.batch, 1.0, ends=True)
            elif self.free:
                self._free(ball, deltas, passes)
            else:
                self._ascend(ball, deltas, passes)
            add_up(totals, passes.losses)
        return totals

    def _ascend(self, ball: Ball, deltas: Deltas, passes: _Passes) -> None:
        """Clean gradients times (1 - weight), and those at the end of the ascent times weight."""
        ascent, steps = self.ascent, self.ascent.steps
        if self.weight < 1:
            start = ball.zeros()
            passes.train(ball.perturbed(start), 1 - self.weight)
            if not self.random_start:
                deltas, steps = ascent.climb(ball, deltas, [delta.grad for delta in start.values()]), steps - 1
        for _ in range(steps):
            deltas = ascent.climb(ball, deltas, passes.at(ball.perturbed(deltas), deltas))
        still = {column: delta.detach() for column, delta in deltas.items()}
        passes.train(ball.perturbed(still), self.weight, prefix="adversarial/", ends=True)

    def _free(self, ball: Ball, deltas: Deltas, passes: _Passes) -> None:
        """The mean of the gradients on the way up."""
        for step in range(self.ascent.steps):
            ends = step == self.ascent.steps - 1
            passes.train(ball.perturbed(deltas), 1 / self.ascent.steps, ends=ends)
            if not ends:
                deltas = self.ascent.climb(ball, deltas, [delta.grad for delta in deltas.values()])


class _Passes:
    """Passes over one micro-batch, all with the same draws.

    Attributes:
        losses: what was minimised so far, by name.
    """

    def __init__(self, learner: nn.Module, shares: Shares, accelerator: Accelerator, *, last: bool) -> None:
        self.learner, self.shares, self.accelerator, self.last = learner, shares, accelerator, last
        self.losses: dict[str, Tensor] = {}
        self.rng_state = RngState(accelerator.device)

    def train(self, batch: Batch, factor: float, *, prefix: str = "", ends: bool = False) -> None:
        """Add the gradients of the loss times a factor to the weights', and to those of the batch's perturbations.

        Args:
            batch: perhaps perturbed.
            factor: what the loss counts.
            prefix: of the losses' names.
            ends: whether it is the micro-batch's last pass: the update's last one brings the processes together.
        """
        learner, accelerator = self.learner, self.accelerator
        self.rng_state.restore()
        with nullcontext() if ends and self.last else accelerator.no_sync(learner), accelerator.autocast():
            _, parts, _ = learner(batch)
            parts = {f"{prefix}{name}": part * factor for name, part in scaled(parts, self.shares).items()}
            accelerator.backward(sum(parts.values(), batch.zero))
        add_up(self.losses, parts)

    def at(self, batch: Batch, deltas: Deltas) -> tuple[Tensor | None, ...]:
        """The gradients of the loss at the perturbations alone."""
        self.rng_state.restore()
        with self.accelerator.no_sync(self.learner), self.accelerator.autocast():
            _, parts, _ = self.learner(batch)
            loss: Tensor = sum(scaled(parts, self.shares).values(), batch.zero)
            if self.accelerator.scaler is not None:  # float16 gradients would vanish
                loss = self.accelerator.scaler.scale(loss)
            return torch.autograd.grad(loss, list(deltas.values()), allow_unused=True)
