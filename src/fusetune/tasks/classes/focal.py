"""Focal loss: give less weight to rows that are already predicted well (Lin et al. 2017, arXiv 1708.02002)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fusetune.errors import ConfigError, shown


def check_focal(value: Any) -> float:
    """Return γ as a float, if it is a finite number of 0 or more.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(
            "focal is out of range", expected="γ, a number of 0 or more; 2 in the paper", came=shown(value)
        )
    return float(value)


def focal_loss(losses: Tensor, true_probability: Tensor, gamma: float) -> Tensor:
    """Return (1 − p)^γ · loss, of the same shape as the losses.

    Args:
        losses: (...) cross-entropies.
        true_probability: (...) p, the predicted probability of the true class. Gradients flow through it, as in the
            paper.
        gamma: γ; 0 returns the losses unchanged.
    """
    return losses if gamma == 0 else (1 - true_probability).clamp(min=0) ** gamma * losses
