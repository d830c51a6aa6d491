"""Thresholds from which on a label is given."""

from __future__ import annotations

import numpy as np


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold with the best F1, half way between two neighbouring scores; 0.5 without positive rows.

    Args:
        scores: (rows,) probabilities.
        truth: (rows,) of 0 and 1.
    """
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(truth) + 1) + truth.sum())
    f1[np.append(np.diff(ranked) == 0, False)] = -1  # equal scores cannot be parted
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float(max((ranked[best] + below) / 2, np.finfo(float).tiny))
