"""Answers before and after tuning stand side by side in the report, with the row's cells."""

import numpy as np

from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.evaluation.report.write import render
from fusetune.evaluation.results import RunResults, Shown, from_json, to_json
from fusetune.tasks.abilities import ShowsChange, Summed
from fusetune.tasks.base import Metric
from fusetune.tasks.panels.written import changed_rows, worst_written, written_sections
from fusetune.tasks.text.metrics.table import metrics_of, row_counts


class TextTask(ShowsChange, Summed):
    """Answers with a text a row."""

    name, main = "text", Metric("chrf")

    def measured(self, answers, truth):
        return row_counts(list(answers), list(truth))

    def metrics(self, measured, truth, weights=None):
        return metrics_of(measured, weights)

    def panels(self, evidence):
        return written_sections(evidence)

    def worst(self, answers, truth, num):
        return worst_written(answers, truth, self.measured(answers, truth), self.main, num)

    def changed(self, before, after, truth, num):
        return changed_rows(before, after, truth, self.main, num)


def texts(values):
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def run(result):
    return RunResults("captions", "0", "", "", 0, "cpu", 1, [result])


def test_answers_before_and_after_are_in_the_report(monkeypatch):
    monkeypatch.setattr(TextTask, "__abstractmethods__", frozenset())
    truth = texts([f"the number {number} <b>bus</b>" for number in range(20)])
    before = texts([f"{text} and more" if at % 5 else text for at, text in enumerate(truth)])
    after = texts([text if at % 5 else "<script>alert(1)</script>" for at, text in enumerate(truth)])
    candidates = [
        Candidate("most frequent", "baseline", "", texts([truth[0]] * 20)),
        Candidate("zero-shot", "before", "", before),
        Candidate("tuned", "after", "", after, cut=np.arange(20) < 5),
    ]
    result = judge(
        TextTask("caption"),
        candidates,
        EvaluatedRows(truth, np.arange(20) + 100),
        show=lambda at: [Shown("source", "text", f"cell {at}")],
        num=20,
        num_errors=12,
    )
    assert {system.name for system in result.systems} == {"most frequent", "zero-shot", "tuned"}
    assert [row.outcome for row in result.changed] == [
        *(["better"] * 3 + ["worse"] * 3 + ["at random"] * 3),
        *["better", "worse", "at random"],
    ]
    assert all(row.row % 5 == 0 for row in result.changed[3:6]), "tuning broke these"
    assert all(row.cells[0].text == f"cell {row.row - 100}" for row in result.changed)
    form = next(section for section in result.sections if section.key == "form")
    assert form.figures["tuned_cut"] == 0.25 and "before_empty" in form.figures
    results = run(result)
    assert from_json(to_json(results)).tasks[0].changed == result.changed
    page = render(results)
    assert "Before and after tuning" in page and "cell 5" in page
    assert "<script>alert" not in page and "<b>bus" not in page


def test_without_an_answer_before_nothing_is_compared(monkeypatch):
    monkeypatch.setattr(TextTask, "__abstractmethods__", frozenset())
    truth = texts(["a bus", "a car"])
    result = judge(TextTask("caption"), [Candidate("tuned", "after", "", truth)], EvaluatedRows(truth, np.arange(2)))
    assert result.changed == [] and "Before and after tuning" not in render(run(result))
