"""Modules from logits to answers, which compute in torch what the tasks' `answers` compute in numpy.

They are the last layers of a flat model (`fusetune.models.flat`). Legend: rows = a batch, levels = ordered classes.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, nn

from fusetune.tasks.transforms import Transform

NEAR_ZERO = 1e-12
"""A power nearer to zero is taken as zero, as in `fusetune.tasks.transforms`."""


class SoftmaxAnswers(nn.Module):
    """Probabilities of exclusive classes."""

    def forward(self, logits: Tensor) -> Tensor:
        """Map (rows, classes) logits to probabilities."""
        return logits.float().softmax(1)


class SigmoidAnswers(nn.Module):
    """Probabilities of independent labels."""

    def forward(self, logits: Tensor) -> Tensor:
        """Map (rows, labels) logits to probabilities."""
        return logits.float().sigmoid()


class LevelAnswers(nn.Module):
    """Probabilities of ordered levels, as `fusetune.tasks.classes.ordinal.level_probabilities`."""

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits of "above level k", (rows, levels - 1), to (rows, levels) probabilities."""
        above = torch.stack(list(accumulate(logits.float().unbind(1), torch.minimum)), 1).sigmoid()
        one, zero = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
        return torch.cat([one, above], 1) - torch.cat([above, zero], 1)


class NumberAnswers(nn.Module):
    """Numbers in the target's unit, as `fusetune.tasks.transforms.Transform.inverse`."""

    points: Tensor

    def __init__(self, transform: Transform, limits: tuple[float, float] | None) -> None:
        """
        Args:
            transform: fitted.
            limits: the range that numbers are clipped to; None for no range.
        """
        super().__init__()
        self.transform, self.limits = transform, limits
        self.register_buffer("points", torch.tensor(transform.points, dtype=torch.float32))

    def forward(self, logits: Tensor) -> Tensor:
        """Map (rows,) numbers on the transformed scale to the target's unit."""
        numbers = self._inverse(logits.float())
        return numbers if self.limits is None else numbers.clamp(*self.limits)

    def _inverse(self, values: Tensor) -> Tensor:
        transform = self.transform
        if transform.name in ("none", "standard"):
            return values * transform.scale + transform.mean
        curved = values.clamp(transform.low, transform.high) * transform.scale + transform.mean
        if transform.name == "log1p":
            return torch.expm1(curved)
        if transform.name == "yeo-johnson":
            return _inverse_yeo_johnson(curved, transform.power) * transform.spread + transform.center
        last = len(self.points) - 1
        places = (1 + torch.erf(curved / 2**0.5)) / 2 * last
        low = places.floor().clamp(0, max(last - 1, 0))
        before, after = self.points[low.long()], self.points[(low + min(last, 1)).long()]
        return before + (places - low) * (after - before)


def _inverse_yeo_johnson(values: Tensor, power: float) -> Tensor:
    """Return the inverse of `fusetune.tasks.transforms.yeo_johnson`."""
    high = _half(values.clamp(min=0), power)
    return torch.where(values >= 0, high, -_half((-values).clamp(min=0), 2 - power))


def _half(values: Tensor, power: float) -> Tensor:
    """Return the inverse of the power transform for numbers of 0 or more."""
    if abs(power) < NEAR_ZERO:
        return torch.expm1(values)
    end = -1 + torch.finfo(values.dtype).eps
    return torch.expm1(torch.log1p((power * values).clamp(min=end)) / power)
