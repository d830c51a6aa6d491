"""What each column counts for a tuned model: its main metric with the column hidden."""

from __future__ import annotations

import math

import numpy as np

from fusetune.evaluation.measure.compare import draw_all
from fusetune.evaluation.measure.judge import EvaluatedRows
from fusetune.evaluation.measure.systems import model_scores
from fusetune.evaluation.report.svg import figure, signed
from fusetune.evaluation.results import Interval
from fusetune.models.family import Family
from fusetune.tasks.base import Task
from fusetune.tasks.panels.kinds import Cell, Head, TablePanel
from fusetune.training.probe import SplitRows
from fusetune.trees.stack import Stack

MAX_COLUMNS = 24
"""Of more columns, none is hidden by itself: each costs a pass over the rows."""
DRAWS = 200


def hidden_columns(
    model: Family, name: str, task: Task, train: SplitRows, test: SplitRows, stack: Stack | None = None
) -> dict[str, np.ndarray]:
    """Return the tuned model's answers with each column hidden, by column; none for one column or very many.

    Args:
        model: tuned.
        name: the task's name in the model.
        task: fitted.
        train: rows that the constant guess is learned on.
        test: rows to predict.
        stack: the trees beside the model, where there are any.
    """
    columns = list(test.examples.columns)
    if not 1 < len(columns) <= MAX_COLUMNS:
        return {}
    answers = {}
    for column in columns:
        seen = test.examples.restrict([other for other in columns if other != column])
        answers[column] = model_scores(model, name, task, test.seen(seen), train, stack)
    return answers


def importance(
    task: Task, answers: np.ndarray, hidden: dict[str, np.ndarray], rows: EvaluatedRows, *, num: int, seed: int
) -> list[TablePanel]:
    """Return a table of what each column counts, the weightiest first; none where nothing was hidden.

    Args:
        task: fitted.
        answers: the tuned model's.
        hidden: as `hidden_columns` gives them.
        rows: what the answers are for.
        num: bootstrap draws, at most `DRAWS`.
        seed: of the draws.
    """
    if not hidden or not len(rows.truth):
        return []

    def main(measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
        return {task.main.name: task.main_value(measured, truth, weights)}

    systems = {"": answers, **hidden}
    measured = {column: task.measured(given, rows.truth) for column, given in systems.items()}
    draws = draw_all(
        main, measured, rows.truth, num=min(num, DRAWS), seed=seed, weights=rows.weights, groups=rows.groups
    )
    sign = 1 if task.main.greater_is_better else -1
    found = []
    for column in hidden:
        change = draws[column].minus(draws[""], 0.95)[task.main.name]
        found.append((column, draws[column].value[task.main.name], change, -sign * change.value))
    found.sort(key=lambda row: -row[3] if math.isfinite(row[3]) else math.inf)
    most = max((lost for *_, lost in found if math.isfinite(lost)), default=0.0)
    cells: list[list[Cell]] = [
        [column, value, _written(change), max(lost, 0.0) / most if most > 0 else 0.0]
        for column, value, change, lost in found
    ]
    heads = [Head("hidden column"), Head(f"{task.main.name} without it", "number"), Head("change"), Head("", "bar")]
    caption = "The tuned model with one column hidden: what is lost is what the others cannot stand in for."
    return [TablePanel(heads, cells, caption=caption)]


def _written(change: Interval) -> str:
    if not change.known:
        return signed([change.value])[0] if math.isfinite(change.value) else figure(math.nan)
    return "{} [{}, {}]".format(*signed([change.value, change.low, change.high]))
