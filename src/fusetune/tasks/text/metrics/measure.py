"""The contract of a metric of texts: counts of a row, and metrics of the counts' sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Row = Callable[[str, Sequence[str]], Sequence[float]]
Metrics = Callable[[np.ndarray, float], dict[str, float]]


@dataclass(frozen=True)
class Measure:
    """A group of metrics that are computed from the same counts.

    Attributes:
        width: the number of counts of a row.
        row: returns a row's counts, (width,), from its answer and its references, at least one.
        metrics: returns the metrics, nan where undefined, from the counts' weighted sums, (width,), and the sum of the
            rows' weights, above 0.
    """

    width: int
    row: Row
    metrics: Metrics


def ratio(top: float, bottom: float) -> float:
    """Return top / bottom; nan if bottom is 0."""
    return float(top / bottom) if bottom else float("nan")
