"""Thresholds of confidence above which a prediction counts as a pseudo-label."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, distributed, nn


class Threshold(nn.Module, abc.ABC):
    """A threshold of the probability of the predicted class. It is constant within an update."""

    @abc.abstractmethod
    def of(self, labels: Tensor) -> Tensor:
        """Return the least probability of rows predicted as these classes, (rows,).

        Args:
            labels: (rows,) int64 class indices.
        """

    def start_update(self) -> None:
        """Forget what was observed in an update that was not made."""

    def observe(self, probabilities: Tensor, weights: Tensor) -> None:
        """Add a micro-batch to what the next threshold is computed from.

        Args:
            probabilities: (rows, classes).
            weights: (rows,) row weights.
        """

    def end_update(self) -> None:
        """Compute the next update's threshold; every process calls it equally often."""


class FixedThreshold(Threshold):
    """The same threshold for all classes."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def of(self, labels: Tensor) -> Tensor:
        """See `Threshold`."""
        return torch.full(labels.shape, self.value, device=labels.device)


class SelfAdaptiveThreshold(Threshold):
    """τ · m(c) / max m: τ is the moving average of the confidence, m(c) of class c's probability.

    Both start at 1 / classes, and the first update sets them to its own means, since training starts from a linear
    probe. The means are over all micro-batches and processes of an update, and hold from the next one on.

    Args:
        num_classes: at least 2.
        decay: of the moving averages, in (0, 1).

    Reference: Wang et al. 2023, "FreeMatch" (arXiv 2205.07246), equations 5 to 7.
    """

    confidence: Tensor
    rates: Tensor
    updates: Tensor

    def __init__(self, num_classes: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("confidence", torch.full((), 1 / num_classes))
        self.register_buffer("rates", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("updates", torch.zeros(()))
        self._sums: Tensor | None = None

    def of(self, labels: Tensor) -> Tensor:
        """See `Threshold`."""
        return (self.confidence * self.rates / self.rates.max())[labels]

    def start_update(self) -> None:
        """See `Threshold`."""
        self._sums = None

    @torch.no_grad()
    def observe(self, probabilities: Tensor, weights: Tensor) -> None:
        """See `Threshold`."""
        weights = weights.float()
        confidence = (probabilities.max(1).values * weights).sum()
        sums = torch.cat([weights.sum().view(1), confidence.view(1), (probabilities * weights.unsqueeze(1)).sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums  # (2 + classes,)

    @torch.no_grad()
    def end_update(self) -> None:
        """See `Threshold`."""
        sums = torch.zeros(2 + len(self.rates), device=self.rates.device) if self._sums is None else self._sums
        self._sums = None
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        if not sums[0] > 0:
            return
        share = 1.0 if self.updates == 0 else 1 - self.decay
        self.confidence.lerp_(sums[1] / sums[0], share)
        self.rates.lerp_(sums[2:] / sums[0], share)
        self.updates += 1
