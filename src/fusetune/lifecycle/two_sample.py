"""Two-sample tests: whether two sets of rows come from one distribution.

Legend: n, m = rows of the two samples, dim = width of their vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PERMUTATIONS = 999
"""Of the labels, for a p-value of MMD: the smallest is 0.001."""
PENALTY = 0.1
"""Inverse strength of the ridge penalty of the domain classifier, on standardised vectors."""
MIN_CELLS = 5
"""The fewest cells of a sample that are tested."""
MIN_EXPECTED = 5.0
"""Categories with a smaller expected count are pooled before a chi-squared test."""


@dataclass(frozen=True)
class TwoSample:
    """A test's result.

    Attributes:
        p: the p-value, in [0, 1]; NaN if there are too few rows.
        effect: how different the samples are, in the unit that the test's function states; NaN if unknown.
        low, high: the 95 % confidence interval of the effect; NaN without one.
    """

    p: float
    effect: float
    low: float = math.nan
    high: float = math.nan


UNKNOWN = TwoSample(math.nan, math.nan)


def classifier_test(first: np.ndarray, second: np.ndarray, *, seed: int) -> TwoSample:
    """Test whether a classifier tells the samples apart on rows that it did not learn from.

    A logistic regression learns on one half of the rows; the other half gives its ROC AUC, 0.5 where the samples are
    alike. The p-value is that of the Mann-Whitney U test on the scores of that half, one-sided, and the interval that
    of DeLong et al. (1988).

    Args:
        first, second: (n, dim) and (m, dim), finite.
        seed: of the halves.

    Returns:
        The effect is the AUC, in [0, 1].

    Reference:
        Lopez-Paz & Oquab 2017, Revisiting classifier two-sample tests, arXiv 1610.06545.
    """
    if min(len(first), len(second)) < 2 * MIN_CELLS:
        return UNKNOWN
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(len(sample)), 2) for sample in (first, second)]
    train = np.concatenate([first[halves[0][0]], second[halves[1][0]]])
    labels = np.repeat([0, 1], [len(halves[0][0]), len(halves[1][0])])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=500))
    model.fit(train, labels)
    old, new = (model.decision_function(sample[half[1]]) for sample, half in zip((first, second), halves, strict=True))
    p = float(stats.mannwhitneyu(new, old, alternative="greater").pvalue)
    auc = float(roc_auc_score(np.repeat([0, 1], [len(old), len(new)]), np.concatenate([old, new])))
    width = 1.96 * _delong_error(old, new)
    return TwoSample(p, auc, max(auc - width, 0.0), min(auc + width, 1.0))


def _delong_error(old: np.ndarray, new: np.ndarray) -> float:
    """Return the standard error of an AUC from the scores of both samples."""
    wins = (new[:, None] > old[None]) + 0.5 * (new[:, None] == old[None])  # (m, n)
    by_new, by_old = wins.mean(1), wins.mean(0)
    return float(np.sqrt(by_new.var(ddof=1) / len(new) + by_old.var(ddof=1) / len(old)))


def mmd_test(first: np.ndarray, second: np.ndarray, *, seed: int, permutations: int = PERMUTATIONS) -> TwoSample:
    """Test whether the samples' mean embeddings in a Gaussian kernel's space differ.

    The kernel's width is the median distance of all pairs of rows. The p-value comes from permutations of the rows'
    labels.

    Args:
        first, second: (n, dim) and (m, dim), finite.
        seed: of the permutations.
        permutations: how many; the smallest p-value is 1 / (permutations + 1).

    Returns:
        The effect is the unbiased estimate of MMD², about 0 where the samples are alike, at most 2.

    Reference:
        Gretton et al. 2012, A kernel two-sample test, JMLR 13.
    """
    n, m = len(first), len(second)
    if min(n, m) < MIN_CELLS:
        return UNKNOWN
    rows = np.concatenate([first, second]).astype(np.float64)
    squared = cdist(rows, rows, "sqeuclidean")
    width = np.median(squared[np.triu_indices(n + m, 1)])
    if width == 0:  # more than half of the pairs are equal
        width = squared.mean()
    if width == 0:
        return TwoSample(1.0, 0.0)
    kernel = np.exp(-squared / width)
    np.fill_diagonal(kernel, 0)
    rng = np.random.default_rng(seed)
    labels = np.zeros((n + m, permutations + 1))
    for column in range(permutations + 1):
        order = np.arange(n + m) if column == 0 else rng.permutation(n + m)
        labels[order[:n], column] = 1
    values = _mmd(kernel, labels, n, m)
    p = (1 + np.count_nonzero(values[1:] >= values[0] - 1e-12)) / (permutations + 1)
    return TwoSample(float(p), float(values[0]))


def _mmd(kernel: np.ndarray, labels: np.ndarray, n: int, m: int) -> np.ndarray:
    """Return unbiased MMD², (draws,), from a kernel matrix with a diagonal of 0 and 0/1 labels, (n + m, draws)."""
    products = kernel @ labels
    within = (labels * products).sum(0)
    across = ((1 - labels) * products).sum(0)
    rest = kernel.sum() - within - 2 * across
    return np.asarray(within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * across / (n * m))


def number_test(first: np.ndarray, second: np.ndarray) -> TwoSample:
    """Test whether two samples of numbers differ: Kolmogorov-Smirnov.

    Returns:
        The effect is the largest distance of the distribution functions, in [0, 1].
    """
    if min(len(first), len(second)) < MIN_CELLS:
        return UNKNOWN
    result = stats.ks_2samp(first, second)
    return TwoSample(float(result.pvalue), float(result.statistic))


def category_test(first: Sequence[str], second: Sequence[str]) -> TwoSample:
    """Test whether two samples of categories differ: chi-squared, rare categories pooled.

    Returns:
        The effect is the total variation distance of the shares, in [0, 1].
    """
    if min(len(first), len(second)) < MIN_CELLS:
        return UNKNOWN
    names, codes = np.unique(np.asarray([*first, *second], dtype=object).astype(str), return_inverse=True)
    counts = np.stack([np.bincount(part, minlength=len(names)) for part in np.split(codes, [len(first)])])
    shares = counts / counts.sum(1, keepdims=True)
    distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
    expected = counts.sum(0) * min(len(first), len(second)) / counts.sum()
    common = expected >= MIN_EXPECTED
    table = counts[:, common]
    if not common.all():
        table = np.column_stack([table, counts[:, ~common].sum(1)])
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2:
        return TwoSample(1.0, distance)
    return TwoSample(float(stats.chi2_contingency(table).pvalue), distance)


def share_test(first: tuple[int, int], second: tuple[int, int]) -> TwoSample:
    """Test whether a share differs, such as that of missing cells: Fisher's exact test.

    Args:
        first, second: the rows that have it, and all rows.

    Returns:
        The effect is the second share minus the first, in [-1, 1].
    """
    if not first[1] or not second[1]:
        return UNKNOWN
    table = [[first[0], first[1] - first[0]], [second[0], second[1] - second[0]]]
    return TwoSample(float(stats.fisher_exact(table)[1]), second[0] / second[1] - first[0] / first[1])


def benjamini_hochberg(p: Sequence[float]) -> np.ndarray:
    """Return p-values adjusted so that those below α have a false discovery rate of at most α; NaN stays NaN.

    Reference:
        Benjamini & Hochberg 1995, Controlling the false discovery rate, JRSS B 57.

    Example:
        >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.04, 0.04]
    """
    adjusted = np.full(len(p), math.nan)
    known = np.flatnonzero(np.isfinite(p))
    if len(known):
        adjusted[known] = stats.false_discovery_control(np.asarray(p)[known], method="bh")
    return adjusted
