"""The labelling rule of the tickets sample, and the exact Bayes accuracy of every set of columns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

import numpy as np

from fusetune.errors import ConfigError, nearest

LABELS = ("normal", "high")
"""The priorities, from few points to many."""

POINTS: dict[str, tuple[int, ...]] = {
    "message": (0, 2, 3),
    "screenshot": (0, 2, 3),
    "voice": (0, 2),
    "waiting_hours": (0, 2),
    "plan": (0, 2),
}
"""Maps a column to the points of each level of its hidden factor."""

COLUMNS = tuple(POINTS)

HIGH_FROM = 6
"""Smallest sum of points with the label "high"."""

CLOSE = range(4, 8)
"""Sums of points near the decision boundary."""

CLOSE_SHARE = 0.4
"""Relative frequency of sums in `CLOSE`. Fewer borderline rows make each single column more informative."""

SUBSETS: tuple[frozenset[str], ...] = tuple(
    frozenset(chosen) for size in range(len(COLUMNS) + 1) for chosen in itertools.combinations(COLUMNS, size)
)
"""All 32 sets of columns in order of size, beginning with the empty set."""


def clean_labels(factors: np.ndarray) -> np.ndarray:
    """Return the labels before label noise.

    Args:
        factors: `(rows, 5)` levels, in the order of `COLUMNS`.

    Returns:
        `(rows,)` indices into `LABELS`.
    """
    points = sum(np.asarray(POINTS[column])[factors[:, k]] for k, column in enumerate(COLUMNS))
    return (np.asarray(points) >= HIGH_FROM).astype(np.int64)


@functools.cache
def level_probabilities() -> np.ndarray:
    """Return P(levels of all columns), `(3, 3, 2, 2, 2)`, one axis a column.

    The first level of a column has the same probability as all its other levels together, which are equally likely.
    Combinations whose points are in `CLOSE` are then weighted by `CLOSE_SHARE`, and the table is normalised.
    """
    shape = tuple(len(points) for points in POINTS.values())
    levels = np.indices(shape)
    weights, points = np.ones(shape), np.zeros(shape, dtype=np.int64)
    for level, worth in zip(levels, POINTS.values(), strict=True):
        weights *= np.where(level == 0, 1 / 2, 1 / 2 / (len(worth) - 1))
        points += np.asarray(worth)[level]
    weights[np.isin(points, list(CLOSE))] *= CLOSE_SHARE
    weights /= weights.sum()
    weights.setflags(write=False)
    return weights


def draw_levels(uniform: np.ndarray) -> np.ndarray:
    """Return the levels for uniform random numbers, by the inverse of the cumulative distribution.

    Args:
        uniform: `(rows,)` in [0, 1).

    Returns:
        `(rows, 5)` levels, in the order of `COLUMNS`, distributed as `level_probabilities`.
    """
    ends = np.cumsum(level_probabilities())
    drawn = np.minimum(np.searchsorted(ends, uniform, side="right"), len(ends) - 1)
    return np.stack(np.unravel_index(drawn, level_probabilities().shape), axis=1).astype(np.int64)


@functools.cache
def _joint(label_noise: float) -> np.ndarray:
    """Return P(levels, label), `(3, 3, 2, 2, 2, labels)`."""
    shape = level_probabilities().shape
    levels = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1)
    table = np.full((len(levels), len(LABELS)), label_noise)
    table[np.arange(len(levels)), clean_labels(levels)] = 1 - label_noise
    return np.asarray(level_probabilities()[..., None] * table.reshape(*shape, len(LABELS)))


def _marginal(columns: Iterable[str], label_noise: float) -> np.ndarray:
    """Return P(levels of these columns, label); the axes of other columns have size 1."""
    known = _check_columns(columns)
    hidden = tuple(axis for axis, column in enumerate(COLUMNS) if column not in known)
    return np.asarray(_joint(check_noise(label_noise)).sum(axis=hidden, keepdims=True))


def posterior(columns: Iterable[str], *, label_noise: float = 0.05) -> np.ndarray:
    """Return P(label | levels of these columns) for every combination of levels, exactly.

    Args:
        columns: names out of `COLUMNS`.
        label_noise: see `ceilings`.

    Returns:
        `(levels of message or 1, ..., levels of plan or 1, labels)`; the axes of other columns have size 1.
    """
    joint = _marginal(columns, label_noise)
    return np.asarray(joint / joint.sum(axis=-1, keepdims=True))


def patterns(missing: float) -> dict[frozenset[str], float]:
    """Return the probability of every set of filled cells in a row.

    Each cell is missing with probability `missing`, independently of everything else. A row that would lose all its
    cells keeps its message.
    """
    probability = {filled: (1 - missing) ** len(filled) * missing ** (len(COLUMNS) - len(filled)) for filled in SUBSETS}
    probability[frozenset({"message"})] += probability.pop(frozenset())
    return probability


def ceilings(*, missing: float = 0.0, label_noise: float = 0.05) -> dict[frozenset[str], float]:
    """Return the best reachable accuracy of every non-empty set of columns: the Bayes accuracy, by enumeration.

    For a set S it is Σ over sets of filled cells K of P(K) · E[max over labels of P(label | levels of S ∩ K)].
    Cells are missing completely at random, so a missing cell is not informative.

    Args:
        missing: probability that a cell is missing, in [0, 1).
        label_noise: probability that a label is flipped, in [0, 1/2].

    Returns:
        An accuracy in [0, 1] for each of the 31 sets.
    """
    check_missing(missing)
    complete = {known: float(_marginal(known, label_noise).max(axis=-1).sum()) for known in SUBSETS}
    probability = patterns(missing)
    return {
        chosen: sum(share * complete[chosen & filled] for filled, share in probability.items())
        for chosen in SUBSETS
        if chosen
    }


def best_labels(
    factors: np.ndarray, present: np.ndarray, columns: Iterable[str], *, label_noise: float = 0.05
) -> np.ndarray:
    """Return the Bayes-optimal predictions from these columns; ties go to "normal".

    Args:
        factors: `(rows, 5)` levels, in the order of `COLUMNS`.
        present: `(rows, 5)` bool, True where the cell is filled.
        columns: the columns to predict from.
        label_noise: see `ceilings`.

    Returns:
        `(rows,)` indices into `LABELS`.
    """
    known = _check_columns(columns)
    visible = present & np.array([column in known for column in COLUMNS])
    labels = np.empty(len(factors), dtype=np.int64)
    for pattern in np.unique(visible, axis=0):
        rows = np.flatnonzero((visible == pattern).all(axis=1))
        given = [column for column, is_visible in zip(COLUMNS, pattern, strict=True) if is_visible]
        levels = np.where(pattern, factors[rows], 0)
        # Rounding preserves ties: sums of the same numbers in another order differ in their last bits.
        labels[rows] = posterior(given, label_noise=label_noise).round(12)[tuple(levels.T)].argmax(axis=-1)
    return labels


def check_missing(missing: float) -> float:
    """Return `missing` as a float.

    Raises:
        ConfigError: it is not in [0, 1).
    """
    if not 0 <= missing < 1:
        raise ConfigError("`missing` is out of range", expected="a probability in [0, 1)", came=repr(missing))
    return float(missing)


def check_noise(label_noise: float) -> float:
    """Return `label_noise` as a float.

    Raises:
        ConfigError: it is not in [0, 1/2]; above 1/2 the flipped label would be the more likely one.
    """
    if not 0 <= label_noise <= 0.5:
        raise ConfigError("`label_noise` is out of range", expected="a probability in [0, 1/2]", came=repr(label_noise))
    return float(label_noise)


def _check_columns(columns: Iterable[str]) -> frozenset[str]:
    if isinstance(columns, str):
        columns = [columns]
    known = frozenset(columns)
    for name in sorted(known - set(COLUMNS)):
        raise ConfigError(
            f"the tickets sample has no column {name!r}",
            expected=", ".join(COLUMNS),
            do=nearest(name, COLUMNS) or "choose one of the columns above",
        )
    return known
