"""What tasks have the report draw, against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, classification_report, confusion_matrix, roc_auc_score

from fusetune.registry import TASKS
from fusetune.tasks.panels.classes import class_rows, confusion_cells, curves
from fusetune.tasks.panels.kinds import Evidence
from fusetune.tasks.panels.numbers import number_section


@pytest.mark.parametrize("weighted", [False, True])
def test_per_class_and_confusion_are_sklearns(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    scores = rng.random((200, 4))
    labels = ["a", "b", "c", "d"]
    weights = rng.random(200) if weighted else None
    report = classification_report(truth, predicted, target_names=labels, output_dict=True, sample_weight=weights)
    for place, (label, support, precision, recall, f1, _, area) in enumerate(
        class_rows(scores, predicted, truth, labels, weights)
    ):
        theirs = report[label]
        assert (precision, recall, f1) == pytest.approx((theirs["precision"], theirs["recall"], theirs["f1-score"]))
        actual = truth == place
        assert support == actual.sum()
        assert area == pytest.approx(average_precision_score(actual, scores[:, place], sample_weight=weights))
    counts = np.zeros((4, 4), dtype=int)
    for true, guess, rows in confusion_cells(predicted, truth):
        counts[true, guess] = rows
    np.testing.assert_array_equal(counts, confusion_matrix(truth, predicted))


def test_a_class_without_rows_is_undefined_not_nought() -> None:
    rows = class_rows(np.full((4, 3), 1 / 3), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), ["a", "b", "c"])
    assert math.isnan(rows[2][3]) and math.isnan(rows[2][6]) and rows[2][1] == 0


def test_curves_are_thinned_without_moving_their_area() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 5000)
    positive = np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1)
    roc, pr = curves(np.stack([1 - positive, positive], 1), truth, ["no", "yes"])
    assert len(roc) == len(pr) == 1
    (line, rate), _ = roc[0], pr[0]
    assert len(line.x) <= 121 and rate == pytest.approx(truth.mean())
    assert line.value == pytest.approx(roc_auc_score(truth, positive))
    assert np.trapezoid(line.y, line.x) == pytest.approx(line.value, abs=0.005)


def test_classes_with_few_rows_have_no_curve() -> None:
    truth = np.repeat([0, 1, 2], [60, 31, 9])
    scores = np.random.default_rng(0).dirichlet(np.ones(3), 100)
    roc, pr = curves(scores, truth, ["a", "b", "c"])
    assert [line.label for line, _ in roc] == [line.label for line, _ in pr] == ["a", "b"]
    assert curves(scores[:, :2], np.repeat([0, 1], [95, 5]), ["a", "b"]) == ([], [])


def test_a_regressions_histogram_holds_every_row() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=3000)
    scatter, histogram, spread = number_section(truth + rng.normal(size=3000), truth, "price").panels
    assert sum(histogram.counts) == 3000 and len(histogram.edges) == len(histogram.counts) + 1
    assert len(scatter.x) == len(scatter.y) == 1000
    assert sum(point.rows for point in spread.points) == 3000
    assert all(point.low <= point.middle <= point.high for point in spread.points)


def test_thresholds_and_labels_that_are_never_predicted_are_told() -> None:
    task = TASKS.get("multilabel")("genres", threshold="tuned")
    task.fit(["a|b", "b", "c", "a|c"] * 10)
    task.thresholds = [0.2, 0.5, 0.9]
    truth = task.truth(["a|b", "b", "c", "a|c"] * 10)
    section = task.panels(Evidence(np.full(truth.shape, 0.6), truth))[0]
    heads = [head.name for head in section.panels[0].heads]
    thresholds = [row[heads.index("threshold")] for row in section.panels[0].rows]
    assert thresholds == [0.2, 0.5, 0.9]
    assert any("1 of 3 labels" in note for note in section.notes)


def test_the_balance_of_classes_counts_every_row_of_each_split() -> None:
    task = TASKS.get("multiclass")("kind")
    task.fit(["a", "b", "c", "a"] * 10)
    (panel,) = task.target_panels({"train": task.truth(["a", "b", "c", "a"] * 10), "test": task.truth(["a"] * 4)})
    assert [row[:2] for row in panel.rows] == [["a", 20], ["b", 10], ["c", 10]]
    assert panel.rows[0][2:] == [0.5, 4, 1.0]
