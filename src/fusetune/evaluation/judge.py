"""One task's scores of all compared systems, judged on the same rows: what `TaskResult` holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from fusetune.evaluation.calibration import calibrate
from fusetune.evaluation.compare import Metrics, bootstrap, draw_all
from fusetune.evaluation.curves import as_matrix, confusion, curves, number_fit, per_class
from fusetune.evaluation.mistakes import cut, worst
from fusetune.evaluation.results import (
    Interval,
    Mistake,
    Shown,
    Slice,
    SystemKind,
    SystemResult,
    TaskKind,
    TaskResult,
)
from fusetune.tasks.base import Task

MAX_SLICES = 12
SLICE_DRAWS = 200
TINY = 1e-12


@dataclass
class Candidate:
    """A system to compare: its scores on the evaluated rows, as `Task.scores` gives them.

    Attributes:
        name, kind, description, columns: as in `SystemResult`.
        scores: (rows, ...) in the order of the truth.
    """

    name: str
    kind: SystemKind
    description: str
    scores: np.ndarray
    columns: list[str] = field(default_factory=list)


def judge(
    task: Task,
    candidates: Sequence[Candidate],
    truth: np.ndarray,
    rows: np.ndarray,
    *,
    split: str = "test",
    weights: np.ndarray | None = None,
    groups: Sequence[Any] | None = None,
    slices: Mapping[str, Sequence[Any]] | None = None,
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
        truth: (rows, ...) as `Task.truth` gives it.
        rows: (rows,) the row ids.
        split: where the rows are from.
        weights: (rows,) in the metrics.
        groups: (rows,) rows of equal value are drawn together by the bootstrap.
        slices: by column, the rows' values; numbers of many values are cut into quarters.
        validation: the tuned model's scores and the truth on validation rows, for the temperature.
        show: a position among the rows to its cells, for the worst errors.
        num: bootstrap draws.
        num_errors: how many errors to show.
        seed: of the draws.
    """
    truth = np.asarray(truth)
    tuned = next((one for one in candidates if one.kind == "after"), candidates[-1])
    kind = shown_as(task, truth)
    result = TaskResult(
        name=task.name,
        kind=kind,
        target=task.target,
        metric=task.main.name,
        greater_is_better=task.main.greater_is_better,
        rows=len(truth),
        systems=_systems(task, candidates, tuned, truth, weights=weights, groups=groups, num=num, seed=seed),
        labels=task.labels,
        split=split,
        slices=_slices(task, tuned.scores, truth, slices or {}, weights=weights, num=min(num, SLICE_DRAWS), seed=seed),
    )
    if len(truth) == 0:
        return result
    if kind == "regression":
        predicted = tuned.scores
        result.fit = number_fit(predicted, truth, seed=seed)
    else:
        scores = probabilities(tuned.scores)
        predicted = predictions(task, tuned.scores, truth)
        checked = None if validation is None else (probabilities(validation[0]), np.asarray(validation[1]))
        result.per_class = per_class(scores, predicted, truth, task.labels, weights)
        result.roc, result.pr = curves(scores, truth, task.labels)
        result.calibration = calibrate(scores, truth, task.labels, validation=checked)
        if kind != "multilabel":
            result.confusion = confusion(predicted, truth)
    result.errors = _errors(task, kind, tuned.scores, predicted, truth, rows, show, num_errors)
    return result


def shown_as(task: Task, truth: np.ndarray) -> TaskKind:
    """Which of the five kinds a task is shown as: by its labels and the shape of its truth."""
    if not task.labels:
        return "regression"
    if truth.ndim == 2:
        return "multilabel"
    if task.name == "ordinal":
        return "ordinal"
    return "binary" if len(task.labels) == 2 else "multiclass"


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Scores of classes as (rows, classes): a single column is the second class's probability."""
    return np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores


