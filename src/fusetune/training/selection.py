"""Which blocks of features a linear probe reads, and how much each weighs: decided by held-out R² in closed form.

Ridge regression on weighted blocks depends on the rows' Gram matrix alone, a sum over blocks. So leaving a block out,
or weighing it otherwise, costs one eigendecomposition of a (rows, rows) matrix, and every row is held out once: alone,
or with the rows of its fold where rows belong to groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

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
    gram: np.ndarray, targets: np.ndarray, penalty: float, folds: np.ndarray | None = None
) -> np.ndarray:
    """Return each row's share of 1 - R² when it is held out, (rows,), in the closed form of `held_out_r2`.

    Args:
        gram: (rows, rows), inner products of the rows' centred features.
        targets: (rows, outputs), centred, each of which varies.
        penalty: on the squared weights, beside the mean squared error.
        folds: as in `held_out_r2`.
    """
    rows = len(gram)
    share = penalty * rows * np.linalg.inv(gram + penalty * rows * np.eye(rows))  # I - H, but for the mean's part
    residual = share @ targets
    if folds is None:
        residual /= np.maximum(np.diag(share) - 1 / rows, 1e-6)[:, None]
    else:
        for fold in np.unique(folds):
            held = np.flatnonzero(folds == fold)
            left = share[np.ix_(held, held)] - 1 / rows + 1e-6 * np.eye(len(held))
            residual[held] = np.linalg.solve(left, residual[held])
    return np.asarray((residual**2 / (targets**2).sum(0)).mean(1))


def lowest_errors(
    gram: np.ndarray, targets: np.ndarray, folds: np.ndarray | None, places: Iterable[int]
) -> tuple[np.ndarray, int]:
    """Return `held_out_errors` under the best of some penalties, and its place in `PENALTIES`."""
    errors = {place: held_out_errors(gram, targets, PENALTIES[place], folds) for place in places}
    best = min(errors, key=lambda place: float(errors[place].sum()))
    return errors[best], best


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
    grams = {}
    for key, values in blocks.items():
        x = np.asarray(values[chosen], dtype=np.float64)
        x -= x.mean(0)
        grams[key] = x @ x.T
    found, folds = dict(weights), None if folds is None else folds[chosen]
    y = targets[chosen] - targets[chosen].mean(0)
    y = y[:, (y**2).sum(0) > 0]
    if not y.shape[1]:
        return found
    total = sum((found[key] ** 2 * gram for key, gram in grams.items()), np.zeros((len(chosen), len(chosen))))
    errors, place = lowest_errors(total, y, folds, range(len(PENALTIES)))
    if errors.sum() >= 1:
        return found
    for key in sorted(blocks, key=lambda key: weights[key]):
        others, before = total - found[key] ** 2 * grams[key], found[key]
        for factor in (0.0, *FACTORS):
            if not factor and sum(weight > 0 for weight in found.values()) < 2:
                continue
            tried = others + (factor * before) ** 2 * grams[key]
            near = range(max(place - 1, 0), min(place + 2, len(PENALTIES)))
            tried_errors, tried_place = lowest_errors(tried, y, folds, near)
            gain = errors - tried_errors
            least = max(MIN_GAIN, MIN_ERRORS * float(gain.std()) * len(gain) ** 0.5) if factor else 0.0
            if gain.sum() >= least:
                found[key], total, errors, place = factor * before, tried, tried_errors, tried_place
                if not factor:
                    break
    return found


def _thin_svd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    """Left vectors and singular values of a tall matrix, by its small Gram matrix."""
    squares, vectors = np.linalg.eigh(x.T @ x)
    kept = squares > 1e-10 * max(float(squares[-1]), 1e-300)
    values = np.sqrt(squares[kept])
    return x @ vectors[:, kept] / values, values, None
