import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch.nn import functional as F

from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.tasks.base import Metric
from fusetune.tasks.classes.label_sets import find_separator, split_labels
from fusetune.tasks.classes.multilabel import MultilabelTask
from fusetune.tasks.classes.thresholds import MIN_POSITIVE, best_threshold

GENRES = ["Comedy|Drama", "Drama", "[]", "Horror|Comedy", "Drama|Horror"]


def fitted(values=GENRES, **options):
    task = MultilabelTask("genres", **options)
    task.fit(values)
    return task


@pytest.mark.parametrize(
    ("cell", "separator", "expected"),
    [
        ("a|b", "|", ["a", "b"]),
        (" a | b ||a", "|", ["a", "b"]),
        ('["a|b", "c"]', "|", ["a|b", "c"]),
        ("['it''s', 'b']", "|", ["its", "b"]),
        ("[]", "|", []),
        ([], "|", []),
        (["a", 3, 2.0], "|", ["a", "3", "2"]),
        (np.array(["x", "y"]), "|", ["x", "y"]),
        ("8 1  3", " ", ["8", "1", "3"]),
        ("a b", None, ["a b"]),
        (7, "|", ["7"]),
    ],
)
def test_cells_are_read(cell, separator, expected):
    assert split_labels(cell, separator) == expected


@pytest.mark.parametrize("cell", ["[a, b]", "[[1], 2]", "[null]", [None], "[" * 5000 + "]" * 5000])
def test_unreadable_cells_are_refused(cell):
    with pytest.raises(BadCell):
        fitted().check(cell, row=3)


@settings(deadline=None)
@given(st.lists(st.lists(st.text(min_size=1).filter(lambda s: s.strip() == s), unique=True), min_size=1))
def test_label_sets_survive_json_and_back(sets):
    cells = [json.dumps(labels) for labels in sets] + ['["one"]', '["two"]']
    task = fitted(cells)
    columns = task.columns(task.truth(cells).astype(float))
    for labels, written in zip(sets, columns["genres"], strict=False):
        assert sorted(json.loads(written)) == sorted(labels)


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (GENRES, "|"),
        (["a;b", "b;c", "a", "c;a;b"], ";"),
        (["red, blue", "blue", "red, green, blue", "green"], ","),
        (["8 1 3 6", "1 3", "8", "6 1 8"], " "),
        (["Paris, France", "Lyon, France", "Rome, Italy", "Paris, France"], None),
        (["1,234", "1,234", "2,234", "2", "2"], None),
        (["f(a,b)", "f(b,a)", "g", "g", "f(a,b)"], None),
        (["well, it was fine, really", "no, thanks", "that is all"], None),
        (["new york", "york", "new york city", "city"], None),
    ],
)
def test_separators_are_found_where_labels_repeat(cells, separator):
    found = find_separator(cells * 2)
    assert (found and found[0]) == separator


def test_an_empty_cell_is_unlabelled_and_an_empty_list_is_a_row_without_labels():
    target = fitted().encode(["", "[]", "Drama"])
    assert target.labelled.tolist() == [False, True, True]
    assert target.values.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("weights", [None, "balanced", {"Drama": 2.0}])
def test_the_loss_is_torchs(weights):
    task = fitted(positive_weights=weights)
    logits, target = torch.randn(5, 3), task.encode(GENRES)
    by_label = {None: None, "balanced": torch.tensor([3 / 2, 2 / 3, 3 / 2])}.get(
        weights if not isinstance(weights, dict) else 0, torch.tensor([1.0, 2.0, 1.0])
    )
    expected = F.binary_cross_entropy_with_logits(logits, target.values, pos_weight=by_label)
    assert torch.allclose(task.loss(logits, target, torch.ones(5)), expected)


def test_rare_labels_are_left_out_and_reported():
    task = fitted([*GENRES, "Western|Drama"], min_count=2)
    assert task.labels == ["Comedy", "Drama", "Horror"] and task.left_out == {"Western": 1}
    task.check("Western|Sci-Fi", row=0)
    assert task.truth(["Western|Drama", "Sci-Fi"]).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_nothing_to_learn_is_refused():
    with pytest.raises(TableError, match="nothing to learn"):
        fitted(min_count=10)
    with pytest.raises(TableError, match="'a' in 3 of 3 rows"):
        fitted(["a", "a", "a"])


def random_labels(rows=200, rates=(0.4, 0.4, 0.4)):
    """Probabilities, and labels that are rarer than these claim: one half is too high a threshold."""
    rng = np.random.default_rng(0)
    scores = rng.random((rows, len(rates)))
    return scores, (rng.random(scores.shape) < scores * rates).astype(int)


def test_a_fixed_threshold_is_not_tuned():
    task = fitted(threshold=0.3)
    task.tune(*random_labels())
    assert task.thresholds == [0.3] * 3


@pytest.mark.parametrize("threshold", ["auto", "tuned"])
def test_thresholds_are_the_best_of_each_label_and_are_kept(threshold):
    scores, truth = random_labels()
    fixed, tuned = fitted(threshold=0.5), fitted(threshold=threshold)
    tuned.tune(scores, truth)
    assert tuned.evaluate(scores, truth)["f1_macro"] > fixed.evaluate(scores, truth)["f1_macro"]
    assert MultilabelTask.from_state("genres", tuned.state()).thresholds == tuned.thresholds
    for place in range(3):
        best = max(f1_score(truth[:, place], scores[:, place] >= cut) for cut in scores[:, place])
        decided = scores[:, place] >= tuned.thresholds[place]
        assert f1_score(truth[:, place], decided) == pytest.approx(best)


