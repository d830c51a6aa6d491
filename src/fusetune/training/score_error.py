"""The standard error of a score on validation rows, which distinguishes a gain from chance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

SHARES = frozenset({"accuracy", "subset_accuracy"})
"""Metrics that are a share of the rows, whose standard error has a closed form."""

NUM_DRAWS = 100
SHARE_OF_ERROR = 0.25
"""The share of the standard error that a higher score must gain if the validation loss is higher too."""


@dataclass
class ScoreError:
    """The standard error of the score that decides the best step, measured at the first check of a training.

    Attributes:
        seed: of the bootstrap.
        value: the standard error in the score's unit, 0 or more; None before the first check.
    """

    seed: int = 0
    value: float | None = None
    _parts: list[float] = field(default_factory=list)

    @property
    def known(self) -> bool:
        """Whether the error has been measured."""
        return self.value is not None

    @property
    def margin(self) -> float:
        """Return the gain by which a score is better although the validation loss is higher; 0 if unknown."""
        return SHARE_OF_ERROR * (self.value or 0.0)

    def add(self, name: str, score: float, metric: Callable[[np.ndarray], float], weights: np.ndarray) -> None:
        """Add one part of the score: that of a task, or of a direction of search.

        Args:
            name: the metric's name.
            score: its value on all rows.
            metric: maps row indices, (rows,) with repeats, to the metric on these rows.
            weights: (rows,) the rows' weights in the metric, 0 or more.
        """
        self._parts.append(
            share_error(score, weights) if name in SHARES else bootstrap_error(metric, len(weights), seed=self.seed)
        )

    def close(self) -> None:
        """Set the error of the mean of the parts, assuming that their errors are independent."""
        self.value = mean_error(self._parts)
        self._parts = []


def mean_error(errors: Sequence[float]) -> float:
    """Return the standard error of the mean of independent values from their standard errors; NaN counts as 0."""
    known = [error for error in errors if math.isfinite(error)]
    return math.sqrt(sum(error**2 for error in known)) / len(errors) if known else 0.0


def share_error(share: float, weights: np.ndarray) -> float:
    """Return the standard error of a share of rows.

    Two rows of each kind are added, so that the error of a share of 0 or 1 is not 0 (Agresti and Coull 1998,
    "Approximate is better than exact for interval estimation of binomial proportions"). Weighted rows count as
    (Σw)² / Σw² rows (Kish 1965, "Survey sampling").

    Args:
        share: 0 to 1, or NaN.
        weights: (rows,), 0 or more.

    Example:
        >>> round(share_error(0.8, np.ones(100)), 3)
        0.04
    """
    squares = float((weights**2).sum())
    rows = float(weights.sum()) ** 2 / squares if squares else 0.0
    if not rows or math.isnan(share):
        return math.nan
    adjusted = (share * rows + 2) / (rows + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (rows + 4))


def bootstrap_error(metric: Callable[[np.ndarray], float], rows: int, *, seed: int) -> float:
    """Return a metric's standard error by the bootstrap; NaN if the metric is defined on fewer than two draws.

    Args:
        metric: maps row indices, (rows,) with repeats, to the metric on these rows.
        rows: number of rows.
        seed: equal seeds give equal draws.
    """
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a draw on which the metric is undefined is NaN, and left out
        drawn = np.array([metric(rng.integers(0, rows, rows)) for _ in range(NUM_DRAWS)], dtype=float)
    drawn = drawn[np.isfinite(drawn)]
    return float(drawn.std(ddof=1)) if len(drawn) > 1 else math.nan
