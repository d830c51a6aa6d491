"""Which blocks of features a linear probe reads, and how much each weighs: decided by leave-one-out R² in closed form.

Ridge regression on weighted blocks depends on the rows' Gram matrix alone, a sum over blocks. So leaving a block out,
or weighing it otherwise, costs one eigendecomposition of a (rows, rows) matrix, and every train row is held out once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np

ROWS = 800
"""Evenly spaced train rows that decide."""
MAX_BLOCKS = 40
"""With more blocks the weights stay as they are."""
FACTORS = (0.5, 2.0)
"""What a block's weight is tried to be multiplied by."""
MIN_GAIN = 2e-3
"""R² that another weight must gain; a block that is left out need not gain any."""
PENALTIES = tuple(float(10.0**power) for power in np.arange(0, -6, -1))

K = TypeVar("K", bound=Hashable)


def gram_loo_r2(gram: np.ndarray, targets: np.ndarray) -> float:
    """The best leave-one-out R² over ridge penalties, mean over outputs that vary; 0 where nothing is told.

    Args:
        gram: (rows, rows), inner products of the rows' centred features.
        targets: (rows, outputs).
    """
    y = targets - targets.mean(0)
    y = y[:, (y**2).sum(0) > 0]
    rows = len(y)
    if rows < 3 or not y.shape[1]:
        return 0.0
    squares, vectors = np.linalg.eigh(gram)
    squares = np.maximum(squares, 0)
    projected = vectors.T @ y
    best = 0.0
    for penalty in PENALTIES:
        shrink = squares / (squares + penalty * rows)
        residual = y - vectors @ (shrink[:, None] * projected)
        leverage = 1 / rows + (vectors**2) @ shrink  # the mean's share counts too
        loo = residual / np.maximum(1 - leverage, 1e-6)[:, None]
        best = max(best, float(np.mean(1 - (loo**2).sum(0) / (y**2).sum(0))))
    return best


def select(blocks: Mapping[K, np.ndarray], weights: Mapping[K, float], targets: np.ndarray) -> dict[K, float]:
    """The blocks' weights after one pass over them, the least heavy first; 0 for a block that is left out.

    A block is left out where the leave-one-out R² of the others is no lower without it; else its weight is halved or
    doubled where that gains `MIN_GAIN`. The last block stays.

    Args:
        blocks: per key, (rows, features).
        weights: per key, what the block is multiplied by.
        targets: (rows, outputs).
    """
    if not 1 < len(blocks) <= MAX_BLOCKS:
        return dict(weights)
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(len(targets), ROWS)).astype(np.int64))
    grams = {}
    for key, values in blocks.items():
        x = np.asarray(values[chosen], dtype=np.float64)
        x -= x.mean(0)
        grams[key] = x @ x.T
    found, y = dict(weights), targets[chosen]
    total = sum((found[key] ** 2 * gram for key, gram in grams.items()), np.zeros((len(chosen), len(chosen))))
    best = gram_loo_r2(total, y)
    if best <= 0:
        return found
    for key in sorted(blocks, key=lambda key: weights[key]):
        others = total - found[key] ** 2 * grams[key]
        if sum(weight > 0 for weight in found.values()) > 1 and (without := gram_loo_r2(others, y)) >= best:
            found[key], total, best = 0.0, others, without
            continue
        before = found[key]
        for factor in FACTORS:
            tried = others + (factor * before) ** 2 * grams[key]
            if (value := gram_loo_r2(tried, y)) > best + MIN_GAIN:
                found[key], total, best = factor * before, tried, value
    return found