def predictions(task: Task, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What the task itself predicts from the scores: class indices (rows,), or 0/1 (rows, classes)."""
    place = {label: index for index, label in enumerate(task.labels)}
    decoded = task.columns(scores)[task.target]
    if truth.ndim == 2:
        predicted = np.zeros(truth.shape, dtype=np.int64)
        for row, cell in enumerate(decoded):
            predicted[row, [place[label] for label in _label_set(cell, place)]] = 1
        return predicted
    return np.asarray([place[str(label)] for label in decoded], dtype=np.int64)


def _label_set(cell: Any, known: Mapping[str, int]) -> list[str]:
    """The labels of a decoded multi-label cell: a list, its JSON, or `a|b`."""
    if isinstance(cell, str):
        cell = json.loads(cell) if cell.startswith("[") and cell not in known else cell.split("|")
    return [str(label) for label in cell or [] if str(label) in known]


def _systems(
    task: Task,
    candidates: Sequence[Candidate],
    tuned: Candidate,
    truth: np.ndarray,
    *,
    weights: np.ndarray | None,
    groups: Sequence[Any] | None,
    num: int,
    seed: int,
) -> list[SystemResult]:
    scores = {str(index): one.scores for index, one in enumerate(candidates)}
    draws = draw_all(task.metrics, scores, truth, num=num, seed=seed, weights=weights, groups=groups)
    attacked = next((one for one in reversed(candidates) if one.kind == "attack"), None)  # the tuned model comes last
    found = []
    for index, one in enumerate(candidates):
        mine = draws[str(index)]
        reference = attacked if one.kind == "attack" else tuned
        best = next(draws[str(place)] for place, other in enumerate(candidates) if other is reference)
        difference = {} if one is reference else best.minus(mine, 0.95)
        found.append(
            SystemResult(one.name, one.kind, one.description, mine.intervals(0.95), difference, list(one.columns))
        )
    return found


def _slices(
    task: Task,
    scores: np.ndarray,
    truth: np.ndarray,
    slices: Mapping[str, Sequence[Any]],
    *,
    weights: np.ndarray | None,
    num: int,
    seed: int,
) -> list[Slice]:
    found = []
    for column, values in slices.items():
        names = np.asarray(slice_names(values), dtype=object)
        kept, counts = np.unique(names.astype(str), return_counts=True)
        for value in kept[np.argsort(-counts, kind="stable")][:MAX_SLICES]:
            inside = np.flatnonzero(names == value)
            part = None if weights is None else weights[inside]
            metrics = bootstrap(main_metric(task), scores[inside], truth[inside], num=num, seed=seed, weights=part)
            metric = metrics.get(task.main.name, Interval(math.nan))
            found.append(Slice(column, cut(str(value), 80), len(inside), metric))
    return found


def main_metric(task: Task) -> Metrics:
    """The task's main metric alone: slices need no other."""
    return lambda scores, truth, weights: {task.main.name: task.main_value(scores, truth, weights)}


def slice_names(values: Sequence[Any]) -> list[str]:
    """The slice each row is in: its value, or a quarter of the range of values where those are many numbers."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    finite = [float(value) for value in numbers if math.isfinite(value)]
    missing = "(missing)"
    if len(set(finite)) > MAX_SLICES and len(numbers) == sum(value is not None for value in values):
        edges = np.unique(np.quantile(finite, [0, 0.25, 0.5, 0.75, 1]))
        places = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
        return [
            missing
            if value is None or not math.isfinite(value)
            else places[int(np.clip(np.searchsorted(edges, value, side="right") - 1, 0, len(places) - 1))]
            for value in values
        ]
    return [
        missing if value is None or value == "" or (isinstance(value, float) and math.isnan(value)) else str(value)
        for value in values
    ]


def _errors(
    task: Task,
    kind: TaskKind,
    scores: np.ndarray,
    predicted: np.ndarray,
    truth: np.ndarray,
    rows: np.ndarray,
    show: Callable[[int], list[Shown]] | None,
    num: int,
) -> list[Mistake]:
    if kind == "regression":
        chosen = worst(np.abs(scores - truth), np.sign(scores - truth), num)
        return [
            Mistake(
                int(rows[at]),
                f"{truth[at]:.6g}",
                f"{scores[at]:.4g} (off by {scores[at] - truth[at]:+.3g})",
                math.nan,
                float(abs(scores[at] - truth[at])),
                show(at) if show else [],
            )
            for at in chosen
        ]
    given = np.clip(probabilities(scores), TINY, 1 - TINY)
    actual, guess = as_matrix(truth, len(task.labels)), as_matrix(predicted, len(task.labels))
    if kind == "multilabel":
        parts = -np.where(actual > 0, np.log(given), np.log(1 - given))  # (rows, classes)
        loss, kinds, wrong = parts.mean(axis=1), parts.argmax(axis=1), (actual != guess).any(axis=1)
    else:
        loss, kinds, wrong = -np.log(given[np.arange(len(truth)), truth]), truth, predicted != truth
    return [
        Mistake(
            int(rows[at]),
            _names(task.labels, actual[at]),
            _names(task.labels, guess[at]),
            math.nan if kind == "multilabel" else float(given[at][predicted[at]]),
            float(loss[at]),
            show(at) if show else [],
        )
        for at in worst(loss, kinds, num, among=wrong)
    ]


def _names(labels: list[str], one: np.ndarray) -> str:
    return ", ".join(label for label, has in zip(labels, one, strict=True) if has) or "(none)"
