"""The standard error of a score on validation rows: what tells a gain from chance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

SHARES = frozenset({"accuracy", "subset_accuracy"})
"""Metrics that are the mean of a 0 or 1 a row, whose standard error has a closed form."""

NUM_DRAWS = 100
SHARE_OF_ERROR = 0.25
"""How much of the standard error a higher score must gain where the validation loss is higher, too."""


@dataclass
class ScoreError:
    """The standard error of the score that decides the best step, measured at the first check of a training.

    Attributes:
        seed: of the bootstrap's draws.
        value: the standard error in the score's unit, 0 or more; None before the first check.
    """

    seed: int = 0
    value: float | None = None
    _parts: list[float] = field(default_factory=list)

    @property
    def known(self) -> bool:
        """Whether it was measured."""
        return self.value is not None

    @property
    def margin(self) -> float:
        """Return what a score must gain to be better although the validation loss is higher; 0 where unknown."""
        return SHARE_OF_ERROR * (self.value or 0.0)

    def add(self, name: str, score: float, metric: Callable[[np.ndarray], float], weights: np.ndarray) -> None:
        """Add one part of the score: a task, or a direction of search.

        Args:
            name: the metric's name.
            score: its value on all rows.
            metric: from row numbers, (rows,) with repeats, to the metric on those rows.
            weights: (rows,) the rows' weights in the metric, 0 or more.
        """
        self._parts.append(
            share_error(score, weights) if name in SHARES else bootstrap_error(metric, len(weights), seed=self.seed)
        )

    def close(self) -> None:
        """Fix the error of the mean of the parts, whose errors are taken as independent of each other."""
        self.value = mean_error(self._parts)
        self._parts = []


def mean_error(errors: Sequence[float]) -> float:
    """Return the standard error of a mean of independent figures, from theirs; those that are nan count 0."""
    known = [error for error in errors if math.isfinite(error)]
    return math.sqrt(sum(error**2 for error in known)) / len(errors) if known else 0.0


def share_error(share: float, weights: np.ndarray) -> float:
    """Return the standard error of a share of rows.

    Two rows of each kind are added, so that a share of 0 or 1 is not taken for certain (Agresti and Coull 1998,
    "Approximate is better than exact for interval estimation of binomial proportions"). Weighted rows count as
    (Σw)² / Σw² rows (Kish 1965, "Survey sampling").

    Args:
        share: 0 to 1, or nan.
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
    """Return a metric's standard error by the bootstrap; nan where fewer than two draws define the metric.

    Args:
        metric: from row numbers, (rows,) with repeats, to the metric on those rows.
        rows: how many there are.
        seed: equal seeds give equal draws.
    """
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a draw in which the metric is undefined is nan, and left out
        drawn = np.array([metric(rng.integers(0, rows, rows)) for _ in range(NUM_DRAWS)], dtype=float)
    drawn = drawn[np.isfinite(drawn)]
    return float(drawn.std(ddof=1)) if len(drawn) > 1 else math.nan
