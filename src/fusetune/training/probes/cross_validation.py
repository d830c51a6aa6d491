"""Choose a linear probe's blocks and penalty by cross-validation, for small tables.

A small validation split is noisy: on a hundred rows, an accuracy has a standard error of some four points.
Cross-validation over train and validation rows uses several times as many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from fusetune.data.examples import Examples
from fusetune.data.folds import fold_of
from fusetune.tasks.abilities import Probed

MAX_ROWS = 1500
"""With this number of train and validation rows or more, validation rows alone decide."""
NESTED_ROWS = 600
"""With this number of rows or more, blocks and weights are chosen once for all folds: fewer rows overfit them."""
FOLDS = 5
PATIENCE = 4
"""Number of weaker penalties to try after the best one."""


class Labelled(Protocol):
    """The labelled rows of one split; see `fusetune.training.probes.probe.SplitRows`."""

    examples: Examples
    indices: np.ndarray
    truth: np.ndarray


S = TypeVar("S", bound=Labelled)


@dataclass(frozen=True)
class Pool(Generic[S]):
    """The rows by which a probe's blocks and penalty are chosen.

    Attributes:
        splits: the train rows, followed by the validation rows if these take part.
        truth: (rows, ...), the targets of all.
        folds: (rows,) the fold of each; the rows of a group are in one.
        grouped: whether rows belong to groups.
    """

    splits: Sequence[S]
    truth: np.ndarray
    folds: np.ndarray
    grouped: bool

    @classmethod
    def of(cls, splits: Sequence[S]) -> Pool[S]:
        """Pool splits. Groups of different splits count as different: a split holds its groups whole."""
        groups, start = [], 0
        for split in splits:
            codes = np.asarray(split.examples.groups[split.indices], dtype=np.int64)
            groups.append(np.where(codes < 0, -1, codes + start))
            start += int(codes.max(initial=-1)) + 1
        together = np.concatenate(groups)
        truth = joined([split.truth for split in splits])
        return cls(splits, truth, fold_of(together, FOLDS, seed=0), bool((together >= 0).any()))

    @property
    def held_together(self) -> np.ndarray | None:
        """The folds if rows must be held out with their group; None if each row can be held out alone."""
        return self.folds if self.grouped else None


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate arrays of rows; a single one is not copied."""
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def best_penalty(
    task: Probed,
    features: Callable[[np.ndarray], np.ndarray],
    truth: np.ndarray,
    weights: np.ndarray,
    folds: np.ndarray,
) -> tuple[int, float]:
    """Return the index of the best penalty in `Probed.linear_path`, and the score of its held-out predictions.

    The arguments are those of `out_of_fold`.
    """
    best = out_of_fold(task, features, truth, weights, folds)
    return best.index, best.value


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of rows by models of the other folds.

    Attributes:
        index: of the penalty in `Probed.linear_path`.
        value: the first number of `Probed.linear_score`.
        scores: (rows, ...) as `TargetTask.answers` returns them.
    """

    index: int
    value: float
    scores: np.ndarray


def out_of_fold(
    task: Probed,
    features: Callable[[np.ndarray], np.ndarray],
    truth: np.ndarray,
    weights: np.ndarray,
    folds: np.ndarray,
) -> OutOfFold:
    """Predict every row by a linear model of the other folds, under the penalty that does so best.

    Every penalty is scored by `Probed.linear_score` on all rows. Weaker penalties are tried until `PATIENCE` of them
    are no better than the best.

    Args:
        task: fitted.
        features: returns (rows, features) of all rows, with blocks and weights chosen on the rows at these positions.
        truth: (rows, ...) from `TargetTask.truth`.
        weights: (rows,) row weights.
        folds: (rows,) indices of folds, from 0.
    """
    held, known, paths = [], [], []
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds != fold)
        held.append(np.flatnonzero(folds == fold))
        matrix = features(rows)
        known.append(matrix[held[-1]])
        paths.append(task.linear_path(matrix[rows], truth[rows], weights[rows]))
    order = np.argsort(np.concatenate(held))
    best, best_score = OutOfFold(0, -np.inf, np.zeros(0)), (-np.inf, -np.inf)
    for index, models in enumerate(zip(*(path.models for path in paths), strict=True)):
        scores = np.concatenate([model.scores(rows) for model, rows in zip(models, known, strict=True)])[order]
        if (score := task.linear_score(scores, truth)) > best_score or not len(best.scores):
            best, best_score = OutOfFold(index, score[0], scores), score
        elif index - best.index >= PATIENCE:
            break
    return best
