"""The forgetting gate: whether a model that was tuned again gains on new rows and keeps what it knew."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.tuned import read_examples
from fusetune.errors import TableError
from fusetune.evaluation.measure.compare import Draws, draw_all, interval
from fusetune.evaluation.results import Interval
from fusetune.inference.scores import predict_scores
from fusetune.tasks.base import TargetTask

DRAWS = 1000


@dataclass
class Check:
    """The models before and after on the same rows.

    Attributes:
        rows: "old rows" or "new rows".
        target, metric: what is measured.
        num_rows: the labelled rows.
        before, after: the metric with its 95 % interval.
        difference: after minus before, positive where the new model is better, with its interval on the same draws.
        least: the difference that is asked for: above 0 on new rows, above -margin on old ones.
        probability: the share of bootstrap draws with more than that.
        passed: whether the probability is at least the confidence.
    """

    rows: str
    target: str
    metric: str
    num_rows: int
    before: Interval
    after: Interval
    difference: Interval
    least: float
    probability: float
    passed: bool


def check_rows(
    name: str, table: Table, before: Bundle, after: Bundle, *, least: float, confidence: float, seed: int
) -> list[Check]:
    """Compare two models on a table, by target.

    Args:
        name: of the rows.
        table: with the inputs and the targets.
        before, after: the models; the targets' tasks are `after`'s. A label that `before` does not know has probability
            0 there.
        least: the difference of the main metric that is asked for.
        confidence: the share of bootstrap draws that must have more.
        seed: of the draws.

    Raises:
        TableError: no row has a target.
    """
    after_rows = read_examples(after, table, targets=True)
    after_rows.check_targets()
    before_rows = read_examples(before, table, targets=False)
    systems = [
        predict_scores(bundle.model, bundle.targets, rows, stack=bundle.stack)
        for bundle, rows in ((before, before_rows), (after, after_rows))
    ]
    checks = []
    for key, task in after.targets.items():
        rows = after_rows.labelled(key)
        rows = rows[np.isin(rows, before_rows.used)]
        if not len(rows):
            raise TableError("no row has a target to measure", file=table.source, column=task.target)
        old = aligned(before.targets[key], task, systems[0][key][before_rows.positions(rows)])
        new = systems[1][key][after_rows.positions(rows)]
        truth, weights = after_rows.truth(key, rows), after_rows.weights[rows]
        measured = {"before": task.measured(old, truth), "after": task.measured(new, truth)}
        draws = draw_all(task.all_metrics, measured, truth, num=DRAWS, seed=seed, weights=weights)
        checks.append(_check(name, task, len(rows), draws, least, confidence))
    return checks


def _check(
    name: str,
    task: TargetTask,
    num: int,
    draws: dict[str, Draws],
    least: float,
    confidence: float,
) -> Check:
    metric, sign = task.main.name, 1 if task.main.greater_is_better else -1
    old, new = draws["before"], draws["after"]
    gained = sign * (new.drawn[metric] - old.drawn[metric])
    known = gained[np.isfinite(gained)]
    probability = float(np.mean(known > least)) if len(known) else math.nan
    return Check(
        name,
        task.target,
        metric,
        num,
        interval(old.value[metric], old.drawn[metric]),
        interval(new.value[metric], new.drawn[metric]),
        interval(sign * (new.value[metric] - old.value[metric]), gained),
        least,
        probability,
        bool(probability >= confidence),
    )


def aligned(before: TargetTask, after: TargetTask, scores: np.ndarray) -> np.ndarray:
    """Return scores with their columns in the order of another task's labels; 0 for labels that were not known.

    Args:
        before, after: tasks of the same target.
        scores: (rows, labels of `before`); numbers, or lists and texts, are returned unchanged.
    """
    if scores.dtype == object or scores.ndim != 2 or before.labels == after.labels:
        return scores
    columns = {label: index for index, label in enumerate(before.labels)}
    result = np.zeros((len(scores), len(after.labels)), dtype=scores.dtype)
    for index, label in enumerate(after.labels):
        if label in columns:
            result[:, index] = scores[:, columns[label]]
    return result