def test_rare_labels_share_a_threshold():
    scores, truth = random_labels(rates=(0.4, 0.04, 0.0))
    assert truth[:, 0].sum() >= MIN_POSITIVE > truth[:, 1].sum() > 0 == truth[:, 2].sum()
    task = fitted()
    task.tune(scores, truth)
    pooled = best_threshold(scores.ravel(), truth.ravel())
    assert task.thresholds == [best_threshold(scores[:, 0], truth[:, 0]), pooled, pooled]
    assert task.threshold_sources == ["own", "pooled", "pooled"]
    asked = fitted(threshold="tuned")
    asked.tune(scores, truth)
    assert asked.thresholds == [task.thresholds[0], best_threshold(scores[:, 1], truth[:, 1]), 0.5]


def test_few_validation_rows_leave_one_half():
    scores, truth = random_labels(rows=8)
    assert 0 < truth.sum() < MIN_POSITIVE
    task = fitted()
    task.tune(scores, truth)
    assert task.thresholds == [0.5] * 3


def test_a_saved_task_keeps_its_thresholds():
    """A state of a version with fixed thresholds by default, and without their sources."""
    state = fitted(threshold=0.5).state()
    del state["threshold_sources"]
    task = MultilabelTask.from_state("genres", state)
    task.tune(*random_labels())
    assert task.thresholds == [0.5] * 3 and task.threshold_sources == ["fixed"] * 3


def test_labels_that_are_never_predicted_are_warned_about():
    task = fitted(threshold=0.5)
    truth = task.truth(GENRES)
    scores = np.tile([0.2, 0.9, 0.4], (len(GENRES), 1))
    (warning,) = task.warnings(scores, truth)
    assert "2 of the 3" in warning and "genres" in warning
    assert not task.warnings(truth.astype(float), truth)
    assert not task.warnings(np.zeros((2, 3)), np.zeros((2, 3), dtype=int)), "no row has a label"


def test_a_label_without_validation_rows_keeps_one_half():
    assert best_threshold(np.array([0.1, 0.9]), np.array([0, 0])) == 0.5
    assert 0 < best_threshold(np.array([0.0, 0.0]), np.array([1, 1])) < 1e-300


def test_output_is_written_as_the_train_rows_are():
    assert fitted().columns(np.array([[0.9, 0.8, 0.1], [0, 0, 0]]))["genres"] == ["Comedy|Drama", "[]"]
    lists = fitted([["a"], ["b", "é"]])
    assert lists.columns(np.array([[0.9, 0.8, 0.1]]))["genres"] == ['["a", "b"]']


@pytest.mark.parametrize(
    "options",
    [
        {"min_count": 0},
        {"threshold": 1.0},
        {"threshold": "best"},
        {"separator": ""},
        {"positive_weights": "even"},
        {"positive_weights": {"a": -1}},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        MultilabelTask("genres", **options)


@pytest.mark.parametrize("threshold", ["auto", "tuned"])
@pytest.mark.parametrize("name", ["f1_micro", "f1_samples", "subset_accuracy", "hamming_loss", "own"])
def test_tuned_thresholds_are_those_of_the_main_metric(name, threshold):
    """Better by the metric that decides than those of best F1, on the rows that they are chosen on."""
    rng = np.random.default_rng(0)
    truth = (rng.random((200, 5)) < [0.5, 0.3, 0.2, 0.1, 0.02]).astype(np.int8)
    scores = np.clip(0.35 * truth + rng.random(truth.shape) * 0.6, 0.01, 0.99)
    task = MultilabelTask("y", threshold=threshold)
    task.fit(["|".join(label for label, on in zip("abcde", row, strict=True) if on) or "[]" for row in truth])

    def own(y_true, y_pred):
        return float(-np.mean(3 * ((y_pred == 1) & (y_true == 0)) + ((y_pred == 0) & (y_true == 1))))

    task.tune(scores, truth)
    alone = task.thresholds
    task.measure_by(Metric("own", function=own) if name == "own" else name, truth)
    before = task.main_value(task.measured(scores, truth), truth)
    task.tune(scores, truth)
    gain = (task.main_value(task.measured(scores, truth), truth) - before) * (1 if task.main.greater_is_better else -1)
    assert gain >= 0 and (gain > 0) == (task.thresholds != alone)
    assert gain > 0 or (name, threshold) == ("f1_micro", "auto")  # starts from the best F1 over all labels
    assert set(task.threshold_sources) <= {"main", "main_pooled"}
    assert MultilabelTask.from_state("y", task.state()).thresholds == task.thresholds


@pytest.mark.parametrize("name", ["map_macro", "f1_macro"])
def test_tuned_thresholds_are_each_labels_otherwise(name):
    rng = np.random.default_rng(1)
    truth = (rng.random((100, 3)) < 0.4).astype(np.int8)
    scores = rng.random(truth.shape)
    task = MultilabelTask("y", threshold="tuned")
    task.fit(["|".join(label for label, on in zip("abc", row, strict=True) if on) or "[]" for row in truth])
    task.measure_by(name, truth)
    task.tune(scores, truth)
    assert task.thresholds == [best_threshold(s, t) for s, t in zip(scores.T, truth.T, strict=True)]
