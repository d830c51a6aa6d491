"""One task's answers of all compared systems, judged on the same rows: what `TaskResult` holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusetune.evaluation.measure.compare import draw_all
from fusetune.evaluation.measure.slices import SLICE_DRAWS, measure_slices
from fusetune.evaluation.results import Mistake, Shown, SystemKind, SystemResult, TaskResult
from fusetune.tasks.base import Task
from fusetune.tasks.panels.kinds import Evidence


@dataclass
class Candidate:
    """A system to compare: its answers on the evaluated rows, as `Task.answers` gives them.

    Attributes:
        name, kind, description, columns: as in `SystemResult`.
        answers: (rows, ...) in the order of the truth.
    """

    name: str
    kind: SystemKind
    description: str
    answers: np.ndarray
    columns: list[str] = field(default_factory=list)


@dataclass
class EvaluatedRows:
    """The rows that systems are judged on.

    Attributes:
        truth: (rows, ...) as `Task.truth` gives it.
        ids: (rows,) the row ids.
        split: where the rows are from.
        weights: (rows,) in the metrics.
        groups: (rows,) rows of equal value are drawn together by the bootstrap.
        slices: by column, the rows' values; numbers of many values are cut into quarters.
    """

    truth: np.ndarray
    ids: np.ndarray
    split: str = "test"
    weights: np.ndarray | None = None
    groups: Sequence[Any] | None = None
    slices: Mapping[str, Sequence[Any]] = field(default_factory=dict)


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
    """Compare the candidates and look closely at the one of kind "after" (else the last).

    Args:
        task: fitted.
        candidates: at least one.
        rows: what they are judged on.
        validation: the tuned model's answers and the truth on validation rows, for the task's panels.
        show: a position among the rows to its cells, for the worst errors.
        num: bootstrap draws.
        num_errors: how many errors to show.
        seed: of the draws.
    """
    truth = np.asarray(rows.truth)
    tuned = next((system for system in candidates if system.kind == "after"), candidates[-1])
    measured = [task.measured(system.answers, truth) for system in candidates]
    own = measured[next(place for place, system in enumerate(candidates) if system is tuned)]
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
            task, own, truth, rows.slices, weights=rows.weights, num=min(num, SLICE_DRAWS), seed=seed
        ),
    )
    names = {name for system in result.systems for name in system.metrics}
    result.meanings = {name: said for name, said in task.meanings.items() if name in names}
    if len(truth) == 0:
        return result
    result.sections = task.panels(Evidence(tuned.answers, truth, rows.weights, validation, seed))
    worst = task.worst(tuned.answers, truth, num_errors)
    result.errors_are = worst.what
    result.errors = [
        Mistake(
            int(rows.ids[row.at]), row.truth, row.prediction, row.probability, row.loss, show(row.at) if show else []
        )
        for row in worst.rows
    ]
    return result


def _systems(
    task: Task,
    candidates: Sequence[Candidate],
    measured: Sequence[np.ndarray],
    rows: EvaluatedRows,
    *,
    num: int,
    seed: int,
) -> list[SystemResult]:
    """Each candidate's metrics, and the tuned model's minus them on the same draws."""
    draws = draw_all(
        task.metrics,
        {str(place): values for place, values in enumerate(measured)},
        rows.truth,
        num=num,
        seed=seed,
        weights=rows.weights,
        groups=rows.groups,
    )
    places = range(len(candidates))
    tuned = next((place for place in places if candidates[place].kind == "after"), len(candidates) - 1)
    attacked = next((place for place in reversed(places) if candidates[place].kind == "attack"), None)  # the tuned one
    found = []
    for place, system in enumerate(candidates):
        reference = attacked if system.kind == "attack" and attacked is not None else tuned
        difference = {} if place == reference else draws[str(reference)].minus(draws[str(place)], 0.95)
        metrics = draws[str(place)].intervals(0.95)
        found.append(
            SystemResult(system.name, system.kind, system.description, metrics, difference, list(system.columns))
        )
    return found
