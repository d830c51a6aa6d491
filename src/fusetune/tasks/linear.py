"""Regularised linear models on fixed features: the linear probes that tuning starts from and is compared with.

The penalty sees all features alike: the caller puts them on comparable scales. A path goes through a log grid of
penalties from strong to weak, each logistic fit starting from the last one; held-out rows choose among its models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

from fusetune.data.storage.mapped import mapped_zeros, pieces
from fusetune.tasks.base import LinearModel, LinearPath

PENALTIES = tuple(float(10.0**power) for power in np.arange(-0.5, -7, -0.5))
"""Factors of |weights|² / 2, added to the mean loss of a row; scikit-learn's 1 / (C · rows)."""

RIDGE_PENALTIES = tuple(float(power) for power in 10.0 ** np.arange(3, -7.5, -0.5))
"""Factors of |weights|², added to the mean squared error; scikit-learn's alpha / rows."""


class LinearScores(LinearModel):
    """A linear model: scores = finish((features - mean) @ weight + bias).

    Args:
        mean: (features,) mean of the train rows, subtracted so that the bias is not penalised.
        weight: (features, outputs).
        bias: (outputs,).
        finish: maps (rows, outputs) to the task's answers.
    """

    def __init__(
        self, mean: np.ndarray, weight: np.ndarray, bias: np.ndarray, finish: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self.mean, self.weight, self.bias, self.finish = mean, weight, bias, finish

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the task's answers for (rows, features)."""
        parts = [features[piece] for piece in pieces(len(features))]
        return np.concatenate(
            [self.finish(((part - self.mean) @ self.weight + self.bias).astype(np.float64)) for part in parts]
        )

    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Return weight, (features, outputs), and bias, (outputs,), for features that are not centred."""
        return self.weight, self.bias - self.mean @ self.weight


def mean_one_weights(weights: np.ndarray | None, rows: int) -> np.ndarray:
    """Return (rows,) float32 weights scaled to mean 1; all 1 if none are given or all are 0."""
    if weights is None or not weights.sum() > 0:
        return np.ones(rows, dtype=np.float32)
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def solve_logistic(
    features: np.ndarray,
    targets: np.ndarray,
    penalty: float,
    start: np.ndarray,
    *,
    exclusive: bool,
    weights: np.ndarray | None = None,
    steps: int = 200,
) -> np.ndarray:
    """Minimise mean cross-entropy + penalty / 2 · |weights|² by L-BFGS; the bias is not penalised.

    Args:
        features: (rows, features) float32, centred.
        targets: (rows, outputs) of 0 and 1.
        penalty: above 0.
        start: (features + 1, outputs), the initial weights, with the bias as the last row.
        exclusive: True for a softmax over the outputs, False for a sigmoid each.
        weights: (rows,) row weights, or None.
        steps: maximum number of iterations.

    Returns:
        (features + 1, outputs) float32, in the form of `start`.
    """
    rows, shape = len(features), start.shape
    row_weights = mean_one_weights(weights, rows)[:, None]

    def part(both: np.ndarray, piece: slice) -> tuple[float, np.ndarray]:
        """Return the summed cost of some rows, and its gradient."""
        inputs, true = features[piece], targets[piece].astype(np.float32)
        logits = inputs @ both[:-1].astype(np.float32) + both[-1].astype(np.float32)  # (rows, outputs)
        if exclusive:
            top = logits.max(1, keepdims=True)
            raised = np.exp(logits - top)
            total = raised.sum(1, keepdims=True)
            losses = np.log(total) + top - (true * logits).sum(1, keepdims=True)
            error = raised / total - true
        else:
            losses = np.logaddexp(0, logits) - true * logits
            error = expit(logits) - true
        cost = float((row_weights[piece] * losses).sum(dtype=np.float64))
        error = error * row_weights[piece]
        return cost, np.concatenate([inputs.T @ error, error.sum(0, keepdims=True)]).astype(np.float64)

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = flat.reshape(shape)
        parts = [part(both, piece) for piece in pieces(rows)]
        slope = sum((slopes for _, slopes in parts[1:]), parts[0][1]) / rows
        slope[:-1] += penalty * both[:-1]
        return sum(cost for cost, _ in parts) / rows + penalty / 2 * float((both[:-1] ** 2).sum()), slope.ravel()

    solution = minimize(
        value, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": steps, "gtol": 1e-5, "ftol": 1e-7}
    )
    return np.asarray(solution.x, dtype=np.float32).reshape(shape)


def one_hot(classes: np.ndarray, num: int) -> np.ndarray:
    """Return class indices as (rows, num) float32, one-hot."""
    made = mapped_zeros((len(classes), num))
    made[np.arange(len(classes)), classes] = 1
    return made


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of (rows, outputs) under (rows,) weights, as `numpy.average` computes it, piece by piece."""
    each = weights[:, None]
    dtype = np.result_type(values.dtype, weights.dtype, *([np.float64] if values.dtype.kind in "biu" else []))
    sums = [np.multiply(values[piece], each[piece], dtype=dtype).sum(0) for piece in pieces(len(values))]
    return np.asarray(sum(sums[1:], sums[0]) / each.sum(0, dtype=dtype))


def _rotation(features: np.ndarray) -> np.ndarray | None:
    """Return an orthonormal basis of the rows' span, (features, rows), or None without fewer rows than features.

    The solution lies in that span, and the penalty is invariant to rotations, so solving in the basis is exact.
    """
    rows, width = features.shape
    return np.linalg.svd(features, full_matrices=False)[2].T if rows < width else None


def logistic_path(
    features: np.ndarray,
    targets: np.ndarray,
    *,
    exclusive: bool,
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
    weights: np.ndarray | None = None,
) -> LinearPath:
    """Return logistic regressions under `PENALTIES`; without rows to choose by, the middle one is taken.

    Args:
        features: (rows, features).
        targets: (rows, outputs) of 0 and 1.
        exclusive: softmax over the outputs, or a sigmoid each.
        finish: from (rows, outputs) logits to the task's scores, where that is more than softmax or sigmoid.
        weights: (rows,) of the rows.
    """
    finish = finish or (softmax_scores if exclusive else expit)
    mean = features.mean(0)
    scaled = mapped_zeros(features.shape)
    np.subtract(features, mean, out=scaled, casting="same_kind")
    rotation = _rotation(scaled)
    inside = scaled if rotation is None else scaled @ rotation
    rates = np.clip(
        weighted_mean(targets, mean_one_weights(weights, len(targets))),
        0.5 / len(targets),
        1 - 0.5 / len(targets),
    )
    start = np.zeros((inside.shape[1] + 1, targets.shape[1]))
    start[-1] = np.log(rates) if exclusive else np.log(rates / (1 - rates))

    def models(both: np.ndarray) -> Iterator[LinearScores]:
        for penalty in PENALTIES:
            both = solve_logistic(inside, targets, penalty, both, exclusive=exclusive, weights=weights)
            weight = both[:-1] if rotation is None else rotation @ both[:-1]
            yield LinearScores(mean, weight, both[-1], finish)

    return LinearPath(models(start), default=len(PENALTIES) // 2)


def softmax_scores(logits: np.ndarray) -> np.ndarray:
    """Return (rows, classes) logits as probabilities."""
    return np.asarray(softmax(logits, axis=1))


def ridge_path(
    features: np.ndarray,
    targets: np.ndarray,
    finish: Callable[[np.ndarray], np.ndarray],
    *,
    weights: np.ndarray | None = None,
) -> LinearPath:
    """Return ridge regressions under `RIDGE_PENALTIES`, from one eigendecomposition; without rows to choose by, the
    penalty 1 is taken.

    Args:
        features: (rows, features).
        targets: (rows,) float.
        finish: from (rows, 1) predictions to the task's scores.
        weights: (rows,) of the rows.
    """
    row_weights = mean_one_weights(weights, len(features)).astype(np.float64)
    rows, width = features.shape
    mean = weighted_mean(features, row_weights)
    scaled = mapped_zeros((rows, width), np.float64)
    for piece in pieces(rows):
        scaled[piece] = (features[piece] - mean) * np.sqrt(row_weights[piece])[:, None]
    bias = np.array([np.average(targets, weights=row_weights)])
    centred = (targets - bias) * np.sqrt(row_weights)
    tall = rows >= width
    values, vectors = np.linalg.eigh((scaled.T @ scaled if tall else scaled @ scaled.T) / rows)
    values = np.maximum(values, 0)
    projected = vectors.T @ (scaled.T @ centred / rows if tall else centred / rows)  # onto the eigenvectors

    def model(penalty: float) -> LinearScores:
        solved = vectors @ (projected / (values + penalty))
        weight = solved if tall else scaled.T @ solved
        return LinearScores(mean, weight[:, None], bias, finish)

    return LinearPath(map(model, RIDGE_PENALTIES), default=RIDGE_PENALTIES.index(1.0))
