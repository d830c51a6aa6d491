"""The accuracy that is estimated without labels."""

import numpy as np
import pytest

from fusetune.lifecycle.estimate import by_difference, by_threshold

Rows = tuple[np.ndarray, np.ndarray]


def calibrated(rng: np.random.Generator, rows: int, a: float) -> Rows:
    """Confidence, and decisions that are right with that probability; a smaller `a` gives harder rows."""
    confidence = 0.5 + 0.5 * rng.beta(a, 1, size=rows)
    return confidence, rng.random(rows) < confidence


def overconfident(rng: np.random.Generator, rows: int, a: float, share: float) -> Rows:
    """Calibrated rows, of which a share is right by chance alone, as confident as the others."""
    confidence, correct = calibrated(rng, rows, a)
    return confidence, np.where(rng.random(rows) < share, rng.random(rows) < 0.5, correct)


@pytest.mark.parametrize("a", [0.5, 1.0, 2.0, 4.0])
def test_the_difference_is_right_where_the_model_is_calibrated(a):
    rng = np.random.default_rng(0)
    confidence, correct = calibrated(rng, 20_000, 2.0)
    new, truth = calibrated(rng, 20_000, a)
    assert by_difference(confidence, correct, new) == pytest.approx(truth.mean(), abs=0.015)


def test_the_threshold_is_nearer_where_the_model_is_overconfident():
    rng = np.random.default_rng(0)
    confidence, correct = calibrated(rng, 20_000, 4.0)
    new, truth = overconfident(rng, 20_000, 2.0, 0.3)
    high, low = by_difference(confidence, correct, new), by_threshold(confidence, correct, new)
    assert low < truth.mean() < high
    assert abs(low - truth.mean()) < abs(high - truth.mean())


@pytest.mark.parametrize("estimate", [by_difference, by_threshold])
def test_the_same_rows_give_the_same_accuracy(estimate):
    confidence, correct = calibrated(np.random.default_rng(0), 5000, 2.0)
    assert estimate(confidence, correct, confidence) == pytest.approx(correct.mean(), abs=1e-3)


def test_rows_that_are_all_right_or_all_wrong():
    confidence, new = np.array([0.6, 0.7, 0.8]), np.array([0.5, 0.9])
    assert by_threshold(confidence, np.array([True] * 3), new) == 1.0
    assert by_threshold(confidence, np.array([False] * 3), new) == 0.5
    assert by_difference(confidence, np.array([False] * 3), np.array([0.5, 0.5])) == 0.0
