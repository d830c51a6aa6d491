"""Balance the losses of several tasks: put them on one scale, and weigh them.

Each loss is divided by the loss of the best constant guess for the train rows, so that 1 means "knows nothing of the
inputs" whatever the kind of target. With ℓ_k the divided loss of task k, the total is

    sum          Σ ℓ_k
    uncertainty  Σ ½ exp(−s_k) ℓ_k + ½ s_k, with s_k learned             Kendall et al. 2018, arXiv 1705.07115
    dwa          Σ λ_k ℓ_k, λ = K softmax(r/2), r_k = L_k(t−1)/L_k(t−2)   Liu et al. 2019, arXiv 1803.10704
    famo         Σ c z_k log ℓ_k, z = softmax(ξ)                          Liu et al. 2023, arXiv 2306.03792
    pcgrad       as sum; the gradients of shared parameters are changed   `fusetune.training.updates.surgery`
    upgrad       as sum; the gradients of shared parameters are changed   `fusetune.training.updates.surgery`

L_k(t) is the mean of ℓ_k in epoch t. A run with one task is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from fusetune.data.examples import Examples
from fusetune.models.family import Family
from fusetune.models.understand import Understand
from fusetune.tasks.base import TargetTask
from fusetune.types import Batch

LEAST_CONSTANT = 0.01
"""A task whose constant guess costs less (one class nearly everywhere) is divided by this."""
MAX_ROWS = 2048
"""The constant guess is fitted on so many evenly spaced labelled rows at most."""
TEMPERATURE = 2.0
"""Of dwa's softmax, as in the paper."""
FAMO_LR, FAMO_DECAY, FAMO_BETAS = 0.025, 1e-3, (0.9, 0.999)
"""Of the logits ξ, learned by Adam: the rate and the decay of the paper."""
FAMO_FLOOR = 1e-3
"""Added to ℓ_k: a task that is solved but for a thousandth of the constant guess's loss stops drawing weight."""


def constant_loss(task: TargetTask, start: Tensor, values: Sequence[Any], weights: np.ndarray) -> float:
    """Return the task's loss at the best constant guess: the logits that, equal for all rows, make it smallest.

    Args:
        task: fitted.
        start: (...) logits of one row to start from.
        values: cells, at least one labelled; evenly spaced ones stand for many.
        weights: (rows,) of the rows.
    """
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_ROWS)).astype(np.int64))
    target = task.encode([values[place] for place in chosen])
    counts = torch.from_numpy(weights[chosen])
    logits = start.detach().float().cpu().clone().requires_grad_()
    solver = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")
    best = math.inf

    def closure() -> Tensor:
        nonlocal best
        solver.zero_grad()
        loss = task.loss(logits.expand(len(chosen), *logits.shape), target, counts)
        loss.backward()  # type: ignore[no-untyped-call]
        if math.isfinite(value := loss.item()):
            best = min(best, value)
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return best


def constant_losses(model: Family, tasks: Mapping[str, TargetTask], train: Examples) -> dict[str, float]:
    """Return `constant_loss` of every task on its labelled train rows; 1 for a task without any."""
    assert isinstance(model, Understand), "tasks with heads are balanced"
    found = {}
    for name, task in tasks.items():
        rows = train.labelled(name)
        values = train.targets[name].take(rows)
        found[name] = constant_loss(task, model.at_zero(name), values, train.weights[rows]) if len(rows) else 1.0
    return found


