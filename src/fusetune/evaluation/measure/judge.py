"""Compare systems on the same rows of one task, and build the `TaskResult`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusetune.evaluation.measure.compare import draw_all, draw_sums
from fusetune.evaluation.measure.slices import SLICE_DRAWS, measure_slices
from fusetune.evaluation.results import Mistake, Shown, SystemKind, SystemResult, TaskResult
from fusetune.evaluation.shown import ChangedAnswer
from fusetune.tasks.abilities import ShowsChange, Summed, Thresholded
from fusetune.tasks.base import Task
from fusetune.tasks.panels.kinds import ChangedRows, Evidence


@dataclass
class Candidate:
    """A system to compare, with its answers on the evaluated rows.

    Attributes:
        name, kind, description, columns: see `SystemResult`.
        answers: (rows, ...) as the task returns them, in the order of the truth.
        validation: the same for the validation rows, on which the system's own decision thresholds are tuned. None if
            it takes those of the tuned model.
        cut: (rows,) bool, the written answers that ended at the limit on their length; None for others.
    """

    name: str
    kind: SystemKind
    description: str
    answers: np.ndarray
    columns: list[str] = field(default_factory=list)
    validation: np.ndarray | None = None
    cut: np.ndarray | None = None

    def measured(self, task: Task, truth: np.ndarray, val_truth: np.ndarray | None) -> np.ndarray:
        """Return the input to the task's metrics, (rows, k), with decisions by the system's own thresholds.

        Args:
            task: the fitted task, with the tuned model's thresholds.
            truth: (rows, ...).
            val_truth: the truth of the validation rows, if any.
        """
        if isinstance(task, Thresholded) and self.validation is not None and val_truth is not None:
            task = copy.deepcopy(task)
            task.tune(self.validation, val_truth)
        return task.measured(self.answers, truth)


@dataclass
class EvaluatedRows:
    """The rows that systems are compared on.

    Attributes:
        truth: (rows, ...) as the task returns it.
        ids: (rows,) the row ids.
        split: the rows' split.
        weights: (rows,) row weights in the metrics.
        groups: (rows,) the bootstrap draws rows with equal values together.
        slices: the rows' values by column; numbers with many values are divided into quarters.
        texts: returns the texts that the task reads in the row at a position; None for a task that reads none.
    """

    truth: np.ndarray
    ids: np.ndarray
    split: str = "test"
    weights: np.ndarray | None = None
    groups: Sequence[Any] | None = None
    slices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    texts: Callable[[int], Sequence[str]] | None = None


def judge(
    task: Task,
    candidates: Sequence[Candidate],
    rows: EvaluatedRows,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    show: Callable[[int], list[Shown]] | None = None,
    num: int = 1000,
    num_errors: int = 12,
    seed: int = 0,
) -> TaskResult:
    """Compare the candidates; slices, panels and errors are of the one of kind "after" (else the last).

    Args:
        task: the fitted task.
        candidates: one or more systems.
        rows: the evaluated rows.
        validation: the tuned model's answers and the truth on validation rows, for the task's panels.
        show: returns the cells of the row at a position, for the worst errors.
        num: the number of bootstrap draws.
        num_errors: the number of errors to show.
        seed: the seed of the draws.
    """
    truth = np.asarray(rows.truth)
    tuned = next((system for system in candidates if system.kind == "after"), candidates[-1])
    val_truth = None if validation is None else validation[1]
    measured = [system.measured(task, truth, val_truth) for system in candidates]
    tuned_measured = measured[next(index for index, system in enumerate(candidates) if system is tuned)]
    result = TaskResult(
        name=task.name,
        target=task.target,
        metric=task.main.name,
        greater_is_better=task.main.greater_is_better,
        rows=len(truth),
        systems=_systems(task, candidates, measured, rows, num=num, seed=seed),
        labels=task.labels,
        split=rows.split,
        slices=measure_slices(
            task, tuned_measured, truth, rows.slices, weights=rows.weights, num=min(num, SLICE_DRAWS), seed=seed
        ),
    )
    names = {name for system in result.systems for name in system.metrics}
    result.meanings = {name: meaning for name, meaning in task.meanings.items() if name in names}
    if len(truth) == 0:
        return result
    result.warnings = task.warnings(tuned.answers, truth)
    after = next(system for system, candidate in zip(result.systems, candidates, strict=True) if candidate is tuned)
    intervals = {name: (metric.value, metric.low, metric.high) for name, metric in after.metrics.items()}
    before = next((index for index, system in enumerate(candidates) if system.kind == "before"), None)
    answers_before = None if before is None else candidates[before].answers
    more: dict[str, Any] = {"ids": rows.ids, "texts": rows.texts, "intervals": intervals}
    more |= {"before": answers_before, "cut": tuned.cut}
    result.sections = task.panels(Evidence(tuned.answers, truth, rows.weights, validation, seed, **more))
    if isinstance(task, ShowsChange) and answers_before is not None and before is not None:
        pair = (answers_before, measured[before]), (tuned.answers, tuned_measured)
        _add_changed(result, task.changed(*pair, truth, num_errors), rows, show)
    worst = task.worst(tuned.answers, truth, num_errors)
    result.errors_are = worst.what
    result.errors = [
        Mistake(
            int(rows.ids[row.at]), row.truth, row.prediction, row.probability, row.loss, show(row.at) if show else []
        )
        for row in worst.rows
    ]
    return result


def _add_changed(
    result: TaskResult, changed: ChangedRows, rows: EvaluatedRows, show: Callable[[int], list[Shown]] | None
) -> None:
    """Add answers before and after tuning to a result; `show` returns the cells of the row at a position."""
    result.changed = [
        ChangedAnswer(
            int(rows.ids[row.at]),
            row.outcome,
            row.truth,
            row.before,
            row.after,
            row.before_score,
            row.after_score,
            show(row.at) if show else [],
        )
        for row in changed.rows
    ]
    result.changed_are = (
        f"By {changed.score}, tuning made {changed.better:,} rows better and {changed.worse:,} worse; "
        f"{changed.same:,} stayed the same."
    )


def _systems(
    task: Task,
    candidates: Sequence[Candidate],
    measured: Sequence[np.ndarray],
    rows: EvaluatedRows,
    *,
    num: int,
    seed: int,
) -> list[SystemResult]:
    """Return each candidate's metrics, and their paired differences to the tuned model's.

    A metric that is defined for none of them, such as one of votes where a row has a single right answer, is left out.
    """
    draw = draw_sums if isinstance(task, Summed) else draw_all
    draws = draw(
        task.all_metrics,
        {str(index): values for index, values in enumerate(measured)},
        rows.truth,
        num=num,
        seed=seed,
        weights=rows.weights,
        groups=rows.groups,
    )
    indices = range(len(candidates))
    defined = {name for own in draws.values() for name, value in own.value.items() if not math.isnan(value)}
    shown = {*defined, task.main.name} if len(rows.truth) else {name for own in draws.values() for name in own.value}
    draws = {name: own.only(shown) for name, own in draws.items()}
    tuned = next((index for index in indices if candidates[index].kind == "after"), len(candidates) - 1)
    attacked = next((index for index in reversed(indices) if candidates[index].kind == "attack"), None)  # the tuned one
    results = []
    for index, system in enumerate(candidates):
        reference = attacked if system.kind == "attack" and attacked is not None else tuned
        difference = {} if index == reference else draws[str(reference)].minus(draws[str(index)], 0.95)
        metrics = draws[str(index)].intervals(0.95)
        results.append(
            SystemResult(system.name, system.kind, system.description, metrics, difference, list(system.columns))
        )
    return results
