"""Metrics of pairs: correlations with graded scores, and decisions whether a pair is related."""

from __future__ import annotations

import numpy as np

from fusetune.tasks.metrics import average_precision, confusion, pearson, ranks, roc_auc

TINY = 1e-12


def correlations(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return spearman and pearson; NaN if the scores or the truth are constant.

    Args:
        scores: (rows,).
        truth: (rows,).
        weights: (rows,) or None; see `ranks` for those of Spearman's correlation.
    """
    scores, truth = np.asarray(scores, dtype=float), np.asarray(truth, dtype=float)
    sizes = np.ones(len(truth)) if weights is None else weights
    return {
        "spearman": pearson(ranks(scores, sizes), ranks(truth, sizes), sizes),
        "pearson": pearson(scores, truth, sizes),
    }


def decided_pairs(
    scores: np.ndarray, decided: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Return average_precision, roc_auc, f1 and accuracy of a binary decision with a score.

    Args:
        scores: (rows,), higher for the positive class.
        decided: (rows,) of 0 and 1.
        truth: (rows,) of 0 and 1.
        weights: (rows,) or None.
    """
    table = confusion(decided, truth, 2, weights)
    total, predicted, real = table.sum(), table[:, 1].sum(), table[1].sum()
    return {
        "average_precision": average_precision(scores, truth, weights),
        "roc_auc": roc_auc(scores, truth, weights),
        "f1": float(2 * table[1, 1] / max(predicted + real, TINY)) if total > 0 else float("nan"),
        "accuracy": float(np.trace(table) / total) if total > 0 else float("nan"),
    }


def best_f1_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold of the highest F1, halfway between two scores; NaN unless both classes have rows.

    Of equal F1, the highest threshold is taken.

    Args:
        scores: (rows,), higher for the positive class; rows that reach the threshold are positive.
        truth: (rows,) of 0 and 1.
    """
    if not 0 < truth.sum() < len(truth):
        return float("nan")
    values, group = np.unique(-scores, return_inverse=True)
    values = -values  # from high to low
    related = np.cumsum(np.bincount(group, truth))  # at or above each value
    at = int(np.argmax(2 * related / (np.cumsum(np.bincount(group)) + truth.sum())))
    return float(values[at] if at + 1 == len(values) else (values[at] + values[at + 1]) / 2)
