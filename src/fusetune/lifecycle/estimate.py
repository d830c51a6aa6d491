"""The accuracy on unlabelled rows, estimated from a model's confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fusetune.lifecycle.sample import Sample
from fusetune.tasks.base import TargetTask

DRAWS = 400
"""Bootstrap draws of an estimate's interval."""
MIN_ROWS = 30
"""The fewest labelled held-out rows for an estimate."""


@dataclass
class Estimate:
    """An estimated accuracy.

    Attributes:
        target: the column.
        held_out: the accuracy on the labelled held-out rows.
        value: the estimate for the new rows, by the difference of confidences.
        low, high: its 95 % bootstrap interval, over held-out and new rows.
        thresholded: the estimate by the average thresholded confidence.
        error: the mean absolute error of `value` between random halves of the held-out rows.
        measured: the accuracy on the new rows' labels; NaN if they have none. An unknown label's row counts as wrong.
    """

    target: str
    held_out: float
    value: float
    low: float
    high: float
    thresholded: float
    error: float
    measured: float = math.nan


def estimate_accuracy(task: TargetTask, name: str, old: Sample, now: Sample, *, seed: int) -> Estimate | None:
    """Estimate the accuracy on new rows from the model's confidence.

    Args:
        task: of labels; None is returned for others.
        name: of the task.
        old: labelled held-out rows.
        now: new rows, labelled or not.
        seed: of the bootstrap.

    Returns:
        The estimate, or None if there are too few labelled held-out rows.
    """
    told = old.correct.get(name)
    if told is None or np.isfinite(told).sum() < MIN_ROWS:
        return None
    labelled = np.isfinite(told)
    correct, confidence = told[labelled], _confidence(task, old.scores[name][labelled])
    new = _confidence(task, now.scores[name])
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        rows = rng.integers(len(correct), size=len(correct))
        drawn.append(by_difference(confidence[rows], correct[rows], new[rng.integers(len(new), size=len(new))]))
    errors = []
    for _ in range(DRAWS // 4):
        half = rng.permutation(len(correct))
        a, b = half[: len(half) // 2], half[len(half) // 2 :]
        errors.append(abs(by_difference(confidence[a], correct[a], confidence[b]) - correct[b].mean()))
    low, high = np.percentile(drawn, [2.5, 97.5])
    measured = now.correct.get(name, np.zeros(0))
    measured = measured[np.isfinite(measured)]
    return Estimate(
        task.target,
        float(correct.mean()),
        by_difference(confidence, correct, new),
        float(low),
        float(high),
        by_threshold(confidence, correct, new),
        float(np.mean(errors)),
        float(measured.mean()) if len(measured) else math.nan,
    )


def by_difference(confidence: np.ndarray, correct: np.ndarray, new: np.ndarray) -> float:
    """Return the held-out rows' accuracy plus the change of the mean confidence, in [0, 1] (DoC).

    It is exact where the model is calibrated and only the inputs change; a model that stays confident where it is wrong
    makes it too high.

    Args:
        confidence: (rows,) of the held-out rows, in [0, 1].
        correct: (rows,), whether their decisions are right: 1 or 0.
        new: (new rows,) confidence, in [0, 1].

    Example:
        >>> by_difference(np.array([0.8, 0.8]), np.array([True, False]), np.array([0.7, 0.7]))
        0.4

    Reference:
        Guillory et al. 2021, Predicting with confidence on unseen distributions, arXiv 2107.03315.
    """
    return round(float(np.clip(correct.mean() + new.mean() - confidence.mean(), 0, 1)), 12)


def by_threshold(confidence: np.ndarray, correct: np.ndarray, new: np.ndarray) -> float:
    """Return the share of new rows above the confidence above which lie as many held-out rows as are right (ATC).

    It reacts more to a fall of the confidence: too low where the model is calibrated, nearer where it is overconfident.

    Args:
        confidence, correct, new: as of `by_difference`.

    Example:
        >>> by_threshold(np.array([0.5, 0.6, 0.9, 1.0]), np.array([0, 0, 1, 1]), np.array([0.55, 0.95]))
        0.5

    Reference:
        Garg et al. 2022, Leveraging unlabeled data to predict out-of-distribution performance, arXiv 2201.04234.
    """
    wrong = int(len(correct) - np.count_nonzero(correct))
    if wrong == 0:
        return 1.0
    threshold = np.sort(confidence)[wrong - 1]
    return float(np.mean(new > threshold))


def _confidence(task: TargetTask, scores: np.ndarray) -> np.ndarray:
    """Return the probability of each row's decision, (rows,)."""
    return np.asarray(np.take_along_axis(scores, task.decide(scores)[:, None], 1)[:, 0])
