"""Intervals against scipy's, and the rules about groups, weights, undefined draws and few rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fusetune.evaluation.measure.compare import (
    MAX_WORK,
    MIN_DRAWS,
    bootstrap,
    draw_all,
    draw_sums,
    interval,
    limit,
    paired_difference,
)


def mean_error(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    return {"error": float(np.average(scores - truth, weights=weights))}


def rows(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.exponential(2, num)
    return truth + rng.normal(0.3, 1, num), truth


def test_the_interval_is_that_of_scipy() -> None:
    scores, truth = rows(150)
    ours = bootstrap(mean_error, scores, truth, num=5000, seed=1)["error"]
    theirs = stats.bootstrap((scores - truth,), np.mean, n_resamples=5000, rng=np.random.default_rng(2))
    assert ours.value == pytest.approx(np.mean(scores - truth))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_the_bias_correction_is_that_of_scipys_bca_where_there_is_no_skew() -> None:
    """The spread of symmetric values: biased low by the bootstrap, with hardly any acceleration."""

    def spread(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        return {"spread": float(np.var(scores - truth))}

    values = np.linspace(-1, 1, 60)
    ours = bootstrap(spread, values, np.zeros(60), num=6000, seed=1)["spread"]
    plain = stats.bootstrap((values,), np.var, n_resamples=6000, method="percentile", rng=np.random.default_rng(2))
    bca = stats.bootstrap((values,), np.var, n_resamples=6000, method="BCa", rng=np.random.default_rng(2))
    assert abs(ours.low - bca.confidence_interval.low) < abs(
        plain.confidence_interval.low - bca.confidence_interval.low
    )
    assert ours.low == pytest.approx(bca.confidence_interval.low, abs=0.01)


def test_a_paired_difference_is_narrower_than_its_parts_and_matches_scipy() -> None:
    scores, truth = rows(200)
    other = scores - 0.1 + np.random.default_rng(5).normal(0, 0.05, 200)
    difference = paired_difference(mean_error, scores, other, truth, num=3000)["error"]
    alone = bootstrap(mean_error, scores, truth, num=3000)["error"]
    theirs = stats.bootstrap((scores - other,), np.mean, n_resamples=3000, method="percentile").confidence_interval
    assert difference.low > 0
    assert difference.high - difference.low < (alone.high - alone.low) / 5
    assert (difference.low, difference.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).normal(1.0, 1, 40)
        found = bootstrap(mean_error, sample, np.zeros(40), num=300, seed=seed)["error"]
        hits += found.low <= 1.0 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_equal_seeds_give_equal_intervals_and_all_systems_see_the_same_draws() -> None:
    scores, truth = rows(80)
    assert bootstrap(mean_error, scores, truth, num=100, seed=3) == bootstrap(
        mean_error, scores, truth, num=100, seed=3
    )
    assert bootstrap(mean_error, scores, truth, num=100, seed=3) != bootstrap(
        mean_error, scores, truth, num=100, seed=4
    )
    draws = draw_all(mean_error, {"a": scores, "b": scores + 1}, truth, num=100)
    np.testing.assert_allclose(draws["b"].drawn["error"] - draws["a"].drawn["error"], 1)


def test_groups_are_drawn_whole_and_widen_the_interval() -> None:
    groups = np.repeat(np.arange(20), 10)
    scores = np.random.default_rng(0).normal(size=20)[groups]
    alone = bootstrap(mean_error, scores, np.zeros(200), num=2000)["error"]
    whole = bootstrap(mean_error, scores, np.zeros(200), num=2000, groups=[f"g{one}" for one in groups])["error"]
    per_group = bootstrap(mean_error, scores[::10], np.zeros(20), num=2000)["error"]
    assert whole.high - whole.low > 2 * (alone.high - alone.low)
    assert whole.high - whole.low == pytest.approx(per_group.high - per_group.low, rel=0.1)


def test_weights_are_drawn_with_their_rows() -> None:
    scores = np.arange(30.0)
    weights = (np.arange(30) < 15).astype(float)
    found = bootstrap(mean_error, scores, np.zeros(30), num=500, weights=weights)["error"]
    assert found.value == pytest.approx(7.0)
    assert found.high < 14


@pytest.mark.parametrize("num", [0, 1, 9])
def test_too_few_rows_have_no_interval(num: int) -> None:
    def first(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        return {"first": float(scores[0]) if len(scores) else math.nan}

    found = bootstrap(first, np.ones(num), np.ones(num), num=50)["first"]
    assert math.isnan(found.low) and math.isnan(found.high)
    assert found.value == 1.0 if num else math.isnan(found.value)


def test_undefined_draws_are_left_out_unless_they_are_many() -> None:
    few = np.array([math.nan] * 10 + list(np.linspace(0, 1, 90)))
    many = np.array([math.nan] * 30 + list(np.linspace(0, 1, 70)))
    assert interval(0.5, few).known
    assert not interval(0.5, many).known
    assert math.isnan(interval(math.nan, few).low)


def test_a_metric_is_never_outside_of_its_interval() -> None:
    found = interval(2.0, np.linspace(0, 1, 100))
    assert found.low <= found.value <= found.high


def test_large_tables_get_fewer_draws_but_never_under_the_least() -> None:
    assert limit(1000, 100) == 1000
    assert limit(1000, MAX_WORK // 500) == 500
    assert limit(1000, MAX_WORK) == MIN_DRAWS
    assert limit(50, MAX_WORK) == 50


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_draws_of_sums_are_the_draws_of_rows(weighted: bool, grouped: bool) -> None:
    rng = np.random.default_rng(0)
    counts = {"a": rng.integers(0, 9, (60, 2)).astype(float), "b": rng.integers(0, 9, (60, 2)).astype(float)}

    def share(counts: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        top, bottom = counts.sum(0) if weights is None else weights @ counts
        return {"share": float(top / bottom), "never": math.nan}

    more = {"weights": rng.random(60) if weighted else None, "groups": np.arange(60) // 3 if grouped else None}
    rows_drawn = draw_all(share, counts, np.zeros(60), num=120, seed=3, **more)
    sums_drawn = draw_sums(share, counts, np.zeros(60), num=120, seed=3, **more)
    for name in counts:
        assert sums_drawn[name].value == pytest.approx(rows_drawn[name].value, nan_ok=True)
        for metric in ("share", "never"):
            np.testing.assert_allclose(sums_drawn[name].drawn[metric], rows_drawn[name].drawn[metric])
