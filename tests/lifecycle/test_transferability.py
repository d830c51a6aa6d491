"""H-score against its closed form, LogME against the evidence maximised numerically."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from fusetune.lifecycle.transferability import h_score, log_me


def classes_and_features(seed: int, rows: int = 300, dim: int = 6, shift: float = 1.0):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, rows)
    means = shift * rng.normal(size=(3, dim))
    return classes, means[classes] + rng.normal(size=(rows, dim)) @ rng.normal(size=(dim, dim))


def test_h_score_is_the_trace_of_its_definition():
    classes, features = classes_and_features(0)
    centred = features - features.mean(0)
    conditional = np.stack([centred[classes == label].mean(0) for label in classes])  # E[f | y] of each row
    expected = np.trace(np.linalg.inv(np.cov(centred.T, bias=True)) @ np.cov(conditional.T, bias=True))
    assert h_score(features, classes, shrinkage=0.0) == pytest.approx(expected, rel=1e-9)


def test_h_score_of_two_gaussians_has_a_closed_form():
    """Two equally likely classes at -m and m with unit covariance: m'm / (1 + m'm) in the limit."""
    rng = np.random.default_rng(1)
    classes, mean = np.arange(200_000) % 2, np.array([0.6, -0.3, 0.0])
    features = (2 * classes[:, None] - 1) * mean + rng.normal(size=(len(classes), 3))
    assert h_score(features, classes) == pytest.approx(mean @ mean / (1 + mean @ mean), abs=0.005)


def test_h_score_with_more_features_than_rows_is_finite_and_bounded():
    rng = np.random.default_rng(2)
    classes, features = rng.integers(0, 4, 40), rng.normal(size=(40, 200))
    assert 0 < h_score(features, classes) < 3
    assert h_score(np.c_[features, np.ones(40)], classes) > 0  # a constant feature
    assert math.isnan(h_score(features, np.zeros(40, dtype=int)))


def test_h_score_rises_with_the_distance_of_classes():
    near, far = (classes_and_features(3, shift=shift) for shift in (0.3, 3.0))
    assert h_score(near[1], near[0]) < h_score(far[1], far[0]) <= 2


def maximum_of_the_evidence(features: np.ndarray, y: np.ndarray) -> float:
    """max over alpha, beta of log N(y; 0, I/beta + F F'/alpha), a row."""
    gram, identity = features @ features.T, np.eye(len(y))

    def negative(logs: np.ndarray) -> float:
        covariance = identity * np.exp(-logs[1]) + gram * np.exp(-logs[0])
        return -float(multivariate_normal(cov=covariance, allow_singular=True).logpdf(y))

    starts = [(0.0, 0.0), (3.0, 0.0), (-3.0, 1.0)]
    return -min(minimize(negative, start, method="Nelder-Mead").fun for start in starts) / len(y)


@pytest.mark.parametrize(("rows", "dim"), [(60, 5), (30, 45)], ids=["tall", "wide"])
def test_log_me_is_the_maximum_of_the_evidence(rows, dim):
    rng = np.random.default_rng(rows)
    features = rng.normal(size=(rows, dim)) * rng.uniform(0.5, 2, dim)
    y = features @ rng.normal(size=dim) + 0.7 * rng.normal(size=rows)
    assert log_me(features, y[:, None]) == pytest.approx(maximum_of_the_evidence(features, y), abs=1e-4)


def test_log_me_of_classes_is_the_mean_over_outputs():
    classes, features = classes_and_features(4, rows=60)
    one_hot = np.eye(3)[classes]
    expected = np.mean([maximum_of_the_evidence(features, column) for column in one_hot.T])
    assert log_me(features, one_hot) == pytest.approx(expected, abs=1e-4)
    assert log_me(features, np.c_[one_hot, np.ones(60)]) == pytest.approx(expected, abs=1e-4)  # it does not vary


def test_log_me_prefers_features_that_tell():
    rng = np.random.default_rng(5)
    features, y = rng.normal(size=(80, 6)), rng.normal(size=(80, 1))
    assert log_me(np.c_[features, y + 0.1 * rng.normal(size=(80, 1))], y) > log_me(features, y) + 0.5
    assert math.isnan(log_me(features, np.ones((80, 1))))
