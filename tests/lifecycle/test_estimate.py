"""The accuracy that is estimated without labels."""

import numpy as np
import pytest

from fusetune.lifecycle.estimate import thresholded


def calibrated(rng: np.random.Generator, rows: int, a: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidence, and decisions that are right with that probability; a smaller `a` gives harder rows."""
    confidence = 0.5 + 0.5 * rng.beta(a, 1, size=rows)
    return confidence, rng.random(rows) < confidence


@pytest.mark.parametrize("a", [0.5, 1.0, 2.0, 4.0])
def test_harder_rows_get_a_lower_estimate(a):
    rng = np.random.default_rng(0)
    confidence, correct = calibrated(rng, 20_000, 2.0)
    new, truth = calibrated(rng, 20_000, a)
    estimate = thresholded(confidence, correct, new)
    held_out = correct.mean()
    assert abs(estimate - held_out) < 0.01 if a == 2.0 else bool(estimate < held_out) is (a < 2.0)
    assert abs(estimate - truth.mean()) < 0.09


def test_rows_that_are_all_right_or_all_wrong():
    confidence, new = np.array([0.6, 0.7, 0.8]), np.array([0.5, 0.9])
    assert thresholded(confidence, np.array([True] * 3), new) == 1.0
    assert thresholded(confidence, np.array([False] * 3), new) == 0.5
