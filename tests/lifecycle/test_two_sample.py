"""Two-sample tests: their figures against plain computations, their level, and shifts that they find."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fusetune.lifecycle import two_sample as tests


def samples(seed: int, n: int = 60, m: int = 50, dim: int = 4, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)), rng.normal(size=(m, dim)) + shift


def plain_mmd(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate, pair by pair, as the paper writes it."""
    rows = np.concatenate([first, second])
    pairs = [((a - b) ** 2).sum() for i, a in enumerate(rows) for b in rows[i + 1 :]]
    width = np.median(pairs)

    def mean(one, other, same):
        terms = [
            np.exp(-((a - b) ** 2).sum() / width)
            for i, a in enumerate(one)
            for j, b in enumerate(other)
            if not (same and i == j)
        ]
        return np.mean(terms)

    return mean(first, first, True) + mean(second, second, True) - 2 * mean(first, second, False)


def test_mmd_is_the_papers():
    first, second = samples(0, 12, 9, 3, 0.7)
    assert tests.mmd_test(first, second, seed=0, permutations=3).effect == pytest.approx(plain_mmd(first, second))


def test_delong_error_agrees_with_the_bootstrap():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=80), rng.normal(size=60) + 1

    def auc(a, b):
        return ((b[:, None] > a[None]) + 0.5 * (b[:, None] == a[None])).mean()

    drawn = [auc(rng.choice(old, 80), rng.choice(new, 60)) for _ in range(2000)]
    assert tests._delong_error(old, new) == pytest.approx(np.std(drawn), rel=0.1)


@pytest.mark.parametrize("test", [tests.mmd_test, tests.classifier_test])
def test_p_values_are_uniform_without_drift(test):
    p = [test(*samples(seed), seed=seed).p for seed in range(150)]
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert np.mean(np.asarray(p) <= 0.05) < 0.11


@pytest.mark.parametrize("test", [tests.mmd_test, tests.classifier_test])
def test_a_shift_of_half_a_deviation_is_found(test):
    p = [test(*samples(seed, 200, 200, 8, 0.5), seed=seed).p for seed in range(10)]
    assert max(p) < 0.01


def test_the_classifiers_interval_holds_its_auc():
    found = tests.classifier_test(*samples(3, 200, 200, 4, 0.5), seed=0)
    assert 0.5 < found.low < found.effect < found.high <= 1


@pytest.mark.parametrize("test", [tests.mmd_test, tests.classifier_test])
def test_few_rows_are_unknown_and_equal_rows_alike(test):
    few = test(*samples(0, 3, 3), seed=0)
    assert math.isnan(few.p) and math.isnan(few.effect)
    same = np.zeros((20, 2))
    assert test(same, same, seed=0).p > 0.4


def test_a_change_of_categories():
    first, second = ["a"] * 50 + ["b"] * 50, ["a"] * 80 + ["b"] * 20
    found = tests.category_test(first, second)
    assert found.effect == pytest.approx(0.3) and found.p < 1e-4
    assert found.p == pytest.approx(stats.chi2_contingency([[50, 50], [80, 20]]).pvalue)


def test_rare_categories_are_pooled():
    rng = np.random.default_rng(0)
    first, second = ([f"rare{number}" for number in rng.integers(1000, size=100)] for _ in range(2))
    assert tests.category_test(first, second).p > 0.05
    assert tests.category_test([*first, *["x"] * 100], [*second, *["x"] * 20]).p < 1e-6


def test_a_share_of_missing_cells():
    found = tests.share_test((0, 100), (20, 100))
    assert found.effect == 0.2 and found.p == pytest.approx(stats.fisher_exact([[0, 100], [20, 80]])[1])
    assert math.isnan(tests.share_test((0, 0), (1, 2)).p)


def test_adjusted_p_values_leave_unknown_ones():
    adjusted = tests.benjamini_hochberg([0.01, math.nan, 0.04, 0.03])
    assert math.isnan(adjusted[1])
    np.testing.assert_allclose(adjusted[[0, 2, 3]], [0.03, 0.04, 0.04])
    assert tests.benjamini_hochberg([]).size == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "ü", "", "c"]), max_size=30), st.lists(st.text(max_size=3), max_size=30))
def test_any_categories_give_a_p_value(first, second):
    found = tests.category_test(first, second)
    if min(len(first), len(second)) < tests.MIN_CELLS:
        assert math.isnan(found.p)
    else:
        assert 0 <= found.p <= 1 and 0 <= found.effect <= 1
