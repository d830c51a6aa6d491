"""A round of labelling: fit a probe on the labels so far, choose the next rows; and rounds with known labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusetune.errors import ConfigError, nearest
from fusetune.lifecycle.labelling.pool import Pool
from fusetune.lifecycle.labelling.probe import LabelProbe
from fusetune.lifecycle.labelling.query import COLD, STRATEGIES, Candidates, choose
from fusetune.tasks.cells import sorted_labels

AUTO = "auto"
FIRST = 3
"""`auto` chooses typical rows until there are so many labels a class, on average."""
DEFAULT = "margin"
"""What `auto` chooses by after that."""


def check_strategy(name: str) -> None:
    """Refuse an unknown strategy.

    Raises:
        ConfigError: there is no such strategy.
    """
    names = [AUTO, *STRATEGIES]
    if name not in names:
        raise ConfigError(f"there is no strategy {name!r}", expected=", ".join(names), do=nearest(name, names))


def fit_probe(pool: Pool, labels: Mapping[int, str], *, seed: int) -> LabelProbe | None:
    """Return a probe of labels by position; None if they are all the same, or there are none."""
    distinct = sorted_labels(labels.values())
    return LabelProbe.fit(pool.blocks, labels, labels=distinct, seed=seed) if len(distinct) > 1 else None


def settled(strategy: str, labels: Mapping[int, str]) -> str:
    """Return the strategy of the next batch: that of `auto` depends on how many labels there are."""
    if strategy != AUTO:
        return strategy
    distinct = len(set(labels.values()))
    return DEFAULT if distinct > 1 and len(labels) >= FIRST * distinct else COLD


def choose_rows(
    pool: Pool,
    probe: LabelProbe | None,
    labels: Mapping[int, str],
    open_rows: np.ndarray,
    strategy: str,
    count: int,
    *,
    seed: int,
) -> np.ndarray:
    """Return positions of the rows to label next, in the order in which they were chosen.

    Args:
        pool: the rows.
        probe: of the labels so far; None before there is one.
        labels: so far, by position.
        open_rows: positions of the rows that may be chosen.
        strategy: a name in `STRATEGIES`.
        count: how many, 1 or more.
        seed: of the draws.
    """
    labelled = np.asarray(sorted(labels), dtype=np.int64)
    known = (None, None) if probe is None else (probe.probabilities(), probe.features)
    return choose(strategy, Candidates(pool.vectors, open_rows, labelled, *known), count, seed=seed)


@dataclass(frozen=True)
class Simulation:
    """Rounds of labelling with known labels.

    Attributes:
        strategy: by which rows were chosen.
        num_labels: (rounds,) int64, the labels after each round.
        correct: (rounds, held-out rows) bool, whether a probe of the labels so far predicts a row's label.
    """

    strategy: str
    num_labels: np.ndarray
    correct: np.ndarray

    def accuracy(self, some: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Return the accuracy after each round on some of the held-out rows, (rounds,)."""
        return np.asarray(self.correct[:, some].mean(1))

    def area(self, some: slice | np.ndarray = slice(None)) -> float:
        """Return the mean accuracy over the number of labels, by the trapezoidal rule."""
        if len(self.num_labels) < 2:
            return float(self.accuracy(some)[0])
        span = self.num_labels[-1] - self.num_labels[0]
        return float(np.trapezoid(self.accuracy(some), self.num_labels) / span)


def simulate(
    pool: Pool,
    truth: Mapping[int, str],
    held_out: np.ndarray,
    *,
    strategy: str = AUTO,
    start: str = COLD,
    counts: Sequence[int],
    seed: int = 0,
) -> Simulation:
    """Label a pool in rounds by labels that are known, and measure a probe after each.

    Args:
        pool: the rows.
        truth: the label of each row that may be chosen or is held out, by position.
        held_out: positions of rows on which the accuracy is measured and which are never chosen.
        strategy: of all rounds but the first, if no row has a label before.
        start: of the first round.
        counts: the rows of each round.
        seed: of the draws.

    Example:
        >>> simulate(pool, truth, held_out, strategy="badge", counts=[20] * 10).accuracy()[-1]  # doctest: +SKIP
        0.874
    """
    check_strategy(strategy)
    labels = dict(pool.given)
    open_rows = np.setdiff1d([row for row in truth if row not in labels], held_out)
    right = np.asarray([truth[row] for row in held_out])
    num, correct = [], []
    probe = fit_probe(pool, labels, seed=seed)
    for number, count in enumerate(counts):
        name = start if not labels else settled(strategy, labels)
        chosen = choose_rows(pool, probe, labels, open_rows, name, count, seed=seed * 1000 + number)
        labels |= {int(row): truth[int(row)] for row in chosen}
        open_rows = np.setdiff1d(open_rows, chosen)
        probe = fit_probe(pool, labels, seed=seed)
        num.append(len(labels))
        correct.append(np.zeros(len(right), bool) if probe is None else predicted(probe, held_out) == right)
    return Simulation(strategy, np.asarray(num), np.asarray(correct))


def predicted(probe: LabelProbe, rows: np.ndarray) -> np.ndarray:
    """Return the most probable label of each row, (rows,) str."""
    return np.asarray(np.asarray(probe.labels)[probe.probabilities(rows).argmax(1)])
