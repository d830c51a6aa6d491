"""Bootstrap confidence intervals for any metric, and for the difference between two systems.

Rows are drawn with replacement. Rows that belong together, such as several rows of one patient, are drawn as a group.
All metrics of all systems are computed on the same drawn rows, so that differences are paired. Intervals are
bias-corrected percentiles of the draws (Efron & Tibshirani 1993, ch. 14).

Legend: rows = evaluated rows, units = the drawn items: rows or groups.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from fusetune.evaluation.results import Interval

MIN_UNITS = 10
"""The fewest rows or groups for an interval: with fewer, the percentiles of the draws are not reliable."""

MIN_DEFINED = 0.8
"""The smallest share of draws on which a metric must be defined; otherwise its interval is nan."""

MIN_DRAWS = 100
MAX_WORK = 20_000_000
"""The most score values to process: draws x systems x rows x classes. Large tables need fewer draws for stable ends."""

SUMS_ARE_FASTER = 50
"""So many times as many counts as scores are processed by `draw_sums` before there are fewer draws."""

Metrics = Callable[[np.ndarray, np.ndarray, np.ndarray | None], dict[str, float]]
"""The type of `Task.metrics`: from scores, truth and weights to all metrics; an undefined metric is nan."""


@dataclass(frozen=True)
class Draws:
    """The bootstrap of one system: each metric on all rows (`value`), and on each draw, (draws,) (`drawn`)."""

    value: dict[str, float]
    drawn: dict[str, np.ndarray]

    def only(self, names: Collection[str]) -> Draws:
        """Return the draws of some of the metrics."""
        return Draws(
            {name: value for name, value in self.value.items() if name in names},
            {name: drawn for name, drawn in self.drawn.items() if name in names},
        )

    def intervals(self, level: float) -> dict[str, Interval]:
        """Return each metric with its interval."""
        return {name: interval(value, self.drawn[name], level) for name, value in self.value.items()}

    def minus(self, other: Draws, level: float) -> dict[str, Interval]:
        """Return this system's metrics minus the other's on the same draws, for the metrics that both have."""
        return {
            name: interval(value - other.value[name], self.drawn[name] - other.drawn[name], level)
            for name, value in self.value.items()
            if name in other.value
        }


def interval(value: float, drawn: np.ndarray, level: float = 0.95) -> Interval:
    """Return the bias-corrected percentile interval of a metric's draws, with nan ends if too many are undefined.

    If most draws lie on one side of the metric, the percentiles are moved to the other side (Efron 1981). Average
    precision, for example, rises when rows are repeated. Without bias the percentiles are the plain ones. The interval
    always contains the metric.

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
    """Compute every system's metrics on all rows and on the same draws of rows.

    Args:
        metrics: computes all metrics, as `Task.metrics` does.
        systems: the scores by system name, (rows, ...) each, in the order of `truth`.
        truth: (rows, ...).
        num: the number of draws; fewer, at least 100, if rows x classes x systems is large.
        seed: equal seeds give equal draws.
        weights: (rows,) row weights in the metrics.
        groups: (rows,) rows with equal values are drawn together.
    """
    truth = np.asarray(truth)
    values = {name: _measure(metrics, scores, truth, weights) for name, scores in systems.items()}
    drawn: dict[str, dict[str, list[float]]] = {
        name: {metric: [] for metric in measured} for name, measured in values.items()
    }
    work = sum(np.asarray(scores).size for scores in systems.values())
    for rows in _draws(len(truth), groups, num=limit(num, work), seed=seed):
        for name, scores in systems.items():
            measured = _measure(metrics, scores[rows], truth[rows], None if weights is None else weights[rows])
            for metric, draws in drawn[name].items():
                draws.append(measured.get(metric, math.nan))
    return _gathered(values, drawn)


def draw_sums(
    metrics: Metrics,
    systems: Mapping[str, np.ndarray],
    truth: np.ndarray,
    *,
    num: int = 1000,
    seed: int = 0,
    weights: np.ndarray | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> dict[str, Draws]:
    """Do as `draw_all`, with the same draws, for metrics that depend on the weighted sums of counts only.

    A draw is then the sum of each row's counts times how often it is drawn, and its metrics are those of one row that
    has these sums: many times faster.

    Args:
        metrics: as of a `fusetune.tasks.abilities.Summed` task.
        systems: the counts by system name, (rows, k) each.
        truth, num, seed, weights, groups: see `draw_all`; more counts are processed before there are fewer draws.
    """
    truth = np.asarray(truth)
    values = {name: _measure(metrics, counts, truth, weights) for name, counts in systems.items()}
    drawn: dict[str, dict[str, list[float]]] = {name: {metric: [] for metric in own} for name, own in values.items()}
    weighted = {name: counts if weights is None else counts * weights[:, None] for name, counts in systems.items()}
    work = sum(counts.size for counts in systems.values())
    for rows in _draws(len(truth), groups, num=limit(num, work // SUMS_ARE_FASTER), seed=seed):
        times = np.bincount(rows, minlength=len(truth)).astype(np.float64)
        for name, counts in weighted.items():
            measured = _measure(metrics, (times @ counts)[None], truth[:1], None)
            for metric, draws in drawn[name].items():
                draws.append(measured.get(metric, math.nan))
    return _gathered(values, drawn)


def _gathered(
    values: Mapping[str, dict[str, float]], drawn: Mapping[str, Mapping[str, list[float]]]
) -> dict[str, Draws]:
    return {
        name: Draws(values[name], {metric: np.asarray(draws, dtype=np.float64) for metric, draws in by_metric.items()})
        for name, by_metric in drawn.items()
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
    """Return each metric with its interval; `level` is the coverage, the other arguments are those of `draw_all`.

    With fewer than `MIN_UNITS` rows or groups the ends are nan.
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
    """Return the metrics of `scores` minus those of `other` on the same rows, each with its interval.

    If the interval contains 0, the rows do not show a difference.
    """
    systems = {"a": scores, "b": other}
    drawn = draw_all(metrics, systems, truth, num=num, seed=seed, weights=weights, groups=groups)
    return drawn["a"].minus(drawn["b"], level)


def limit(num: int, work: int) -> int:
    """Return the number of draws to make, at most `num`, if each draw processes `work` score values."""
    return min(num, max(MIN_DRAWS, MAX_WORK // max(work, 1)))


def _measure(metrics: Metrics, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # sklearn warns of each undefined metric on each draw; nan already marks them
        return metrics(scores, truth, weights)


def _draws(rows: int, groups: Sequence[Any] | np.ndarray | None, *, num: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the row indices of each draw; nothing if there are too few units."""
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
