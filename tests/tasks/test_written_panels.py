"""Panels about written answers: every figure is what counting the texts gives."""

import numpy as np
import pytest

from fusetune.tasks.main_metric import Metric
from fusetune.tasks.panels.kinds import Evidence, HistogramPanel, TablePanel
from fusetune.tasks.panels.written import MAX_TEXT, changed_rows, sizes_panel, worst_written, written_sections
from fusetune.tasks.text.metrics.table import row_counts

RIGHT = "a red bus waits at the corner"
CHRF, WER = Metric("chrf"), Metric("wer", False)


def texts(*values):
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def measured(answers, truth):
    return answers, row_counts(list(answers), list(truth))


def test_form_counts_empty_repeating_different_and_cut_answers():
    truth = texts(RIGHT, [RIGHT, "other"], "two words", "猫が座る")
    after = texts(RIGHT, "", "no no no no no no no no", "猫が座る")
    before = texts("", " ", "", "x")
    evidence = Evidence(after, truth, before=before, cut=np.array([False, False, True, False]))
    form, lengths = written_sections(evidence)
    assert form.figures["tuned_empty"] == 0.25 and form.figures["before_empty"] == 0.75
    assert form.figures["tuned_repeat"] == 0.25 and form.figures["true_repeat"] == 0
    assert form.figures["tuned_cut"] == 0.25 and form.figures["true_different"] == 0.75
    (table,) = form.panels
    assert [row[0] for row in table.rows] == ["true", "before", "tuned"]
    assert table.rows[0][-1] == 7 and table.rows[2][-1] == 8
    assert all(len(row) == len(table.heads) for row in table.rows)
    assert all(isinstance(panel, HistogramPanel) and sum(panel.counts) == 4 for panel in lengths.panels)
    assert all(len(panel.edges) == len(panel.counts) + 1 for panel in lengths.panels)
    assert [section.key for section in written_sections(Evidence(after, truth))] == ["form", "lengths"]


def test_frequent_answers_are_counted_beside_the_true_ones():
    truth, after = texts("yes", "no", "no", "two", "red"), texts("no", "no", "no", "no", "")
    section = written_sections(Evidence(after, truth, before=texts(*["yes"] * 5)))[-1]
    (table,) = section.panels
    assert isinstance(table, TablePanel) and section.key == "frequent"
    assert table.rows == [["no", 2, 0, 4]]


@pytest.mark.parametrize("metric", [CHRF, WER], ids=lambda metric: metric.name)
def test_changed_rows_are_those_that_gained_and_lost_most(metric):
    truth = texts(*[RIGHT] * 5)
    before = texts("a red bus", RIGHT, "nothing at all", "a red bus", "same words")
    after = texts("a red bus waits", "a blue car", RIGHT, "a red bus", "same words")
    changed = changed_rows(measured(before, truth), measured(after, truth), truth, metric, 3)
    assert [(row.at, row.outcome) for row in changed.rows][:2] == [(2, "better"), (1, "worse")]
    assert len(changed.rows) == 3 and changed.rows[2].at in (0, 3, 4) and changed.rows[2].outcome == "at random"
    assert (changed.better, changed.worse, changed.same) == (2, 1, 2)
    lost = changed.rows[1]
    assert (lost.before, lost.after, lost.truth) == (RIGHT, "a blue car", RIGHT)
    assert (lost.after_score < lost.before_score) == metric.greater_is_better


def test_rows_are_compared_by_characters_where_bleu_decides():
    truth = texts(RIGHT, RIGHT)
    changed = changed_rows(
        measured(texts("a red", "x"), truth), measured(texts("a red bus", "y"), truth), truth, Metric("bleu"), 6
    )
    assert changed.score == "chrf" and changed.better == 1 and len(changed.rows) == 2


def test_worst_answers_take_turns_between_kinds_of_error_and_leave_right_ones_out():
    truth = texts(RIGHT, RIGHT, RIGHT, RIGHT, [RIGHT, "an alias"], RIGHT)
    answers = texts("", "", "no " * 9, "red", "an alias", "a red van waits at the corner")
    worst = worst_written(answers, truth, measured(answers, truth)[1], CHRF, 4)
    assert {row.at for row in worst.rows[:3]} == {0, 2, 3} and worst.rows[0].prediction == "(empty)"
    assert all(row.at != 4 for row in worst_written(answers, truth, measured(answers, truth)[1], CHRF, 9).rows)
    long = texts("word " * 1_000)
    (row,) = worst_written(long, texts(["a", "b", "c", "d", "e"]), measured(long, texts("a"))[1], WER, 1).rows
    assert len(row.prediction) <= MAX_TEXT and row.truth == "a\nb\nc\nand 2 more"


def test_sizes_by_split():
    panel = sizes_panel({"train": texts("two words", ["a", "b"], "two words"), "test": texts()})
    assert panel.rows[0] == ["train", 3, pytest.approx(4 / 3), 2, 2, pytest.approx(2 / 3)]
    assert panel.rows[1][:2] == ["test", 0]
