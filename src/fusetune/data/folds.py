"""Folds for cross-validation."""

from __future__ import annotations

import numpy as np


def fold_of(groups: np.ndarray, folds: int, *, seed: int) -> np.ndarray:
    """Return each row's fold: drawn at random, folds of like size, the rows of a group in one fold.

    Args:
        groups: (rows,) int64, -1 for a row of no group.
        folds: the most folds; as many as there are rows or groups if those are fewer, and at least 2.
        seed: of the draw.

    Returns:
        (rows,) int64.
    """
    own = np.where(groups < 0, -1 - np.arange(len(groups)), groups)
    units, unit_of = np.unique(own, return_inverse=True)
    parts = np.arange(len(units)) % max(2, min(folds, len(units)))
    return np.asarray(np.random.default_rng(seed).permutation(parts)[unit_of])
