"""Coverage, novelty and popularity of recommendations, by hand."""

import math

import numpy as np
import pytest

from fusetune.evaluation.measure.exposure import MEANINGS, exposure, gini, top_items


def test_top_items_are_those_of_a_stable_sort():
    scores = np.random.default_rng(0).integers(0, 6, (50, 20)).astype(float)  # many are equal
    scores[0, 3:] = -np.inf
    for num in (1, 5, 19, 20, 30):
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :num]
        expected[0, 3:] = -1
        assert np.array_equal(top_items(scores, num), expected)


def test_figures_by_hand():
    top = np.array([[0, 1], [0, 2], [0, -1]])
    figures = exposure(top, np.array([4, 2, 0, 1]), num_users=8)
    assert figures["coverage"] == 3 / 4
    assert figures["novelty"] == pytest.approx((3 * 1 + 2 + 3) / 5)  # item 2: nobody chose it, so 1 of 8
    assert figures["popularity"] == pytest.approx((3 * 4 + 2 + 0) / 5)
    assert figures["gini"] == pytest.approx(gini(np.array([3, 1, 1, 0])))
    assert set(figures) == set(MEANINGS)


def test_gini_is_half_the_mean_difference_over_the_mean():
    counts = np.random.default_rng(1).integers(0, 30, 40)
    differences = np.abs(counts[:, None] - counts).mean()
    assert gini(counts) == pytest.approx(differences / 2 / counts.mean())
    assert gini(np.full(9, 4)) == 0 and gini(np.array([0, 0, 0, 7])) == pytest.approx(3 / 4)


def test_no_recommendations_have_no_figures():
    assert all(math.isnan(value) for value in exposure(np.full((2, 3), -1), np.ones(4), 5).values())
