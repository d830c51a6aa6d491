"""Select and weight the blocks of features of a linear probe, by held-out R² in closed form.

Ridge regression on weighted blocks depends only on the rows' Gram matrix, which is a sum over blocks. So leaving a
block out, or changing its weight, costs at most one inverse of a (rows, rows) matrix. Every row is held out once:
alone, or with the rows of its fold if rows belong to groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

import numpy as np

MIN_SHARE = 0.05
"""The weight of a block is at least the root of this share of the best block's R²."""
MAX_ROWS = 4000
"""Maximum number of rows, evenly spaced, for the R² of a single block."""
ROWS = 800
"""Maximum number of rows, evenly spaced, for the selection."""
MAX_BLOCKS = 40
"""With more blocks, the weights are not changed."""
FACTORS = (0.5, 2.0)
"""The factors that are tried on a block's weight."""
MIN_GAIN, MIN_ERRORS = 2e-3, 1.0
"""Minimum gain of another weight, in R² and in standard errors; leaving a block out needs no gain."""
PENALTIES = tuple(float(10.0**power) for power in np.arange(0, -6, -1))

K = TypeVar("K", bound=Hashable)


def as_numbers(truth: np.ndarray, num_labels: int) -> np.ndarray:
    """Return truth as (rows, outputs) numbers: one-hot classes, 0/1 labels, or the numbers themselves."""
    if truth.ndim == 2:
        return truth.astype(np.float64)
    if num_labels:
        return np.asarray(np.eye(num_labels)[truth])
    return truth.astype(np.float64)[:, None]


def held_out_r2(
    vectors: np.ndarray, squares: np.ndarray, targets: np.ndarray, folds: np.ndarray | None = None
) -> float:
    """Return the best held-out R² over ridge penalties, the mean over outputs that vary; at least 0.

    With the hat matrix H of the fit on all rows, the residuals of rows that are held out together are (I - H_held)^-1
    times their residuals in that fit; that of a row held out alone is its residual / (1 - its leverage). Golub, Heath
    and Wahba 1979, "Generalized Cross-Validation", eq. 1.2.

    Args:
        vectors: (rows, components), left singular vectors of the rows' centred features.
        squares: (components,), the squared singular values.
        targets: (rows, outputs).
        folds: (rows,) the fold that each row is held out with. None: each row is held out alone.
    """
    y = targets - targets.mean(0)
    y = y[:, (y**2).sum(0) > 0]
    rows = len(y)
    if rows < 3 or not y.shape[1]:
        return 0.0
    projected, total = vectors.T @ y, (y**2).sum(0)
    together = None if folds is None else [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    best = 0.0
    for penalty in PENALTIES:
        shrink = squares / (squares + penalty * rows)
        residual = y - vectors @ (shrink[:, None] * projected)
        if together is None:
            leverage = 1 / rows + (vectors**2) @ shrink  # including that of the mean
            residual /= np.maximum(1 - leverage, 1e-6)[:, None]
        else:
            for held in together:
                hat = (vectors[held] * shrink) @ vectors[held].T + 1 / rows
                residual[held] = np.linalg.solve((1 + 1e-6) * np.eye(len(held)) - hat, residual[held])
        best = max(best, float(np.mean(1 - (residual**2).sum(0) / total)))
    return best


def held_out_errors(
    inverse: np.ndarray, targets: np.ndarray, penalty: float, folds: np.ndarray | None = None
) -> np.ndarray:
    """Return each row's part of 1 - R² when it is held out, (rows,), in the closed form of `held_out_r2`.

    Args:
        inverse: (rows, rows), the inverse of the Gram matrix of the rows' centred features + penalty * rows * I.
        targets: (rows, outputs), centred, none of them constant.
        penalty: factor of the squared weights, added to the mean squared error.
        folds: see `held_out_r2`.
    """
    rows = len(inverse)
    share = penalty * rows * inverse  # I - H, without the part of the mean
    residual = share @ targets
    if folds is None:
        residual /= np.maximum(np.diag(share) - 1 / rows, 1e-6)[:, None]
    else:
        for fold in np.unique(folds):
            held = np.flatnonzero(folds == fold)
            left = share[np.ix_(held, held)] - 1 / rows + 1e-6 * np.eye(len(held))
            residual[held] = np.linalg.solve(left, residual[held])
    return np.asarray((residual**2 / (targets**2).sum(0)).mean(1))


class _WeightedRidge(Generic[K]):
    """Ridge regression on weighted blocks, with the held-out errors of the present weights.

    Args:
        blocks: by key, (rows, features) float64, centred.
        weights: by key, the initial weight.
        targets, folds: see `held_out_errors`.

    Attributes:
        weights: by key, the factor of the block; 0 for a block that is left out.
        errors: (rows,), see `held_out_errors`, with the best of `PENALTIES`.
    """

    def __init__(
        self,
        blocks: Mapping[K, np.ndarray],
        weights: Mapping[K, float],
        targets: np.ndarray,
        folds: np.ndarray | None,
    ) -> None:
        self.blocks, self.weights, self.targets, self.folds = blocks, dict(weights), targets, folds
        self.gram = np.zeros((len(targets), len(targets)))
        for key, weight in weights.items():
            self.gram += weight**2 * self._product(key)
        self._choose_penalty(range(len(PENALTIES)))

    def _product(self, key: K) -> np.ndarray:
        return np.asarray(self.blocks[key] @ self.blocks[key].T)

    def _inverse(self, gram: np.ndarray) -> np.ndarray:
        return np.asarray(np.linalg.inv(gram + self.penalty * len(gram) * np.eye(len(gram))))

    def _choose_penalty(self, indices: Iterable[int]) -> None:
        """Choose the best of some of the `PENALTIES`, by index."""
        best = np.inf
        for index in indices:
            self.penalty = PENALTIES[index]
            inverse = self._inverse(self.gram)
            errors = held_out_errors(inverse, self.targets, self.penalty, self.folds)
            if errors.sum() < best:
                best, self.index, self.inverse, self.errors = errors.sum(), index, inverse, errors
        self.penalty = PENALTIES[self.index]

    def errors_with(self, key: K, weight: float) -> np.ndarray:
        """Return the held-out errors with another weight of a block and the present penalty."""
        factor, block = weight**2 - self.weights[key] ** 2, self.blocks[key]
        if block.shape[1] > len(block) // 4:
            inverse = self._inverse(self.gram + factor * self._product(key))
        else:  # a low-rank update (Woodbury 1950)
            half = self.inverse @ block
            inverse = self.inverse - half @ np.linalg.solve(np.eye(block.shape[1]) / factor + block.T @ half, half.T)
        return held_out_errors(inverse, self.targets, self.penalty, self.folds)

    def accept(self, key: K, weight: float) -> None:
        """Change a block's weight."""
        self.gram += (weight**2 - self.weights[key] ** 2) * self._product(key)
        self.weights[key] = weight
        self._choose_penalty(range(max(self.index - 1, 0), min(self.index + 2, len(PENALTIES))))


def column_weights(
    blocks: Mapping[K, np.ndarray], truth: np.ndarray, num_labels: int, folds: np.ndarray | None = None
) -> dict[K, float]:
    """Return the weight of each block: the root of its own held-out R², relative to the best block's.

    The mean square of the weights is 1. No weight is below `sqrt(MIN_SHARE)` times the best one.

    Args:
        blocks: by key, (rows, features).
        truth: (rows, ...) from `TargetTask.truth`.
        num_labels: see `as_numbers`.
        folds: see `held_out_r2`.
    """
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), MAX_ROWS)).astype(np.int64))
    targets, folds = as_numbers(truth[chosen], num_labels), None if folds is None else folds[chosen]
    r2_by_key = {name: block_r2(values[chosen], targets, folds) for name, values in blocks.items()}
    best = max(r2_by_key.values())
    if best <= 0:
        return dict.fromkeys(blocks, 1.0)
    shares = {name: max(value / best, MIN_SHARE) for name, value in r2_by_key.items()}
    mean = sum(shares.values()) / len(shares)
    return {name: (share / mean) ** 0.5 for name, share in shares.items()}


