"""Slices: the main metric on the rows with a certain value of a column, or in a quarter of a number's range."""

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
    """Measure the main metric on each slice, the largest first, at most `MAX_SLICES` per column.

    Args:
        task: the fitted task.
        measured: (rows, k) as `Task.measured` returns it.
        truth: (rows, ...).
        slices: the rows' values by column.
        weights: (rows,) row weights in the metric.
        num: the number of bootstrap draws.
        seed: the seed of the draws.
    """

    def main(measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
        return {task.main.name: task.main_value(measured, truth, weights)}

    result = []
    for column, values in slices.items():
        names = np.asarray(slice_names(values), dtype=object)
        distinct, counts = np.unique(names.astype(str), return_counts=True)
        for value in distinct[np.argsort(-counts, kind="stable")][:MAX_SLICES]:
            inside = np.flatnonzero(names == value)
            part = None if weights is None else weights[inside]
            metrics = bootstrap(main, measured[inside], truth[inside], num=num, seed=seed, weights=part)
            metric = metrics.get(task.main.name, Interval(math.nan))
            result.append(Slice(column, cut(str(value), 80), len(inside), metric))
    return result


def slice_names(values: Sequence[Any]) -> list[str]:
    """Return the name of each row's slice: the value, or the quartile range for numbers with many values.

    Numbers may be text, as in a CSV file. A quartile range is named by its ends.
    """
    numbers = [_number(value) for value in values]
    present = [not _is_missing(value) for value in values]
    parsed = [number for number, is_present in zip(numbers, present, strict=True) if is_present and number is not None]
    finite = [number for number in parsed if math.isfinite(number)]
    if len(set(finite)) > MAX_SLICES and len(parsed) == sum(present):
        edges = np.unique(np.quantile(finite, [0, 0.25, 0.5, 0.75, 1]))
        ranges = [f"{low:.6g} to {high:.6g}" for low, high in pairwise(edges)]
        return [
            MISSING
            if not is_present or number is None or not math.isfinite(number)
            else ranges[int(np.clip(np.searchsorted(edges, number, side="right") - 1, 0, len(ranges) - 1))]
            for number, is_present in zip(numbers, present, strict=True)
        ]
    return [str(value) if is_present else MISSING for value, is_present in zip(values, present, strict=True)]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (value != value)


def _number(value: Any) -> float | None:
    """Return the cell as a number; None for other cells and for codes such as 007."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and _CODE.match(value.strip()):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
