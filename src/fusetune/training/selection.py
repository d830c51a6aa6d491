"""Which blocks of features a linear probe reads, and how much each weighs: decided by held-out R² in closed form.

Ridge regression on weighted blocks depends on the rows' Gram matrix alone, a sum over blocks. So leaving a block out,
or weighing it otherwise, costs one inverse of a (rows, rows) matrix at most, and every row is held out once: alone, or
with the rows of its fold where rows belong to groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

import numpy as np

MIN_SHARE = 0.05
"""No block weighs less than the root of such a share of the best block's R²."""
MAX_ROWS = 4000
"""Evenly spaced rows that say how much a block tells by itself."""
ROWS = 800
"""Evenly spaced rows that decide."""
MAX_BLOCKS = 40
"""With more blocks the weights stay as they are."""
FACTORS = (0.5, 2.0)
"""What a block's weight is tried to be multiplied by."""
MIN_GAIN, MIN_ERRORS = 2e-3, 1.0
"""R² and standard errors of the gain that another weight must gain; a block that is left out need not gain any."""
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
    """Return the best held-out R² over ridge penalties, mean over outputs that vary; 0 where nothing is told.

    In closed form: with the hat matrix H of the fit on all rows, the residuals of rows that are held out together are
    (I - H_held)^-1 times their residuals in that fit; of a row held out alone, its residual over (1 - its leverage).
    Golub, Heath and Wahba 1979, "Generalized Cross-Validation", eq. 1.2.

    Args:
        vectors: (rows, components), left singular vectors of the rows' centred features.
        squares: (components,), the squared singular values.
        targets: (rows, outputs).
        folds: (rows,) the fold that each row is held out with; None: each is held out alone.
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
            leverage = 1 / rows + (vectors**2) @ shrink  # the mean's share counts too
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
    """Return each row's share of 1 - R² when it is held out, (rows,), in the closed form of `held_out_r2`.

    Args:
        inverse: (rows, rows), of the Gram matrix of the rows' centred features + penalty * rows * I.
        targets: (rows, outputs), centred, each of which varies.
        penalty: on the squared weights, beside the mean squared error.
        folds: as in `held_out_r2`.
    """
    rows = len(inverse)
    share = penalty * rows * inverse  # I - H, but for the mean's part
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

    Attributes:
        weights: per key, what the block is multiplied by; 0: it is left out.
        errors: (rows,), see `held_out_errors`, under the best of `PENALTIES`.
    """

    def __init__(
        self,
        blocks: Mapping[K, np.ndarray],
        weights: Mapping[K, float],
        targets: np.ndarray,
        folds: np.ndarray | None,
    ) -> None:
        """
        Args:
            blocks: per key, (rows, features) float64, centred.
            weights: the first ones.
            targets, folds: as in `held_out_errors`.
        """
        self.blocks, self.weights, self.targets, self.folds = blocks, dict(weights), targets, folds
        self.gram = np.zeros((len(targets), len(targets)))
        for key, weight in weights.items():
            self.gram += weight**2 * self._product(key)
        self._settle(range(len(PENALTIES)))

    def _product(self, key: K) -> np.ndarray:
        return np.asarray(self.blocks[key] @ self.blocks[key].T)

    def _inverse(self, gram: np.ndarray) -> np.ndarray:
        return np.asarray(np.linalg.inv(gram + self.penalty * len(gram) * np.eye(len(gram))))

    def _settle(self, places: Iterable[int]) -> None:
        """Take the best of some penalties."""
        best = np.inf
        for place in places:
            self.penalty = PENALTIES[place]
            inverse = self._inverse(self.gram)
            errors = held_out_errors(inverse, self.targets, self.penalty, self.folds)
            if errors.sum() < best:
                best, self.place, self.inverse, self.errors = errors.sum(), place, inverse, errors
        self.penalty = PENALTIES[self.place]

    def tried(self, key: K, weight: float) -> np.ndarray:
        """Return the held-out errors with another weight of a block, under the present penalty."""
        factor, block = weight**2 - self.weights[key] ** 2, self.blocks[key]
        if block.shape[1] > len(block) // 4:
            inverse = self._inverse(self.gram + factor * self._product(key))
        else:  # a change of low rank (Woodbury 1950)
            half = self.inverse @ block
            inverse = self.inverse - half @ np.linalg.solve(np.eye(block.shape[1]) / factor + block.T @ half, half.T)
        return held_out_errors(inverse, self.targets, self.penalty, self.folds)

    def accept(self, key: K, weight: float) -> None:
        """Give a block another weight."""
        self.gram += (weight**2 - self.weights[key] ** 2) * self._product(key)
        self.weights[key] = weight
        self._settle(range(max(self.place - 1, 0), min(self.place + 2, len(PENALTIES))))


def column_weights(
    blocks: Mapping[K, np.ndarray], truth: np.ndarray, num_labels: int, folds: np.ndarray | None = None
) -> dict[K, float]:
    """Return how much each block weighs: the root of its held-out R² by itself, relative to the best block's.

    The weights' mean square is 1; no block weighs less than `sqrt(MIN_SHARE)` of the best.

    Args:
        blocks: per key, (rows, features).
        truth: of the rows.
        num_labels: as in `as_numbers`.
        folds: as in `held_out_r2`.
    """
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), MAX_ROWS)).astype(np.int64))
    targets, folds = as_numbers(truth[chosen], num_labels), None if folds is None else folds[chosen]
    telling = {name: block_r2(values[chosen], targets, folds) for name, values in blocks.items()}
    best = max(telling.values())
    if best <= 0:
        return dict.fromkeys(blocks, 1.0)
    shares = {name: max(value / best, MIN_SHARE) for name, value in telling.items()}
    mean = sum(shares.values()) / len(shares)
    return {name: (share / mean) ** 0.5 for name, share in shares.items()}


def block_r2(features: np.ndarray, targets: np.ndarray, folds: np.ndarray | None = None) -> float:
    """Return `held_out_r2` of (rows, features)."""
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
    """Return the blocks' weights after one pass over them, the least heavy first; 0 for a block that is left out.

    A block is left out where the held-out R² of the others is no lower without it; else its weight is halved or
    doubled where that gains `MIN_GAIN` and more than `MIN_ERRORS` standard errors. The last block stays.

    Args:
        blocks: per key, (rows, features).
        weights: per key, what the block is multiplied by.
        targets: (rows, outputs).
        folds: as in `held_out_r2`.
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
        if not last and ridge.tried(key, 0.0).sum() <= ridge.errors.sum():
            ridge.accept(key, 0.0)
            continue
        before = ridge.weights[key]
        for factor in FACTORS:
            gain = ridge.errors - ridge.tried(key, factor * before)
            if gain.sum() > max(MIN_GAIN, MIN_ERRORS * float(gain.std()) * len(gain) ** 0.5):
                ridge.accept(key, factor * before)
                break
    return ridge.weights


def _thin_svd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    """Left vectors and singular values of a tall matrix, by its small Gram matrix."""
    squares, vectors = np.linalg.eigh(x.T @ x)
    kept = squares > 1e-10 * max(float(squares[-1]), 1e-300)
    values = np.sqrt(squares[kept])
    return x @ vectors[:, kept] / values, values, None
