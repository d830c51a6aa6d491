"""The rule behind the tickets sample, and what is best reachable under it, computed exactly."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

import numpy as np

from fusetune.errors import ConfigError, nearest

LABELS = ("normal", "high")
"""The priorities, the one of few points first."""

POINTS: dict[str, tuple[int, ...]] = {
    "message": (0, 2, 3),
    "screenshot": (0, 2, 3),
    "voice": (0, 2),
    "waiting_hours": (0, 2),
    "plan": (0, 2),
}
"""Column to the points of each level of its hidden factor."""

COLUMNS = tuple(POINTS)

HIGH_FROM = 6
"""Least sum of points for the label "high"."""

CLOSE = range(4, 8)
"""Sums of points near the border between the labels."""

CLOSE_SHARE = 0.4
"""How often these are drawn against others: the fewer borderline cases, the more each column alone says."""

SUBSETS: tuple[frozenset[str], ...] = tuple(
    frozenset(chosen) for size in range(len(COLUMNS) + 1) for chosen in itertools.combinations(COLUMNS, size)
)
"""All 32 sets of columns, the empty one first and small before large."""


def clean_labels(factors: np.ndarray) -> np.ndarray:
    """The labels before noise.

    Args:
        factors: `(rows, 5)` levels, in the order of `COLUMNS`.

    Returns:
        `(rows,)` indices into `LABELS`.
    """
    points = sum(np.asarray(POINTS[column])[factors[:, k]] for k, column in enumerate(COLUMNS))
    return (np.asarray(points) >= HIGH_FROM).astype(np.int64)


@functools.cache
def chances() -> np.ndarray:
    """P(levels of all columns), `(3, 3, 2, 2, 2)`: one axis for each column.

    The first level of a column is as likely as all its others together, which are equally likely; a combination
    whose points are close to the border between the labels is then drawn `CLOSE_SHARE` times as often.
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
    """The levels that numbers drawn uniformly from [0, 1) stand for.

    Args:
        uniform: `(rows,)`.

    Returns:
        `(rows, 5)` levels, in the order of `COLUMNS`, distributed as `chances`.
    """
    ends = np.cumsum(chances())
    drawn = np.minimum(np.searchsorted(ends, uniform, side="right"), len(ends) - 1)
    return np.stack(np.unravel_index(drawn, chances().shape), axis=1).astype(np.int64)


@functools.cache
def _joint(label_noise: float) -> np.ndarray:
    """P(levels, label), `(3, 3, 2, 2, 2, labels)`."""
    shape = chances().shape
    levels = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1)
    table = np.full((len(levels), len(LABELS)), label_noise)
    table[np.arange(len(levels)), clean_labels(levels)] = 1 - label_noise
    return np.asarray(chances()[..., None] * table.reshape(*shape, len(LABELS)))


def _seen(columns: Iterable[str], label_noise: float) -> np.ndarray:
    """P(levels of these columns, label), with size 1 where a column is not given."""
    known = _named(columns)
    hidden = tuple(axis for axis, column in enumerate(COLUMNS) if column not in known)
    return np.asarray(_joint(check_noise(label_noise)).sum(axis=hidden, keepdims=True))


def posterior(columns: Iterable[str], *, label_noise: float = 0.05) -> np.ndarray:
    """P(label | the levels of these columns), for every combination of levels, exactly.

    Args:
        columns: names out of `COLUMNS`.
        label_noise: see `ceilings`.

    Returns:
        `(levels of message or 1, ..., levels of plan or 1, labels)`: size 1 where a column is not given.
    """
    seen = _seen(columns, label_noise)
    return np.asarray(seen / seen.sum(axis=-1, keepdims=True))


def patterns(missing: float) -> dict[frozenset[str], float]:
    """The probability of every set of filled cells in a row.

    Each cell is left out with probability `missing`, independently of all else; a row that would lose all its
    cells keeps its message.
    """
    chance = {kept: (1 - missing) ** len(kept) * missing ** (len(COLUMNS) - len(kept)) for kept in SUBSETS}
    chance[frozenset({"message"})] += chance.pop(frozenset())
    return chance


def ceilings(*, missing: float = 0.0, label_noise: float = 0.05) -> dict[frozenset[str], float]:
    """The best reachable accuracy of every non-empty set of columns: the Bayes rate, by enumeration.

    For a set S it is Σ over patterns of filled cells K of P(K) · E[max over labels of P(label | levels of S ∩ K)].
    Cells are missing at random, so that a cell is missing says nothing about the label.

    Args:
        missing: probability that a cell is left out, in [0, 1).
        label_noise: probability that a label is swapped, in [0, 1/2].

    Returns:
        31 sets of columns, each with an accuracy in [0, 1].
    """
    check_missing(missing)
    filled = {known: float(_seen(known, label_noise).max(axis=-1).sum()) for known in SUBSETS}
    chance = patterns(missing)
    return {
        chosen: sum(share * filled[chosen & kept] for kept, share in chance.items()) for chosen in SUBSETS if chosen
    }


def best_labels(
    factors: np.ndarray, present: np.ndarray, columns: Iterable[str], *, label_noise: float = 0.05
) -> np.ndarray:
    """What a perfect reader of these columns answers; ties go to "normal".

    Args:
        factors: `(rows, 5)` levels, in the order of `COLUMNS`.
        present: `(rows, 5)` bool, True where the cell is filled.
        columns: the columns that are read.
        label_noise: see `ceilings`.

    Returns:
        `(rows,)` indices into `LABELS`.
    """
    known = _named(columns)
    seen = present & np.array([column in known for column in COLUMNS])
    answers = np.empty(len(factors), dtype=np.int64)
    for pattern in np.unique(seen, axis=0):
        rows = np.flatnonzero((seen == pattern).all(axis=1))
        kept = [column for column, here in zip(COLUMNS, pattern, strict=True) if here]
        levels = np.where(pattern, factors[rows], 0)
        # Rounding keeps ties ties: means of the same numbers in another order differ in the last bits.
        answers[rows] = posterior(kept, label_noise=label_noise).round(12)[tuple(levels.T)].argmax(axis=-1)
    return answers


def check_missing(missing: float) -> float:
    """The same number.

    Raises:
        ConfigError: it is not in [0, 1).
    """
    if not 0 <= missing < 1:
        raise ConfigError("`missing` is out of range", expected="a probability in [0, 1)", came=repr(missing))
    return float(missing)


def check_noise(label_noise: float) -> float:
    """The same number.

    Raises:
        ConfigError: it is not in [0, 1/2]; beyond 1/2 the right label would be the less likely one.
    """
    if not 0 <= label_noise <= 0.5:
        raise ConfigError("`label_noise` is out of range", expected="a probability in [0, 1/2]", came=repr(label_noise))
    return float(label_noise)


def _named(columns: Iterable[str]) -> frozenset[str]:
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
