"""The accuracy on unlabelled rows, estimated from a model's confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fusetune.lifecycle.sample import Sample
from fusetune.tasks.abilities import Labelled
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
        value: the estimate for the new rows.
        low, high: its 95 % bootstrap interval, over held-out and new rows.
        error: the mean absolute error of such estimates between random halves of the held-out rows. It holds where
            inputs change and what they mean does not.
        measured: the accuracy on the new rows' labels; NaN if they have none.
    """

    target: str
    held_out: float
    value: float
    low: float
    high: float
    error: float
    measured: float = math.nan


def estimate_accuracy(task: TargetTask, name: str, old: Sample, now: Sample, *, seed: int) -> Estimate | None:
    """Estimate the accuracy on new rows by the average thresholded confidence (ATC).

    The threshold is the confidence above which lies a share of the held-out rows that equals their accuracy; the
    estimate is the share of new rows above it.

    Args:
        task: of labels; None is returned for others.
        name: of the task.
        old: labelled held-out rows.
        now: new rows, labelled or not.
        seed: of the bootstrap.

    Returns:
        The estimate, or None if there are too few labelled held-out rows.

    Reference:
        Garg et al. 2022, Leveraging unlabeled data to predict out-of-distribution performance, arXiv 2201.04234.
    """
    scores = now.scores[name]
    if not isinstance(task, Labelled) or scores.ndim != 2 or not old.labelled or task.decide(scores).ndim != 1:
        return None
    correct, confidence = _correct(task, name, old)
    if len(correct) < MIN_ROWS:
        return None
    new = _confidence(task, scores)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        rows = rng.integers(len(correct), size=len(correct))
        drawn.append(thresholded(confidence[rows], correct[rows], new[rng.integers(len(new), size=len(new))]))
    errors = []
    for _ in range(DRAWS // 4):
        half = rng.permutation(len(correct))
        one, other = half[: len(half) // 2], half[len(half) // 2 :]
        errors.append(abs(thresholded(confidence[one], correct[one], confidence[other]) - correct[other].mean()))
    low, high = np.percentile(drawn, [2.5, 97.5])
    measured = _correct(task, name, now)[0] if now.labelled else np.zeros(0)
    return Estimate(
        task.target,
        float(correct.mean()),
        thresholded(confidence, correct, new),
        float(low),
        float(high),
        float(np.mean(errors)),
        float(measured.mean()) if len(measured) else math.nan,
    )


def thresholded(confidence: np.ndarray, correct: np.ndarray, new: np.ndarray) -> float:
    """Return the share of new rows above the threshold that the held-out rows give; see `estimate_accuracy`.

    Args:
        confidence: (rows,) of the held-out rows, in [0, 1].
        correct: (rows,) bool, whether their decisions are right.
        new: (new rows,) confidence, in [0, 1].

    Example:
        >>> thresholded(np.array([0.5, 0.6, 0.9, 1.0]), np.array([0, 0, 1, 1]), np.array([0.55, 0.95]))
        0.5
    """
    wrong = int(len(correct) - np.count_nonzero(correct))
    if wrong == 0:
        return 1.0
    threshold = np.sort(confidence)[wrong - 1]
    return float(np.mean(new > threshold))


def _correct(task: Labelled, name: str, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each labelled row's decision is right, and its confidence, (rows,) each."""
    examples = sample.examples
    rows = examples.labelled(name)
    scores = sample.scores[name][examples.positions(rows)]
    return task.decide(scores) == examples.truth(name, rows), _confidence(task, scores)


def _confidence(task: Labelled, scores: np.ndarray) -> np.ndarray:
    """Return the probability of each row's decision, (rows,)."""
    return np.asarray(np.take_along_axis(scores, task.decide(scores)[:, None], 1)[:, 0])