def block_r2(features: np.ndarray, targets: np.ndarray, folds: np.ndarray | None = None) -> float:
    """Return the result of `held_out_r2` for (rows, features)."""
    x = features.astype(np.float64)
    x -= x.mean(0)
    left, values, _ = np.linalg.svd(x, full_matrices=False) if x.shape[0] < x.shape[1] else _thin_svd(x)
    return held_out_r2(left, values**2, targets, folds)


def select(
    blocks: Mapping[K, np.ndarray],
    weights: Mapping[K, float],
    targets: np.ndarray,
    folds: np.ndarray | None = None,
) -> dict[K, float]:
    """Return the blocks' weights after one pass over them, from the smallest weight; 0 for a block that is left out.

    A block is left out if the held-out R² is no lower without it. Otherwise its weight is halved or doubled if that
    gains `MIN_GAIN` and more than `MIN_ERRORS` standard errors. At least one block remains.

    Args:
        blocks: by key, (rows, features).
        weights: by key, the factor of the block.
        targets: (rows, outputs).
        folds: see `held_out_r2`.
    """
    if not 1 < len(blocks) <= MAX_BLOCKS:
        return dict(weights)
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(len(targets), ROWS)).astype(np.int64))
    y = targets[chosen] - targets[chosen].mean(0)
    y = y[:, (y**2).sum(0) > 0]
    if not y.shape[1]:
        return dict(weights)
    centred = {}
    for key, values in blocks.items():
        x = np.asarray(values[chosen], dtype=np.float64)
        centred[key] = x - x.mean(0)
    ridge = _WeightedRidge(centred, weights, y, None if folds is None else folds[chosen])
    if ridge.errors.sum() >= 1:
        return dict(weights)
    for key in sorted(blocks, key=lambda key: weights[key]):
        last = sum(weight > 0 for weight in ridge.weights.values()) == 1
        if not last and ridge.errors_with(key, 0.0).sum() <= ridge.errors.sum():
            ridge.accept(key, 0.0)
            continue
        before = ridge.weights[key]
        for factor in FACTORS:
            gain = ridge.errors - ridge.errors_with(key, factor * before)
            if gain.sum() > max(MIN_GAIN, MIN_ERRORS * float(gain.std()) * len(gain) ** 0.5):
                ridge.accept(key, factor * before)
                break
    return ridge.weights


def _thin_svd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    """Return the left singular vectors and the singular values of a tall matrix, from its small Gram matrix."""
    squares, vectors = np.linalg.eigh(x.T @ x)
    retained = squares > 1e-10 * max(float(squares[-1]), 1e-300)
    values = np.sqrt(squares[retained])
    return x @ vectors[:, retained] / values, values, None
