"""Column importance: a tuned model's main metric with one column hidden."""

from __future__ import annotations

import math

import numpy as np

from fusetune.evaluation.measure.compare import draw_all
from fusetune.evaluation.measure.judge import EvaluatedRows
from fusetune.evaluation.measure.systems import model_scores
from fusetune.evaluation.report.svg import figure, signed
from fusetune.evaluation.results import Interval
from fusetune.models.family import Family
from fusetune.tasks.base import TargetTask
from fusetune.tasks.panels.kinds import Cell, Head, TablePanel
from fusetune.training.probes.probe import SplitRows
from fusetune.trees.stack import Stack

MAX_COLUMNS = 24
"""With more columns, importance is not measured: each column costs a pass over the rows."""
DRAWS = 200


def hidden_columns(
    model: Family, name: str, task: TargetTask, train: SplitRows, test: SplitRows, stack: Stack | None = None
) -> dict[str, np.ndarray]:
    """Return the tuned model's answers with each column hidden, by column; {} for one column or very many.

    Args:
        model: the tuned model.
        name: the task's name in the model.
        task: the fitted task.
        train: the rows that give the constant guess.
        test: the rows to predict.
        stack: the boosted trees beside the model, if any.
    """
    columns = list(test.examples.columns)
    if not 1 < len(columns) <= MAX_COLUMNS:
        return {}
    answers = {}
    for column in columns:
        view = test.examples.restrict([other for other in columns if other != column])
        answers[column] = model_scores(model, name, task, test.seen(view), train, stack)
    return answers


def importance(
    task: TargetTask, answers: np.ndarray, hidden: dict[str, np.ndarray], rows: EvaluatedRows, *, num: int, seed: int
) -> list[TablePanel]:
    """Return a table of the columns' importance, the most important first; [] if `hidden` is empty.

    Args:
        task: the fitted task.
        answers: the tuned model's answers.
        hidden: the answers that `hidden_columns` returns.
        rows: the evaluated rows.
        num: the number of bootstrap draws; at most `DRAWS` are made.
        seed: the seed of the draws.
    """
    if not hidden or not len(rows.truth):
        return []

    def main(measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
        return {task.main.name: task.main_value(measured, truth, weights)}

    systems = {"": answers, **hidden}
    measured = {column: task.measured(scores, rows.truth) for column, scores in systems.items()}
    draws = draw_all(
        main, measured, rows.truth, num=min(num, DRAWS), seed=seed, weights=rows.weights, groups=rows.groups
    )
    sign = 1 if task.main.greater_is_better else -1
    changes = []
    for column in hidden:
        change = draws[column].minus(draws[""], 0.95)[task.main.name]
        changes.append((column, draws[column].value[task.main.name], change, -sign * change.value))
    changes.sort(key=lambda row: -row[3] if math.isfinite(row[3]) else math.inf)
    largest = max((loss for *_, loss in changes if math.isfinite(loss)), default=0.0)
    cells: list[list[Cell]] = [
        [column, value, _format_change(change), max(loss, 0.0) / largest if largest > 0 else 0.0]
        for column, value, change, loss in changes
    ]
    heads = [Head("hidden column"), Head(f"{task.main.name} without it", "number"), Head("change"), Head("", "bar")]
    caption = "The tuned model with one column hidden. A loss shows what the other columns cannot replace."
    return [TablePanel(heads, cells, caption=caption)]


def _format_change(change: Interval) -> str:
    if not change.known:
        return signed([change.value])[0] if math.isfinite(change.value) else figure(math.nan)
    return "{} [{}, {}]".format(*signed([change.value, change.low, change.high]))
