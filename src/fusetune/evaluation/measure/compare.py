"""Confidence intervals for any metric, and for the difference of two systems, by the bootstrap.

Rows are drawn with replacement (whole groups where rows belong together, as several rows of one patient do) and all
metrics of all systems are taken on the same drawn rows, so that differences are paired. Intervals are
bias-corrected percentiles of the draws (Efron & Tibshirani 1993, ch. 14).

Legend: rows = evaluated rows, units = what is drawn: rows or groups.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from fusetune.evaluation.results import Interval

MIN_UNITS = 10
"""With fewer rows or groups there is no interval: the draws would say more about chance than about the model."""

MIN_DEFINED = 0.8
"""The share of draws on which a metric must be defined; below, its interval is nan."""

MIN_DRAWS = 100
MAX_WORK = 20_000_000
"""The most score values looked at: draws x systems x rows x classes. Large tables need fewer draws for a steady end."""


Metrics = Callable[[np.ndarray, np.ndarray, np.ndarray | None], dict[str, float]]
"""What `Task.metrics` is: scores, truth and weights to all metrics at once; nan where one is undefined."""


@dataclass(frozen=True)
class Draws:
    """What the bootstrap saw of one system: each metric on all rows, and on each draw, (draws,)."""

    value: dict[str, float]
    drawn: dict[str, np.ndarray]

    def intervals(self, level: float) -> dict[str, Interval]:
        """Each metric with its interval."""
        return {name: interval(value, self.drawn[name], level) for name, value in self.value.items()}

    def minus(self, other: Draws, level: float) -> dict[str, Interval]:
        """This system's metrics minus the other's, on the same draws, for the metrics that both have."""
        return {
            name: interval(value - other.value[name], self.drawn[name] - other.drawn[name], level)
            for name, value in self.value.items()
            if name in other.value
        }


def interval(value: float, drawn: np.ndarray, level: float = 0.95) -> Interval:
    """The bias-corrected percentile interval of a metric's draws; nan ends where too many draws are undefined.

    Where draws lie to one side of the metric, as those of average precision do (equal rows help it), the percentiles
    are moved to the other side (Efron 1981); without bias they are the plain ones. The metric is never left out.

    Args:
        value: the metric on all rows.
        drawn: (draws,) the metric on each draw.
        level: the share of draws between the ends, above 0 and below 1.
    """
    defined = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or len(defined) == 0 or len(defined) < MIN_DEFINED * len(drawn):
        return Interval(float(value))
    below = float(np.mean(defined < value) + np.mean(defined == value) / 2)
    bias = ndtri(np.clip(below, 0.5 / len(defined), 1 - 0.5 / len(defined)))
    tail = ndtri((1 + level) / 2)
    low, high = np.quantile(defined, ndtr([2 * bias - tail, 2 * bias + tail]))
    return Interval(float(value), min(float(low), float(value)), max(float(high), float(value)))


def draw_all(
    metrics: Metrics,
    systems: Mapping[str, np.ndarray],
    truth: np.ndarray,
    *,
    num: int = 1000,
    seed: int = 0,
    weights: np.ndarray | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> dict[str, Draws]:
    """Every system's metrics on all rows and on the same draws of rows.

    Args:
        metrics: all metrics at once, as `Task.metrics`.
        systems: name to scores, (rows, ...) each, in the order of `truth`.
        truth: (rows, ...).
        num: draws; fewer (at least 100) are made where rows x classes x systems is large.
        seed: equal seeds give equal draws.
        weights: (rows,) each row's weight in the metrics.
        groups: (rows,) rows of equal value are drawn together.
    """
    truth = np.asarray(truth)
    values = {name: _measure(metrics, scores, truth, weights) for name, scores in systems.items()}
    drawn: dict[str, dict[str, list[float]]] = {
        name: {metric: [] for metric in found} for name, found in values.items()
    }
    work = sum(np.asarray(scores).size for scores in systems.values())
    for rows in _draws(len(truth), groups, num=limit(num, work), seed=seed):
        for name, scores in systems.items():
            found = _measure(metrics, scores[rows], truth[rows], None if weights is None else weights[rows])
            for metric, kept in drawn[name].items():
                kept.append(found.get(metric, math.nan))
    return {
        name: Draws(values[name], {metric: np.asarray(kept, dtype=np.float64) for metric, kept in kept_by.items()})
        for name, kept_by in drawn.items()
    }


def bootstrap(
    metrics: Metrics,
    scores: np.ndarray,
    truth: np.ndarray,
    *,
    num: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    weights: np.ndarray | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> dict[str, Interval]:
    """Each metric with its interval. The arguments are those of `draw_all`; `level` is the interval's coverage.

    With fewer than `MIN_UNITS` rows (or groups) the ends are nan.
    """
    drawn = draw_all(metrics, {"": scores}, truth, num=num, seed=seed, weights=weights, groups=groups)
    return drawn[""].intervals(level)


def paired_difference(
    metrics: Metrics,
    scores: np.ndarray,
    other: np.ndarray,
    truth: np.ndarray,
    *,
    num: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    weights: np.ndarray | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> dict[str, Interval]:
    """The metrics of `scores` minus those of `other` on the same rows, each with its interval.

    An interval that holds 0 means that the rows cannot tell the two apart.
    """
    systems = {"a": scores, "b": other}
    drawn = draw_all(metrics, systems, truth, num=num, seed=seed, weights=weights, groups=groups)
    return drawn["a"].minus(drawn["b"], level)


def limit(num: int, work: int) -> int:
    """How many draws to make of `num` asked for, when each looks at `work` score values."""
    return min(num, max(MIN_DRAWS, MAX_WORK // max(work, 1)))


def _measure(metrics: Metrics, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # sklearn warns of each undefined metric on each draw: nan says the same
        return metrics(scores, truth, weights)


def _draws(rows: int, groups: Sequence[Any] | np.ndarray | None, *, num: int, seed: int) -> Iterator[np.ndarray]:
    """Row indices of each draw; none at all where there are too few units."""
    rng = np.random.default_rng(seed)
    if groups is None:
        if rows >= MIN_UNITS:
            for _ in range(num):
                yield rng.integers(0, rows, rows)
        return
    codes = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes))[:-1]) if rows else []
    if len(members) >= MIN_UNITS:
        for _ in range(num):
            yield np.concatenate([members[unit] for unit in rng.integers(0, len(members), len(members))])
