"""A task's result: what it holds for every kind of task, against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.evaluation.measure.slices import slice_names
from fusetune.evaluation.report.verdict import warnings_of
from fusetune.evaluation.report.write import render
from fusetune.evaluation.results import RunResults, TaskResult, from_json, to_json
from fusetune.registry import TASKS
from fusetune.tasks.base import Metric, TargetTask
from fusetune.tasks.panels.kinds import WorstRows, WrongRow, ranked

KINDS = ("binary", "multiclass", "ordinal", "multilabel", "regression")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_is_judged(kind: str, task: Callable[..., TaskResult]) -> None:
    found = task(kind, 120, classes=5)
    assert found.name == kind and found.rows == 120
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
    keys = [section.key for section in found.sections]
    wanted = {"regression": ["numbers"], "multilabel": ["classes", "curves", "calibration"]}
    assert keys == wanted.get(kind, ["classes", "confusion", "curves", "calibration"])
    assert found.balance and found.errors_are


def test_rows_are_reported_under_their_ids_and_the_worst_come_first() -> None:
    task = TASKS.get("regression")("price")
    task.fit([1.0, 2.0, 3.0, 4.0] * 5)
    truth = task.truth([1.0, 2.0, 3.0, 4.0] * 5)
    scores = truth.copy()
    scores[7] += 50
    found = judge(
        task, [Candidate("tuned", "after", "", scores)], EvaluatedRows(truth, np.arange(20) * 10), num=50, num_errors=1
    )
    assert [mistake.row for mistake in found.errors] == [70]


def test_no_rows_give_a_result_without_figures() -> None:
    task = TASKS.get("binary")("target")
    task.fit(["a", "b"] * 5)
    nothing = np.zeros((0, 2))
    found = judge(
        task,
        [Candidate("tuned", "after", "", nothing)],
        EvaluatedRows(np.zeros(0, dtype=int), np.zeros(0, dtype=int)),
    )
    assert found.rows == 0 and not found.errors


def test_the_fast_main_metric_is_the_tasks_own() -> None:
    rng = np.random.default_rng(0)
    task = TASKS.get("multiclass")("target")
    task.fit(["a", "b", "c"] * 3)
    scores, truth, weights = rng.random((50, 3)), rng.integers(0, 3, 50), rng.random(50)
    for given_weights in (None, weights):
        theirs = task.metrics(scores, truth, given_weights)["accuracy"]
        assert task.main_value(scores, truth, given_weights) == pytest.approx(theirs)


class SpansTask(TargetTask):
    """Answers with a list a row; its metric is the F1 of all lists' elements together."""

    name, main = "spans", Metric("f1")

    def measured(self, answers, truth):
        counts = [
            [len(set(a) & set(b)), len(set(a) - set(b)), len(set(b) - set(a))]
            for a, b in zip(answers, truth, strict=True)
        ]
        return np.asarray(counts, dtype=float).reshape(-1, 3)

    def metrics(self, measured, truth, weights=None):
        hits, false, lost = (measured if weights is None else measured * weights[:, None]).sum(0)
        return {"f1": float(2 * hits / (2 * hits + false + lost)) if hits + false + lost else math.nan}

    def worst(self, answers, truth, num):
        measured = self.measured(answers, truth)
        wrong = measured[:, 1:].sum(1)
        rows = ranked(wrong, np.zeros(len(wrong)), num, among=wrong > 0)
        shown = [WrongRow(at, str(truth[at]), str(answers[at]), math.nan, float(wrong[at])) for at in rows]
        return WorstRows("rows with the most wrong spans", shown)


def ragged(lists):
    made = np.empty(len(lists), dtype=object)
    made[:] = lists
    return made


