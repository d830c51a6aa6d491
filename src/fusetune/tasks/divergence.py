"""How far two predictions for the same rows are apart: what `TargetTask.divergence` is made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(other)) in nats, (rows,) float32 or wider, of (rows, classes)."""
    first, second = _wide(logits).log_softmax(1), _wide(other).log_softmax(1)
    return (first.exp() * (first - second)).sum(1)


def bernoulli_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """The mean over the second dimension of KL(sigmoid(logits) || sigmoid(other)) in nats, (rows,) of (rows, labels).

    The mean, not the sum, as the losses of several yes-or-no questions a row are means too.
    """
    logits, other = _wide(logits), _wide(other)
    yes = logits.sigmoid() * (F.logsigmoid(logits) - F.logsigmoid(other))
    no = (-logits).sigmoid() * (F.logsigmoid(-logits) - F.logsigmoid(-other))
    return (yes + no).mean(1)


def squared_difference(logits: Tensor, other: Tensor) -> Tensor:
    """(logits - other)², (rows,) of (rows,)."""
    return (_wide(logits) - _wide(other)).square()


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
