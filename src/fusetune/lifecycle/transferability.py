"""Measures of how well a linear model on frozen features can predict a target, in closed form.

Both need no held-out rows and no choice of a penalty, so they cost a fraction of a cross-validated probe.
"""

from __future__ import annotations

import math

import numpy as np
from sklearn.covariance import ledoit_wolf

MAX_STEPS = 100
TOLERANCE = 1e-6


def h_score(features: np.ndarray, classes: np.ndarray, *, shrinkage: float | None = None) -> float:
    """Return the H-score: the share of the features' variance that lies between classes, in whitened directions.

    H = (1 - a) tr(C_a^-1 B), with B the covariance of the class means, weighted by the classes' shares, and C_a the
    covariance of the features shrunk by a towards a multiple of the identity.

    Args:
        features: (rows, dim).
        classes: (rows,) int, the class of each row.
        shrinkage: a, in [0, 1). None takes that of Ledoit and Wolf 2004, which makes C_a invertible where there are
            fewer rows than features.

    Returns:
        From 0 to the number of classes - 1; NaN with fewer than two classes or rows.

    Reference:
        Bao et al. 2019, An information-theoretic approach to transferability in task transfer learning; Ibrahim et al.
        2022, Newer is not always better: rethinking transferability metrics, arXiv 2110.06893.
    """
    labels, codes, counts = np.unique(classes, return_inverse=True, return_counts=True)
    if len(features) < 2 or len(labels) < 2:
        return math.nan
    centred = np.asarray(features, dtype=np.float64) - features.mean(0)
    means = np.zeros((len(labels), centred.shape[1]))
    np.add.at(means, codes, centred)
    between = means / np.sqrt(counts)[:, None] / math.sqrt(len(centred))  # between.T @ between is B
    if shrinkage is None:
        covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    else:
        plain = centred.T @ centred / len(centred)
        identity = np.eye(len(plain)) * np.trace(plain) / len(plain)
        covariance = (1 - shrinkage) * plain + shrinkage * identity
    solved = np.linalg.lstsq(covariance, between.T, rcond=None)[0]  # a constant feature leaves it singular
    return float((1 - shrinkage) * np.sum(between.T * solved))


def log_me(features: np.ndarray, targets: np.ndarray) -> float:
    """Return LogME: the logarithm of the maximum evidence of a Bayesian linear model, a row, the mean over outputs.

    The model of an output is y = F w + e with w ~ N(0, I/alpha) and e ~ N(0, I/beta). The evidence p(y | F) is
    maximised over alpha and beta by MacKay's fixed-point iteration, on the singular value decomposition of F.

    Args:
        features: (rows, dim).
        targets: (rows, outputs): numbers, or one-hot classes. Outputs that do not vary are left out.

    Returns:
        In nats a row; larger is better. NaN if no output varies.

    Reference:
        You et al. 2021, LogME: practical assessment of pre-trained models for transfer learning, arXiv 2102.11005.
    """
    matrix = np.asarray(features, dtype=np.float64)
    varying = np.asarray(targets, dtype=np.float64)[:, np.ptp(targets, axis=0) > 0]
    if not len(matrix) or not varying.shape[1]:
        return math.nan
    left, singular, _ = np.linalg.svd(matrix, full_matrices=False)
    squares = singular**2
    projected = left.T @ varying  # (components, outputs)
    rest = (varying**2).sum(0) - (projected**2).sum(0)
    values = [_evidence(squares, z, max(float(r), 0.0), matrix.shape) for z, r in zip(projected.T, rest, strict=True)]
    return float(np.mean(values))


def _evidence(squares: np.ndarray, projected: np.ndarray, rest: float, shape: tuple[int, int]) -> float:
    """Return the largest log evidence of an output, divided by the number of rows.

    Args:
        squares: (components,) the squared singular values of the features.
        projected: (components,) the output in the basis of the left singular vectors.
        rest: the squared norm of the output outside of that basis.
        shape: (rows, dim) of the features.
    """
    rows = shape[0]
    best = -math.inf
    for start in (1.0, float(squares.mean() or 1.0)):  # the iteration may end in a local maximum
        alpha, beta = start, 1.0
        for _ in range(MAX_STEPS):
            ratio = alpha / beta
            known = float((squares / (squares + ratio)).sum())  # well-determined parameters
            norm = float((squares * projected**2 / (squares + ratio) ** 2).sum())
            residual = float((projected**2 * (ratio / (squares + ratio)) ** 2).sum()) + rest
            alpha, beta = known / max(norm, 1e-12), (rows - known) / max(residual, 1e-12)
            beta = max(beta, 1e-12)
            if abs(alpha / beta - ratio) <= TOLERANCE * ratio:
                break
        best = max(best, _log_evidence(alpha, beta, squares, projected, rest, shape))
    return best / rows


def _log_evidence(
    alpha: float, beta: float, squares: np.ndarray, projected: np.ndarray, rest: float, shape: tuple[int, int]
) -> float:
    """Return log p(y | F, alpha, beta)."""
    rows, dim = shape
    scaled = alpha + beta * squares
    norm = float((beta**2 * squares * projected**2 / scaled**2).sum())
    residual = float((projected**2 * (alpha / scaled) ** 2).sum()) + rest
    log_det = float(np.log(scaled).sum()) + (dim - len(squares)) * math.log(alpha)
    fit = beta / 2 * residual + alpha / 2 * norm
    return 0.5 * (rows * math.log(beta) + dim * math.log(alpha) - rows * math.log(2 * math.pi) - log_det) - fit
