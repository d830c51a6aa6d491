"""What the report's detail figures are drawn from: per class, confusion, ROC and PR curves, regression fit."""

from __future__ import annotations

import math

import numpy as np
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_curve,
)

from fusetune.evaluation.details import ClassRow, Confusion, Curve, DecileSpread, NumberFit

MAX_CURVES = 10
MAX_POINTS = 120
MAX_SCATTER = 1000


def as_matrix(truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Class indices as a (rows, classes) 0/1 matrix; such a matrix as it is."""
    matrix: np.ndarray = truth if truth.ndim == 2 else np.eye(num_classes, dtype=np.int64)[truth]
    return matrix


def per_class(
    scores: np.ndarray,
    predicted: np.ndarray,
    truth: np.ndarray,
    labels: list[str],
    weights: np.ndarray | None = None,
) -> list[ClassRow]:
    """Precision, recall, F1 and average precision of each class.

    Args:
        scores: (rows, classes) probabilities.
        predicted, truth: (rows,) class indices, or (rows, classes) 0/1.
        labels: class names.
        weights: (rows,) as in the task's metrics; the support counts rows whatever they weigh.

    Returns:
        A row a class in the order of `labels`. Without a row of the class, recall and AP are nan; without a
        prediction of it, precision is nan.
    """
    actual, guess = as_matrix(truth, len(labels)), as_matrix(predicted, len(labels))
    precision, recall, f1, _ = precision_recall_fscore_support(
        actual, guess, average=None, zero_division=np.nan, sample_weight=weights
    )
    support = actual.sum(axis=0)
    weight = support if weights is None else weights @ actual
    return [
        ClassRow(
            label,
            int(support[index]),
            float(precision[index]),
            float(recall[index]),
            float(f1[index]),
            float(average_precision_score(actual[:, index], scores[:, index], sample_weight=weights))
            if weight[index] > 0
            else math.nan,
        )
        for index, label in enumerate(labels)
    ]


def confusion(predicted: np.ndarray, truth: np.ndarray) -> Confusion:
    """Counts of (truth, prediction), (rows,) class indices each."""
    pairs, counts = np.unique(np.stack([truth, predicted], axis=1), axis=0, return_counts=True)
    return Confusion([[int(a), int(b), int(num)] for (a, b), num in zip(pairs, counts, strict=True)])


def curves(scores: np.ndarray, truth: np.ndarray, labels: list[str]) -> tuple[list[Curve], list[Curve]]:
    """ROC and PR curves: of the second class for two classes, else of the (at most 10) most frequent classes.

    Classes that all rows or no row have are left out.
    """
    actual = as_matrix(truth, len(labels))
    rates = actual.mean(axis=0) if len(actual) else np.zeros(len(labels))
    defined = [index for index in range(len(labels)) if 0 < rates[index] < 1]
    chosen = [1] if len(labels) == 2 and truth.ndim == 1 else sorted(defined, key=lambda i: -rates[i])[:MAX_CURVES]
    roc, pr = [], []
    for index in sorted(set(chosen) & set(defined)):
        one, score = actual[:, index], scores[:, index]
        false, true, _ = roc_curve(one, score)
        roc.append(_thin(labels[index], false, true, float(auc(false, true)), float(rates[index])))
        precision, recall, _ = precision_recall_curve(one, score)
        area = float(average_precision_score(one, score))
        pr.append(_thin(labels[index], recall[::-1], precision[::-1], area, float(rates[index])))
    return roc, pr


def _thin(label: str, x: np.ndarray, y: np.ndarray, area: float, rate: float) -> Curve:
    """The curve with at most `MAX_POINTS` of its points, evenly spaced along its length."""
    if len(x) > MAX_POINTS:
        along = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
        kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], MAX_POINTS)).clip(0, len(x) - 1))
        x, y = x[kept], y[kept]
    return Curve(label, [round(float(v), 4) for v in x], [round(float(v), 4) for v in y], area, rate)


def number_fit(predicted: np.ndarray, truth: np.ndarray, *, seed: int = 0) -> NumberFit:
    """How a regression's predictions lie to the truth, (rows,) each; at most 1000 rows are kept as points."""
    rows = len(truth)
    some = np.arange(rows)
    if rows > MAX_SCATTER:
        some = np.sort(np.random.default_rng(seed).choice(rows, MAX_SCATTER, replace=False))
    residual = predicted - truth
    counts, edges = np.histogram(residual, bins=int(np.clip(np.sqrt(rows), 5, 40)))
    spread = []
    for part in np.array_split(np.argsort(predicted, kind="stable"), min(10, rows // 5)) if rows >= 5 else []:
        low, middle, high = np.quantile(residual[part], [0.1, 0.5, 0.9])
        spread.append(DecileSpread(float(predicted[part].mean()), float(low), float(middle), float(high), len(part)))
    return NumberFit(
        [float(value) for value in truth[some]],
        [float(value) for value in predicted[some]],
        [float(value) for value in edges],
        [int(value) for value in counts],
        spread,
    )
