"""Parts of the rows: the main metric where a column has some value, or lies in a quarter of its range."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fusetune.evaluation.measure.compare import bootstrap
from fusetune.evaluation.report.cells import cut
from fusetune.evaluation.results import Interval, Slice
from fusetune.tasks.base import Task

MAX_SLICES = 12
SLICE_DRAWS = 200
MISSING = "(missing)"
_CODE = re.compile(r"[+-]?0\d")


def measure_slices(
    task: Task,
    measured: np.ndarray,
    truth: np.ndarray,
    slices: Mapping[str, Sequence[Any]],
    *,
    weights: np.ndarray | None = None,
    num: int = SLICE_DRAWS,
    seed: int = 0,
) -> list[Slice]:
    """Measure the main metric on each slice, the largest first, at most `MAX_SLICES` a column.

    Args:
        task: fitted.
        measured: (rows, k) as `Task.measured` gives it.
        truth: (rows, ...).
        slices: by column, the rows' values.
        weights: (rows,) in the metric.
        num: bootstrap draws.
        seed: of the draws.
    """

    def main(measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
        return {task.main.name: task.main_value(measured, truth, weights)}

    found = []
    for column, values in slices.items():
        names = np.asarray(slice_names(values), dtype=object)
        distinct, counts = np.unique(names.astype(str), return_counts=True)
        for value in distinct[np.argsort(-counts, kind="stable")][:MAX_SLICES]:
            inside = np.flatnonzero(names == value)
            part = None if weights is None else weights[inside]
            metrics = bootstrap(main, measured[inside], truth[inside], num=num, seed=seed, weights=part)
            metric = metrics.get(task.main.name, Interval(math.nan))
            found.append(Slice(column, cut(str(value), 80), len(inside), metric))
    return found


def slice_names(values: Sequence[Any]) -> list[str]:
    """Return the slice that each row is in: its value, or a quarter of the rows where those are many numbers.

    Numbers may be written as text, as a CSV file has them. A quarter is named by its least and greatest value.
    """
    numbers = [_number(value) for value in values]
    there = [not _is_missing(value) for value in values]
    known = [number for number, is_there in zip(numbers, there, strict=True) if is_there and number is not None]
    finite = [number for number in known if math.isfinite(number)]
    if len(set(finite)) > MAX_SLICES and len(known) == sum(there):
        edges = np.unique(np.quantile(finite, [0, 0.25, 0.5, 0.75, 1]))
        ranges = [f"{low:.6g} to {high:.6g}" for low, high in pairwise(edges)]
        return [
            MISSING
            if not is_there or number is None or not math.isfinite(number)
            else ranges[int(np.clip(np.searchsorted(edges, number, side="right") - 1, 0, len(ranges) - 1))]
            for number, is_there in zip(numbers, there, strict=True)
        ]
    return [str(value) if is_there else MISSING for value, is_there in zip(values, there, strict=True)]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (value != value)


def _number(value: Any) -> float | None:
    """The number that a cell is or is written as; None for other cells and for codes, as 007."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and _CODE.match(value.strip()):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
