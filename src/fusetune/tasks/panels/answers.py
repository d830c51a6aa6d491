"""Panels about answers that are parts of a context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusetune.tasks.panels.kinds import (
    Evidence,
    Head,
    HistogramPanel,
    Panel,
    Section,
    TablePanel,
    WorstRows,
    WrongRow,
    ranked,
)

SHOWN_ROWS = 12
"""Rows of the table of answers."""
NO_ANSWER = "(no answer)"


def rows_panel(truths: Mapping[str, np.ndarray]) -> TablePanel:
    """Return a table of the rows with and without an answer, by split; the truth is an array of `Gold`."""
    heads = [Head("split"), *(Head(name, "count") for name in ("with answer", "without", "several occurrences"))]
    rows: list[list[Any]] = []
    for split, truth in truths.items():
        has = sum(bool(right.texts) for right in truth)
        rows.append([split, has, len(truth) - has, sum(right.repeated for right in truth)])
    return TablePanel(heads, rows)


def answers_section(evidence: Evidence, given: np.ndarray, f1: np.ndarray) -> Section:
    """Return a table of some answers.

    Args:
        evidence: the task's answers and truth.
        given: (rows,) the answers as text, "" for none.
        f1: (rows,) of each row.
    """
    chosen = np.sort(np.random.default_rng(evidence.seed).permutation(len(given))[:SHOWN_ROWS])
    rows: list[list[Any]] = [
        [_shown(evidence.truth[row]), given[row] or NO_ANSWER, float(f1[row]), evidence.answers[row]["score"]]
        for row in chosen
    ]
    heads = [Head("right answer"), Head("answer"), Head("f1", "bar"), Head("score of the best span", "number")]
    return Section("answers", "Answers", [TablePanel(heads, rows, "rows at random")])


def margin_section(answers: np.ndarray, has: np.ndarray, threshold: float) -> Section:
    """Return histograms of how much better no answer is than the best span.

    Args:
        answers: (rows,) the task's answers.
        has: (rows,) bool, whether a row has an answer.
        threshold: rows above it are given no answer.
    """
    margins = np.array([answer["margin"] for answer in answers])
    edges = np.histogram_bin_edges(margins, bins=20)
    panels: list[Panel] = [
        HistogramPanel(title, "log(p(no answer) / p(best span))", edges.tolist(), np.histogram(own, edges)[0].tolist())
        for title, own in (("rows with an answer", margins[has]), ("rows without an answer", margins[~has]))
    ]
    notes = [f"Rows above {threshold:.3g} are given no answer."]
    return Section("no_answer", "No answer", panels, notes, {"threshold": threshold})


def worst_answers(given: np.ndarray, truth: np.ndarray, sure: np.ndarray, f1: np.ndarray, num: int) -> WorstRows:
    """Return the wrong rows with the surest answers: in turn those given none, those that have none, and others.

    Args:
        given: (rows,) the answers as text, "" for none.
        truth: (rows,) of `Gold`.
        sure: (rows,) the answers' probabilities.
        f1: (rows,) of each row.
        num: the most rows.
    """
    kinds = np.array([2 * (not text) + bool(right.texts) for text, right in zip(given, truth, strict=True)])
    loss = sure * (1 - f1)
    rows = [
        WrongRow(at, _shown(truth[at]), given[at] or NO_ANSWER, float(sure[at]), float(loss[at]))
        for at in ranked(loss, kinds, num, among=f1 < 1)
    ]
    return WorstRows("wrong answers that the model is most sure of", rows)


def _shown(right: Any) -> str:
    return right.texts[0] if right.texts else NO_ANSWER
