"""Focal loss: what is answered well already counts less. Lin et al. 2017, arXiv 1708.02002."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fusetune.errors import ConfigError, shown


def check_focal(value: Any) -> float:
    """γ, refused unless it is a number of 0 or more.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(
            "focal is out of range", expected="γ, a number of 0 or more; 2 in the paper", came=shown(value)
        )
    return float(value)


def focused(losses: Tensor, right: Tensor, gamma: float) -> Tensor:
    """(1 − p)^γ · loss, of the same shape.

    Args:
        losses: of single answers.
        right: p, the probability given to the right answer; gradients flow through it, as in the paper.
        gamma: γ; 0 leaves the losses as they are.
    """
    return losses if gamma == 0 else (1 - right).clamp(min=0) ** gamma * losses
