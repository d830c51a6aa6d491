"""Divergences between two predictions for the same rows, for `Divergent.divergence`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOWEST = -1e30
"""The logit of a token that is not real."""


def softmax_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Return each row's KL(softmax(logits) || softmax(other)) in nats, (rows,) float32 or wider.

    Args:
        logits, other: (rows, classes) each.
    """
    first, second = _wide(logits).log_softmax(1), _wide(other).log_softmax(1)
    return (first.exp() * (first - second)).sum(1)


def bernoulli_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Return each row's mean over labels of KL(sigmoid(logits) || sigmoid(other)) in nats, (rows,).

    It is the mean, not the sum, to match the losses of tasks with several binary decisions a row.

    Args:
        logits, other: (rows, labels) each.
    """
    logits, other = _wide(logits), _wide(other)
    yes = logits.sigmoid() * (F.logsigmoid(logits) - F.logsigmoid(other))
    no = (-logits).sigmoid() * (F.logsigmoid(-logits) - F.logsigmoid(-other))
    return (yes + no).mean(1)


def positions_divergence(logits: Tensor, other: Tensor, real: Tensor) -> Tensor:
    """Return each row's mean over k of KL(p_k || q_k) in nats, (rows,), where p_k and q_k are softmaxes over tokens.

    It is 0 for a row without a token. What stands at padding is not read.

    Args:
        logits, other: (rows, tokens, k) each.
        real: (rows, tokens) bool, False at padding.
    """
    padding = ~real.unsqueeze(2)
    wide, wide_other = (_wide(values).masked_fill(padding, LOWEST) for values in (logits, other))
    first, second = wide.log_softmax(1), wide_other.log_softmax(1)
    return (first.exp() * (first - second)).masked_fill(padding, 0).sum(1).mean(1)


def tokens_divergence(logits: Tensor, other: Tensor, real: Tensor) -> Tensor:
    """Return each row's mean over its tokens of KL(softmax(logits) || softmax(other)) in nats, (rows,).

    It is 0 for a row without a token. What stands at padding is not read.

    Args:
        logits, other: (rows, tokens, k) each.
        real: (rows, tokens) bool, False at padding.
    """
    padding = ~real.unsqueeze(2)
    first, second = (_wide(values).masked_fill(padding, 0).log_softmax(2) for values in (logits, other))
    return (first.exp() * (first - second)).sum(2).sum(1) / real.sum(1).clamp(min=1)


def softened_softmax_divergence(logits: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """Return each row's T² KL(softmax(reference / T) || softmax(logits / T)) in nats, (rows,), over known classes.

    Args:
        logits: (rows, classes).
        reference: (rows, classes) log-probabilities or logits; NaN for a class that is not known. A row without any
            has 0.
        temperature: T.
    """
    unknown = reference.isnan()
    unknown = unknown & ~unknown.all(1, keepdim=True)  # a row without any: compared with itself
    wide = _wide(logits)
    reference = torch.where(reference.isnan().all(1, keepdim=True), wide.detach(), _wide(reference))
    student, teacher = (values.masked_fill(unknown, LOWEST) / temperature for values in (wide, reference))
    return temperature**2 * softmax_divergence(teacher, student)


def softened_bernoulli_divergence(logits: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """Return each row's mean over known labels of T² KL(sigmoid(reference / T) || sigmoid(logits / T)), (rows,) nats.

    Args:
        logits: (rows, labels).
        reference: (rows, labels) logits; NaN for a label that is not known. A row without any has 0.
        temperature: T.
    """
    known = ~reference.isnan()
    student = _wide(logits) / temperature
    teacher = torch.where(known, _wide(reference) / temperature, student.detach())
    return temperature**2 * bernoulli_divergence(teacher, student) * logits.shape[1] / known.sum(1).clamp(min=1)


def squared_difference(logits: Tensor, other: Tensor) -> Tensor:
    """Return (logits - other)², (rows,), for (rows,) arguments."""
    return (_wide(logits) - _wide(other)).square()


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
