"""Balance the losses of several tasks: bring them to one scale, and weight them.

Each loss is divided by the loss of the best constant guess on the train rows, so that 1 means "no better than ignoring
the inputs" for every kind of target. Legend: ℓ_k = the normalised loss of task k, K = number of tasks,
L_k(t) = the mean of ℓ_k in epoch t. The total is

    sum          Σ ℓ_k
    uncertainty  Σ ½ exp(−s_k) ℓ_k + ½ s_k, with s_k learned             Kendall et al. 2018, arXiv 1705.07115
    dwa          Σ λ_k ℓ_k, λ = K softmax(r/2), r_k = L_k(t−1)/L_k(t−2)   Liu et al. 2019, arXiv 1803.10704
    famo         Σ c z_k log ℓ_k, z = softmax(ξ)                          Liu et al. 2023, arXiv 2306.03792
    pcgrad       as sum; the gradients of shared parameters are changed   `fusetune.training.updates.surgery`
    upgrad       as sum; the gradients of shared parameters are changed   `fusetune.training.updates.surgery`

A run with a single task is not balanced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, distributed, nn

from fusetune.data.examples import Examples
from fusetune.models.family import Family
from fusetune.models.understand import Understand
from fusetune.tasks.base import TargetTask
from fusetune.tasks.token_head import with_zero_rows
from fusetune.types import Batch, Target

MIN_CONSTANT = 0.01
"""Lower bound of the divisor, for targets that are nearly constant."""
MAX_ROWS = 2048
"""The constant guess is fitted on at most this many evenly spaced labelled rows."""
TEMPERATURE = 2.0
"""Temperature of the softmax in `dwa`, as in the paper."""
FAMO_LR, FAMO_DECAY, FAMO_BETAS = 0.025, 1e-3, (0.9, 0.999)
"""Adam's settings for the logits ξ; learning rate and weight decay are the paper's."""
FAMO_FLOOR = 1e-3
"""Added to ℓ_k before the logarithm, so that a task whose loss is nearly 0 stops drawing weight."""


def constant_loss(task: TargetTask, start: Tensor, target: Target, weights: np.ndarray) -> float:
    """Return the smallest loss that the task can reach with the same logits for every row, found by L-BFGS.

    Args:
        task: fitted.
        start: (...) logits of one row, or of one token, the starting point.
        target: encoded, at least one row labelled.
        weights: (rows,) row weights.
    """
    counts = torch.from_numpy(weights)
    logits = start.detach().float().cpu().clone().requires_grad_()
    solver = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")
    best = math.inf

    def closure() -> Tensor:
        nonlocal best
        solver.zero_grad()
        shape = target.values.shape[:2] if task.reads is not None else (len(weights),)
        every = logits.expand(*shape, *logits.shape)
        loss = task.loss(with_zero_rows(every, task.num_shared), target, counts)
        loss.backward()  # type: ignore[no-untyped-call]
        if math.isfinite(value := loss.item()):
            best = min(best, value)
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return best


def constant_losses(model: Family, tasks: Mapping[str, TargetTask], train: Examples) -> dict[str, float]:
    """Return `constant_loss` of every task on its labelled train rows; 1 for a task without any."""
    assert isinstance(model, Understand), "only tasks with heads are balanced"
    losses: dict[str, float] = {}
    for name, task in tasks.items():
        rows = train.labelled(name)
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_ROWS)).astype(np.int64))]
        if len(rows):
            target, weights = train.encode(name, chosen), train.weights[chosen]
            losses[name] = constant_loss(task, model.at_zero(name), target, weights)
        else:
            losses[name] = 1.0
    return losses


class Balance(nn.Module):
    """Give every normalised loss the weight 1: the balance `sum`, and the base class of the others.

    Args:
        constants: by task, the loss of its best constant guess, from `constant_loss`.

    Attributes:
        names: the tasks' names, in the order of all (tasks,) tensors.
        scale: (tasks,) 1 / the loss of the constant guess.
        figures: by task, the weight of its normalised loss in the last forward pass.
    """

    scale: Tensor

    def __init__(self, constants: Mapping[str, float]) -> None:
        super().__init__()
        self.names = list(constants)
        scales = [1 / max(value, MIN_CONSTANT) if math.isfinite(value) else 1.0 for value in constants.values()]
        self.register_buffer("scale", torch.tensor(scales))
        self.figures: dict[str, Tensor] = {}
        self._sums: tuple[Tensor, Tensor] | None = None

    def scales(self) -> dict[str, float]:
        """Return `scale` by task."""
        return dict(zip(self.names, self.scale.tolist(), strict=True))

    def forward(self, losses: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the weighted, normalised losses by task, scalars. In training, also accumulate them.

        Args:
            losses: by task, the mean loss over the batch's labelled rows, a scalar.
            batch: the rows, whose targets tell how many are labelled.
        """
        sums, counts = self.measure(losses, batch)
        if self.training and torch.is_grad_enabled():
            self.accumulate(sums, counts)
        weights = self.weights(sums / counts, counts > 0)
        self.figures = dict(zip(self.names, weights.detach(), strict=True))
        # Not as one vector: its backward pass would give every head zeros from the other tasks' losses.
        return {
            name: self.weighted_loss(losses[name] * self.scale[index], weights[index], index)
            for index, name in enumerate(self.names)
        }

    def measure(self, losses: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the sum of each normalised loss over the labelled rows, and its denominator, (tasks,) each."""
        counts = torch.stack([batch.targets[name].counts(batch.weights).sum() for name in self.names])
        means = torch.stack([losses[name].detach().float() for name in self.names])
        return means * self.scale * counts, counts

    def weighted_loss(self, loss: Tensor, weight: Tensor, index: int) -> Tensor:
        """Return a task's term of the total, a scalar.

        Args:
            loss: the normalised loss, a scalar.
            weight: from `weights`, a scalar.
            index: of the task in `names`.
        """
        return loss * weight

    def weights(self, values: Tensor, present: Tensor) -> Tensor:
        """Return the weights of the normalised losses, (tasks,).

        Args:
            values: (tasks,) normalised losses; NaN where no row is labelled.
            present: (tasks,) bool, True if the batch has a labelled row of the task.
        """
        return torch.ones_like(values)

    def accumulate(self, sums: Tensor, counts: Tensor) -> None:
        """Add the losses of a training pass, as returned by `measure`, to the running sums."""
        before, count = self._sums or (torch.zeros_like(sums), torch.zeros_like(counts))
        self._sums = before + sums, count + counts

    def pop_means(self) -> dict[str, float]:
        """Return each task's mean normalised loss since the last call, and start again; NaN if no row was labelled."""
        if self._sums is None:
            return {}
        (total, count), self._sums = self._sums, None
        return dict(zip(self.names, (total / count).tolist(), strict=True))

    def end_epoch(self) -> None:
        """Update the weights at the end of an epoch."""

    def process_state(self) -> tuple[Tensor, Tensor] | None:
        """Return this process's running sums, which are not in the state dict."""
        return self._sums

    def load_process_state(self, sums: tuple[Tensor, Tensor] | None) -> None:
        """Restore what `process_state` returned."""
        self._sums = sums


class Uncertainty(Balance):
    """Weight each task by a learned log-variance s_k: its term is ½ exp(−s_k) ℓ_k + ½ s_k, smallest at exp(s_k) = ℓ_k.

    s_k starts at −ln 2, so that ℓ_k has the weight 1. The paper's forms for numbers and for classes differ by a factor
    of 2, which is a shift of s_k.

    Reference: Kendall et al. 2018 (arXiv 1705.07115).
    """

    def __init__(self, constants: Mapping[str, float]) -> None:
        super().__init__(constants)
        self.log_variance = nn.Parameter(torch.full((len(self.names),), -math.log(2)))

    def weights(self, values: Tensor, present: Tensor) -> Tensor:
        """Return ½ exp(−s_k), (tasks,), with a gradient."""
        return 0.5 * torch.exp(-self.log_variance)

    def weighted_loss(self, loss: Tensor, weight: Tensor, index: int) -> Tensor:
        """Return ½ exp(−s_k) ℓ_k + ½ s_k."""
        return loss * weight + 0.5 * self.log_variance[index]


class DynamicAverage(Balance):
    """Give more weight to tasks whose loss falls slowly (dynamic weight averaging).

    λ = K softmax(r/T), r_k = L_k(t−1)/L_k(t−2) with the mean losses of the last two epochs; λ = 1 in the first two.

    Reference: Liu et al. 2019 (arXiv 1803.10704).
    """

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
        """Return this epoch's λ, (tasks,)."""
        return self.factor

    def accumulate(self, sums: Tensor, counts: Tensor) -> None:
        """Also add up the epoch's losses over all processes, because DDP broadcasts the first one's buffers."""
        super().accumulate(sums, counts)
        both = torch.stack([sums, counts])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(both)
        self.total += both[0]
        self.count += both[1]

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Set the next epoch's λ. A task without labelled rows in either epoch has the ratio 1."""
        mean = self.total / self.count
        if not self.before.isnan().all():
            ratio = mean / self.before
            ratio = torch.where(ratio.isfinite(), ratio, torch.ones_like(ratio))
            self.factor.copy_(len(self.names) * torch.softmax(ratio / TEMPERATURE, 0))
        self.before.copy_(mean)
        self.total.zero_()
        self.count.zero_()


class Famo(Balance):
    """Make all tasks' log losses fall at the same rate (fast adaptive multitask optimisation).

    The weights are c z_k/ℓ_k with z = softmax(ξ) and 1/c = Σ z_k/ℓ_k, which is the gradient of c Σ z_k log ℓ_k with c
    held fixed. `update_logits` trains ξ on how much an update lowered each log ℓ_k. A task without labelled rows in a
    batch is left out of it: its loss of 0 would take all the weight.

    Reference: Liu et al. 2023 (arXiv 2306.03792).
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
        self.reset()

    def reset(self) -> None:
        """Start an update: clear `update_sums`, (2, tasks), to which `accumulate` adds what `measure` returns."""
        self.update_sums = torch.zeros(2, len(self.names), device=self.logits.device)

    def accumulate(self, sums: Tensor, counts: Tensor) -> None:
        """Also add up the update's losses."""
        super().accumulate(sums, counts)
        self.update_sums = self.update_sums + torch.stack([sums, counts])

    def weights(self, values: Tensor, present: Tensor) -> Tensor:
        """Return c z_k/ℓ_k, (tasks,), which sum to 1."""
        share = (self._shares(present) / (values + FAMO_FLOOR)).nan_to_num()
        return share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)

    def _shares(self, present: Tensor) -> Tensor:
        """Return z, (tasks,): the softmax over the tasks that are present, 0 for the others."""
        return torch.softmax(self.logits.masked_fill(~present, -math.inf), 0).nan_to_num()

    @torch.no_grad()
    def update_logits(self, before: Tensor, after: Tensor, present: Tensor) -> None:
        """Update ξ by one step of Adam.

        Args:
            before: (tasks,) normalised losses of an update's rows, before the step.
            after: (tasks,) of the same rows, after it.
            present: (tasks,) bool, True if the update has a labelled row of the task.
        """
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
    """Build a balance by name; return None for one task, and for written ones, whose losses are all by tokens.

    Args:
        name: a key of `BALANCES`.
        model: the model with these tasks' heads.
        tasks: fitted, by target.
        train: the prepared train rows.
    """
    balanced = len(tasks) > 1 and isinstance(model, Understand)
    return BALANCES[name](constant_losses(model, tasks, train)) if balanced else None
