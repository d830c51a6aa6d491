"""The figures of a labelling: intervals beside their definitions, the gain over random rows, when to stop."""

import numpy as np
import pandas as pd
import pytest

from fusetune.evaluation.results import Interval
from fusetune.lifecycle.labelling import measure as module
from fusetune.lifecycle.labelling.measure import Gain, Measured, RoundFigures, gain, measure, stop_reason, wilson
from fusetune.lifecycle.labelling.pool import read_pool
from fusetune.lifecycle.labelling.rounds import simulate


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=400)
    table = pd.DataFrame({"size": kind + 0.5 * rng.normal(size=400), "noise": rng.normal(size=400)})
    return read_pool(table, None, "kind"), np.array(["a", "b"])[kind]


def test_wilson_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for correct, rows in ((0, 5), (3, 10), (95, 100), (40, 40)):
        ends = stats.binomtest(correct, rows).proportion_ci(method="wilson")
        found = wilson(correct, rows)
        np.testing.assert_allclose([found.low, found.high], [ends.low, ends.high], atol=1e-9)
    assert not np.isfinite(wilson(0, 0).value)


def labels(truth, rows):
    return {int(row): str(truth[row]) for row in rows}


def test_rows_with_wrong_labels_are_worse_than_random_ones(pool):
    rows, truth = pool
    flipped = np.where(truth == "a", "b", "a")
    found = gain(rows, {}, labels(flipped, range(80)), labels(truth, range(100, 200)), seed=0)
    assert found.verdict == "worse" and found.labels == 80 and found.rows == 100
    assert found.difference.value == pytest.approx(found.chosen - found.random)
    other = gain(rows, {}, labels(truth, range(80)), labels(truth, range(100, 200)), seed=0)
    assert other.verdict in ("as good", "open") and abs(other.difference.value) < 0.1


def test_too_few_rows_are_not_compared(pool):
    rows, truth = pool
    assert gain(rows, {}, labels(truth, range(80)), labels(truth, range(100, 149)), seed=0) is None
    assert gain(rows, {}, labels(truth, range(20)), labels(truth, range(100, 200)), seed=0) is None


def test_verdicts():
    def verdict(low, high):
        return Gain(40, 50, 0.5, 0.5, Interval((low + high) / 2, low, high)).verdict

    assert verdict(0.01, 0.2) == "better" and verdict(-0.2, -0.01) == "worse"
    assert verdict(-0.05, 0.02) == "as good" and verdict(-0.05, 0.08) == "open"


def test_rounds_are_measured_on_all_random_rows(pool):
    rows, truth = pool
    found = measure(
        rows, {}, [labels(truth, range(10)), labels(truth, range(10, 40))], labels(truth, range(300, 360)), seed=0
    )
    assert [(one.round, one.labels) for one in found.rounds] == [(1, 10), (2, 40)]
    assert not np.isfinite(found.rounds[0].agreement) and 0.5 < found.rounds[1].agreement <= 1
    assert found.rounds[1].accuracy.value == pytest.approx(found.correct[1].mean())
    assert measure(rows, {}, [], {}, seed=0).rounds == []


def figures(agreements, corrects):
    rounds = [
        RoundFigures(n, 10 * n, wilson(int(c.sum()), len(c)), k)
        for n, (k, c) in enumerate(zip(agreements, corrects, strict=True))
    ]
    return Measured(rounds, correct=list(corrects))


def test_stopping_by_agreement_and_by_accuracy():
    few = [np.ones(10, bool)] * 5
    assert stop_reason(figures([np.nan, 0.9, 0.99, 0.99, 1.0], few)).startswith("the predictions")
    assert stop_reason(figures([np.nan, 0.9, 0.99, 0.97, 1.0], few)) is None
    assert stop_reason(figures([np.nan, 1.0, 1.0], few[:3])) is None  # too early
    assert stop_reason(figures([np.nan, 0.9, 0.99, 0.97, 1.0], few), agreement=0.95) is not None
    rng = np.random.default_rng(0)
    same = rng.random(100) < 0.8
    assert "no longer rises" in stop_reason(figures([np.nan, 0.8, 0.8, 0.8, 0.8], [same] * 5))
    better = same | (rng.random(100) < 0.5)
    assert stop_reason(figures([np.nan, 0.8, 0.8, 0.8, 0.8], [same, same, same, same, better])) is None


def test_simulated_rounds_do_not_touch_held_out_rows_and_repeat_themselves(pool, monkeypatch):
    rows, truth = pool
    seen = []
    fit = module.fit_probe
    monkeypatch.setattr(
        "fusetune.lifecycle.labelling.rounds.fit_probe",
        lambda pool, labels, seed: seen.append(set(labels)) or fit(pool, labels, seed=seed),
    )
    held_out = np.arange(300, 400)
    runs = [
        simulate(rows, labels(truth, range(400)), held_out, strategy="badge", counts=[10, 20, 30], seed=1)
        for _ in range(2)
    ]
    assert not set().union(*seen) & set(held_out.tolist())
    assert runs[0].num_labels.tolist() == [10, 30, 60] and runs[0].correct.shape == (3, 100)
    np.testing.assert_array_equal(runs[0].correct, runs[1].correct)
    curve = runs[0].accuracy()
    assert curve[-1] > 0.7
    assert runs[0].area() == pytest.approx(((curve[0] + curve[1]) / 2 * 20 + (curve[1] + curve[2]) / 2 * 30) / 50)