class Balance(nn.Module):
    """The balance `sum`: every divided loss has the weight 1. Base of the others.

    Attributes:
        names: of the tasks.
        scale: (tasks,) factors of the losses: 1 / the loss of the constant guess.
        figures: by task, the weight of its divided loss in the last forward pass.
    """

    scale: Tensor

    def __init__(self, constants: Mapping[str, float]) -> None:
        """
        Args:
            constants: by task, its loss at the constant guess.
        """
        super().__init__()
        self.names = list(constants)
        scales = [1 / max(value, LEAST_CONSTANT) if math.isfinite(value) else 1.0 for value in constants.values()]
        self.register_buffer("scale", torch.tensor(scales))
        self.figures: dict[str, Tensor] = {}
        self._sums: tuple[Tensor, Tensor] | None = None

    def scales(self) -> dict[str, float]:
        """`scale` by task."""
        return dict(zip(self.names, self.scale.tolist(), strict=True))

    def forward(self, losses: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the balanced losses by task, scalars.

        Args:
            losses: the tasks' own mean losses over the batch's labelled rows, scalars.
            batch: the rows, for how many of them are labelled.
        """
        sums, seen = self.measure(losses, batch)
        if self.training and torch.is_grad_enabled():
            self.note(sums, seen)
        weights = self.weights(sums / seen, seen > 0)
        self.figures = dict(zip(self.names, weights.detach(), strict=True))
        # Task by task, so that no task's gradient reaches another's head, not even as zeros.
        return {
            name: self.part(losses[name] * self.scale[place], weights[place], place)
            for place, name in enumerate(self.names)
        }

    def measure(self, losses: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each divided loss summed over the task's labelled rows, and its denominator: (tasks,) each."""
        seen = torch.stack([batch.targets[name].counts(batch.weights).sum() for name in self.names])
        means = torch.stack([losses[name].detach().float() for name in self.names])
        return means * self.scale * seen, seen

    def part(self, loss: Tensor, weight: Tensor, place: int) -> Tensor:
        """Return a task's part of the total."""
        return loss * weight

    def weights(self, values: Tensor, present: Tensor) -> Tensor:
        """Return the weights of the divided losses, (tasks,).

        Args:
            values: (tasks,) the divided losses; nan where no row is labelled.
            present: (tasks,) bool, whether the batch has a row that is labelled for the task.
        """
        return torch.ones_like(values)

    def note(self, sums: Tensor, seen: Tensor) -> None:
        """Add up the losses of a training pass, as `measure` gives them."""
        before, count = self._sums or (torch.zeros_like(sums), torch.zeros_like(seen))
        self._sums = before + sums, count + seen

    def take(self) -> dict[str, float]:
        """Return each task's mean divided loss since the last call; nan where no row was labelled for it."""
        if self._sums is None:
            return {}
        (total, count), self._sums = self._sums, None
        return dict(zip(self.names, (total / count).tolist(), strict=True))

    def end_epoch(self) -> None:
        """Update the weights at the end of an epoch."""

    def own(self) -> tuple[Tensor, Tensor] | None:
        """Return the state of this process that is in no buffer and no parameter."""
        return self._sums

    def set_own(self, sums: tuple[Tensor, Tensor] | None) -> None:
        """Restore what `own` returned."""
        self._sums = sums


class Uncertainty(Balance):
    """Learned log-variances s_k: part k is ½ exp(−s_k) ℓ_k + ½ s_k, smallest at exp(s_k) = ℓ_k.

    The paper's two forms, for numbers and for classes, differ in where s_k starts; here ℓ_k counts 1 at the start.
    """

    def __init__(self, constants: Mapping[str, float]) -> None:
        super().__init__(constants)
        self.log_variance = nn.Parameter(torch.full((len(self.names),), -math.log(2)))

    def weights(self, values: Tensor, present: Tensor) -> Tensor:
        """Return ½ exp(−s), with a gradient."""
        return 0.5 * torch.exp(-self.log_variance)

    def part(self, loss: Tensor, weight: Tensor, place: int) -> Tensor:
        """Return ½ exp(−s_k) ℓ_k + ½ s_k."""
        return loss * weight + 0.5 * self.log_variance[place]


class DynamicAverage(Balance):
    """λ = K softmax(r/T), r_k = L_k(t−1)/L_k(t−2) of the last two epochs' mean losses; 1 in the first two epochs."""

    factor: Tensor
    total: Tensor
    count: Tensor
    before: Tensor

    def __init__(self, constants: Mapping[str, float]) -> None:
        super().__init__(constants)
        self.register_buffer("factor", torch.ones(len(self.names)))
        self.register_buffer("total", torch.zeros(len(self.names)))
        self.register_buffer("count", torch.zeros(len(self.names)))
        self.register_buffer("before", torch.full((len(self.names),), math.nan))

    def weights(self, values: Tensor, present: Tensor) -> Tensor:
        """Return λ of this epoch."""
        return self.factor

    def note(self, sums: Tensor, seen: Tensor) -> None:
        """Add up the epoch's losses over all processes, as data parallelism copies the first one's buffers to all."""
        super().note(sums, seen)
        both = torch.stack([sums, seen])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(both)
        self.total += both[0]
        self.count += both[1]

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Set the next epoch's λ; a task without a labelled row in one of the two epochs has the ratio 1."""
        mean = self.total / self.count
        if not self.before.isnan().all():
            ratio = mean / self.before
            ratio = torch.where(ratio.isfinite(), ratio, torch.ones_like(ratio))
            self.factor.copy_(len(self.names) * torch.softmax(ratio / TEMPERATURE, 0))
        self.before.copy_(mean)
        self.total.zero_()
        self.count.zero_()


class Famo(Balance):
    """Weights c z_k/ℓ_k with z = softmax(ξ) and 1/c = Σ z_k/ℓ_k: the gradient of c Σ z_k log ℓ_k, c held fixed.

    ξ learns from how much an update lowered each log ℓ_k (`learn`), so that all fall at the same rate. A task without a
    labelled row in a batch takes no part in it: its loss of 0 would take all the weight.
    """

    logits: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, constants: Mapping[str, float]) -> None:
        super().__init__(constants)
        for name in ("logits", "mean", "square"):
            self.register_buffer(name, torch.zeros(len(self.names)))
        self.register_buffer("steps", torch.zeros(()))
        self.begin()

    def begin(self) -> None:
        """Begin an update: `noted`, (2, tasks), adds up what `measure` gives from here on."""
        self.noted = torch.zeros(2, len(self.names), device=self.logits.device)

    def note(self, sums: Tensor, seen: Tensor) -> None:
        """Add up the update's losses, too."""
        super().note(sums, seen)
        self.noted = self.noted + torch.stack([sums, seen])

    def weights(self, values: Tensor, present: Tensor) -> Tensor:
        """Return c z_k/ℓ_k, which sum to 1."""
        share = (self._shares(present) / (values + FAMO_FLOOR)).nan_to_num()
        return share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)

    def _shares(self, present: Tensor) -> Tensor:
        """Return z over the tasks that are present, 0 for the others."""
        return torch.softmax(self.logits.masked_fill(~present, -math.inf), 0).nan_to_num()

    @torch.no_grad()
    def learn(self, before: Tensor, after: Tensor, present: Tensor) -> None:
        """Update ξ from the divided losses of the same rows before and after an update of the weights, (tasks,)."""
        gain = torch.log(before + FAMO_FLOOR) - torch.log(after + FAMO_FLOOR)
        share = self._shares(present)
        gain = torch.where(present & gain.isfinite(), gain, torch.zeros_like(gain))
        gradient = share * (gain - (share * gain).sum()) + FAMO_DECAY * self.logits
        self.steps += 1
        (fast, slow), steps = FAMO_BETAS, float(self.steps)
        self.mean.lerp_(gradient, 1 - fast)
        self.square.mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        size = (self.square / (1 - slow**steps)).sqrt() + 1e-8
        self.logits -= FAMO_LR * self.mean / (1 - fast**steps) / size


BALANCES: dict[str, type[Balance]] = {
    "sum": Balance,
    "uncertainty": Uncertainty,
    "dwa": DynamicAverage,
    "famo": Famo,
    "pcgrad": Balance,
    "upgrad": Balance,
}


def build_balance(name: str, model: Family, tasks: Mapping[str, TargetTask], train: Examples) -> Balance | None:
    """Build the balance of a name; None where there are not several tasks.

    Args:
        name: a key of `BALANCES`.
        model: with the heads of these tasks.
        tasks: fitted, by target.
        train: prepared rows.
    """
    return BALANCES[name](constant_losses(model, tasks, train)) if len(tasks) > 1 else None
