"""A task's result: what it holds for every kind of task, against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, classification_report, confusion_matrix, roc_auc_score

from fusetune.evaluation.curves import confusion, curves, number_fit, per_class
from fusetune.evaluation.judge import Candidate, judge, main_metric, predictions, slice_names
from fusetune.evaluation.results import TaskResult
from fusetune.registry import TASKS

KINDS = ("binary", "multiclass", "ordinal", "multilabel", "regression")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_is_judged(kind: str, task: Callable[..., TaskResult]) -> None:
    found = task(kind, 120, classes=5)
    assert found.kind == kind and found.rows == 120
    assert [one.kind for one in found.systems] == ["baseline", "before", "alone", "alone", "alone", "after"]
    after, before = found.first("after"), found.first("before")
    assert after and before and found.main(after).known and not after.difference
    gained = before.difference[found.metric]
    assert gained.value == pytest.approx(found.main(after).value - found.main(before).value)
    assert gained.low <= gained.value <= gained.high
    assert sum(one.rows for one in found.slices if one.column == "country") == 120
    assert sum(one.rows for one in found.slices if one.column == "price") == 120
    assert len([one for one in found.slices if one.column == "price"]) == 4
    assert all(mistake.truth != mistake.prediction and len(mistake.cells) == 5 for mistake in found.errors)
    assert (found.fit is not None) == (kind == "regression")
    assert (found.calibration is not None) == (kind != "regression")
    assert (found.confusion is not None) == (kind not in ("regression", "multilabel"))


def test_rows_are_reported_under_their_ids_and_the_worst_come_first() -> None:
    task = TASKS.get("regression")("price")
    task.fit([1.0, 2.0, 3.0, 4.0] * 5)
    truth = task.truth([1.0, 2.0, 3.0, 4.0] * 5)
    scores = truth.copy()
    scores[7] += 50
    found = judge(task, [Candidate("tuned", "after", "", scores)], truth, np.arange(20) * 10, num=50, num_errors=1)
    assert [mistake.row for mistake in found.errors] == [70]


def test_no_rows_give_a_result_without_figures() -> None:
    task = TASKS.get("binary")("target")
    task.fit(["a", "b"] * 5)
    nothing = np.zeros((0, 2))
    found = judge(task, [Candidate("tuned", "after", "", nothing)], np.zeros(0, dtype=int), np.zeros(0, dtype=int))
    assert found.rows == 0 and not found.errors


@pytest.mark.parametrize("weighted", [False, True])
def test_per_class_and_confusion_are_sklearns(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    scores = rng.random((200, 4))
    labels = ["a", "b", "c", "d"]
    weights = rng.random(200) if weighted else None
    report = classification_report(truth, predicted, target_names=labels, output_dict=True, sample_weight=weights)
    for place, row in enumerate(per_class(scores, predicted, truth, labels, weights)):
        theirs = report[row.label]
        assert (row.precision, row.recall, row.f1) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"])
        )
        actual = truth == place
        assert row.support == actual.sum()
        expected = average_precision_score(actual, scores[:, place], sample_weight=weights)
        assert row.average_precision == pytest.approx(expected)
    counts = np.zeros((4, 4), dtype=int)
    for true, guess, rows in confusion(predicted, truth).cells:
        counts[true, guess] = rows
    np.testing.assert_array_equal(counts, confusion_matrix(truth, predicted))


def test_a_class_without_rows_is_undefined_not_nought() -> None:
    rows = per_class(np.full((4, 3), 1 / 3), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), ["a", "b", "c"])
    assert math.isnan(rows[2].recall) and math.isnan(rows[2].average_precision) and rows[2].support == 0


def test_curves_are_thinned_without_moving_their_area() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 5000)
    positive = np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1)
    roc, pr = curves(np.stack([1 - positive, positive], 1), truth, ["no", "yes"])
    assert len(roc) == len(pr) == 1 and len(roc[0].x) <= 121
    assert roc[0].area == pytest.approx(roc_auc_score(truth, positive))
    assert np.trapezoid(roc[0].y, roc[0].x) == pytest.approx(roc[0].area, abs=0.005)


def test_a_regressions_histogram_holds_every_row() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=3000)
    fit = number_fit(truth + rng.normal(size=3000), truth)
    assert sum(fit.counts) == 3000 and len(fit.edges) == len(fit.counts) + 1
    assert len(fit.truth) == len(fit.predicted) == 1000
    assert sum(one.rows for one in fit.spread) == 3000
    assert all(one.low <= one.middle <= one.high for one in fit.spread)


def test_the_fast_main_metric_is_the_tasks_own() -> None:
    rng = np.random.default_rng(0)
    task = TASKS.get("multiclass")("target")
    task.fit(["a", "b", "c"] * 3)
    scores, truth, weights = rng.random((50, 3)), rng.integers(0, 3, 50), rng.random(50)
    for given_weights in (None, weights):
        theirs = task.metrics(scores, truth, given_weights)["accuracy"]
        assert main_metric(task)(scores, truth, given_weights) == {"accuracy": pytest.approx(theirs)}


def test_labels_of_a_multilabel_prediction_are_found_again() -> None:
    task = TASKS.get("multilabel")("genres")
    task.fit(["Action|Sci-Fi", "Drama", "Action", "Drama|Sci-Fi"] * 5)
    scores = np.array([[0.99, 0.01, 0.99], [0.01, 0.99, 0.01], [0.01, 0.01, 0.01]])
    truth = task.truth(["Action|Sci-Fi", "Drama", "Drama"])
    np.testing.assert_array_equal(predictions(task, scores, truth)[:2], truth[:2])


@given(st.lists(st.none() | st.floats() | st.integers() | st.text() | st.booleans(), max_size=60))
def test_every_value_falls_into_a_slice(values: list[object]) -> None:
    assert len(slice_names(values)) == len(values)
