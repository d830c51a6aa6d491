"""Confident learning: how many labels are wrong, and which, from probabilities of models that did not see them.

Shapes: rows (n), classes (k). `truth` holds the given labels as class indices, (n,) int64; `probabilities` is (n, k),
each row predicted by a model that has not seen its label.

Reference:
    Northcutt, Jiang & Chuang 2021, Confident learning: estimating uncertainty in dataset labels, arXiv 1911.00068.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

DRAWS = 400
"""Bootstrap draws of an interval."""
SLACK = 1e-6
"""Rounding that a probability may lie below its threshold."""


@dataclass(frozen=True)
class WrongLabels:
    """The estimated number of wrong labels, with its 95 % bootstrap interval over the rows."""

    value: float
    low: float
    high: float


def thresholds(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the mean probability of each class over the rows that are labelled so, (k,); infinity without rows."""
    counts = np.bincount(truth, minlength=probabilities.shape[1])
    own = np.bincount(truth, probabilities[np.arange(len(truth)), truth], minlength=probabilities.shape[1])
    return np.where(counts > 0, own / np.maximum(counts, 1), np.inf)


def confident_classes(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return each row's confident class, (n,) int64: the one whose threshold its probability reaches; -1 for none.

    Of several it is the most probable class of the row.

    Example:
        >>> truth, probabilities = np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
        >>> confident_classes(truth, probabilities)
        array([0, 1, 1])
    """
    reached = probabilities >= thresholds(truth, probabilities) - SLACK
    num = reached.sum(1)
    return np.where(num > 1, probabilities.argmax(1), np.where(num == 1, reached.argmax(1), -1))


def confident_joint(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the joint counts of given and true labels, (k, k) float64: given down, true across.

    Rows are counted under their confident class. Each line is then scaled to the number of rows with its label, so that
    the counts add up to n.
    """
    return _joint(truth, confident_classes(truth, probabilities), probabilities.shape[1])


def _joint(truth: np.ndarray, confident: np.ndarray, num: int) -> np.ndarray:
    known = confident >= 0
    counts = np.bincount(truth[known] * num + confident[known], minlength=num * num).reshape(num, num).astype(float)
    np.fill_diagonal(counts, np.maximum(np.diag(counts), 1))
    return np.asarray(counts / counts.sum(1, keepdims=True) * np.bincount(truth, minlength=num)[:, None])


def wrong_labels(truth: np.ndarray, probabilities: np.ndarray, *, seed: int = 0) -> WrongLabels:
    """Estimate how many labels are wrong: the sum of the confident joint beside its diagonal.

    The interval is over rows drawn again, with their probabilities unchanged: it does not cover the mistakes of the
    model, which counts a hard row as a wrong label where it is confident of another one.

    Args:
        truth, probabilities: see the module.
        seed: of the bootstrap.
    """
    num = probabilities.shape[1]

    def count(rows: np.ndarray) -> float:
        joint = confident_joint(truth[rows], probabilities[rows])
        return float(joint.sum() - np.trace(joint))

    rng = np.random.default_rng(seed)
    drawn = [count(rng.integers(len(truth), size=len(truth))) for _ in range(DRAWS)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if num > 1 else (math.nan, math.nan)
    return WrongLabels(count(np.arange(len(truth))), float(low), float(high))


def self_confidence(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the probability of each given label, (n,), in [0, 1]: low where it is likely wrong."""
    return np.asarray(probabilities[np.arange(len(truth)), truth])


def best_other(truth: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the most probable label besides the given one, (n,), and its probability, (n,)."""
    others = probabilities.copy()
    others[np.arange(len(truth)), truth] = -np.inf
    return others.argmax(1), others.max(1)