def test_a_task_that_answers_with_lists_is_judged_by_its_rows_counts(monkeypatch) -> None:
    monkeypatch.setattr(SpansTask, "__abstractmethods__", frozenset())
    rng = np.random.default_rng(0)
    truth = ragged([sorted(rng.choice(9, rng.integers(0, 4), replace=False).tolist()) for _ in range(80)])
    good = ragged([row if place % 4 else [*row, 11] for place, row in enumerate(truth)])
    poor = ragged([row[:1] for row in truth])
    task = SpansTask("who")
    calls = []
    measured = SpansTask.measured
    monkeypatch.setattr(SpansTask, "measured", lambda *given: calls.append(1) or measured(*given))
    rows = EvaluatedRows(truth, np.arange(80), slices={"half": ["a", "b"] * 40})
    found = judge(
        task,
        [Candidate("first only", "baseline", "", poor), Candidate("tuned", "after", "", good)],
        rows,
        num=200,
        num_errors=3,
    )
    hits, more, lost = measured(task, good, truth).sum(0)
    assert found.main(found.systems[1]).value == pytest.approx(2 * hits / (2 * hits + more + lost))
    assert found.main(found.systems[1]).known and found.systems[0].difference["f1"].low > 0
    assert sum(part.rows for part in found.slices) == 80 and len(found.errors) == 3
    assert len(calls) == 3, "each system's rows are compared with the truth once, not once a draw"
    parsed = from_json(to_json(RunResults("", "0", "", "", 0, "cpu", 1, [found])))
    assert "rows with the most wrong spans" in render(parsed)


@given(st.lists(st.none() | st.floats() | st.integers() | st.text() | st.booleans(), max_size=60))
def test_every_value_falls_into_a_slice(values: list[object]) -> None:
    assert len(slice_names(values)) == len(values)


@pytest.mark.parametrize("written", [float, str, lambda number: f" {number:.3f}"], ids=["float", "text", "padded"])
def test_numbers_are_cut_into_quarters_however_they_are_written(written) -> None:
    numbers = np.random.default_rng(0).gamma(2, 30, 200)
    found = slice_names([written(number) for number in numbers] + [None, "", math.nan])
    names, counts = np.unique(found[:200], return_counts=True)
    assert len(names) == 4 and counts.tolist() == [50] * 4
    assert set(found[200:]) == {"(missing)"}


def test_codes_and_few_numbers_are_slices_of_their_own() -> None:
    codes = [f"00{place:03d}" for place in range(40)]
    assert slice_names(codes) == codes
    assert set(slice_names(["1", "2", "3"] * 10)) == {"1", "2", "3"}
    assert slice_names(["1.5", "two", "3"] * 20)[:3] == ["1.5", "two", "3"]


def test_each_system_is_measured_by_thresholds_of_its_own() -> None:
    """A system whose probabilities are lower but as well ordered is as good as the tuned one."""
    task = TASKS.get("multilabel")("tags")
    cells = ["a|b", "a", "b", "[]"] * 15
    task.fit(cells)
    truth = task.truth(cells)
    answers = np.clip(truth * 0.5 + 0.3 + np.random.default_rng(0).normal(0, 0.1, truth.shape), 0, 1)
    task.tune(answers, truth)
    cautious = [Candidate("cautious", "before", "", answers / 10, validation=part) for part in (answers / 10, None)]
    rows = EvaluatedRows(truth, np.arange(len(truth)))
    found = judge(
        task, [*cautious, Candidate("tuned", "after", "", answers)], rows, validation=(answers, truth), num=50
    )
    own, of_the_tuned, tuned = (system.metrics["f1_macro"].value for system in found.systems)
    assert own == pytest.approx(tuned) and tuned > 0.9 and of_the_tuned == 0


def test_labels_that_are_never_predicted_are_warned_about() -> None:
    task = TASKS.get("multiclass")("kind")
    cells = ["a", "b", "c", "d"] * 5
    task.fit(cells)
    truth = task.truth(cells)
    for answers, warned in ((task.constant(truth, len(cells)), True), (np.eye(4)[truth], False)):
        result = judge(task, [Candidate("tuned", "after", "", answers)], EvaluatedRows(truth, np.arange(20)), num=10)
        assert bool(result.warnings) == warned
        results = RunResults("", "", "", "", 0, "cpu", 1, tasks=[result])
        assert warnings_of(results) == result.warnings
