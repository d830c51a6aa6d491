"""Integers that behave as codes: number columns that predict the target better as categories than as numbers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from sklearn.tree import DecisionTreeRegressor

from fusetune.config.config import Config
from fusetune.data.detect.columns import evenly_spaced
from fusetune.data.detect.roles import is_integer
from fusetune.data.distinct import is_missing
from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.errors import BadCell, UserError
from fusetune.modalities.number import NumberModality
from fusetune.modalities.values import canonical
from fusetune.tasks.base import TargetTask
from fusetune.training.hardware.devices import processes
from fusetune.types import Target

MIN_ROWS, MAX_ROWS = 100, 2000
"""Minimum and maximum number of train rows for judging a column; of more rows, evenly spaced ones are used."""

TARGET_CELLS = 200_000
"""Maximum number of a target's cells from which its labels or scale are learned."""

MIN_DISTINCT, ROWS_PER_CODE = 3, 5
"""Minimum number of distinct values of a code column, and of rows per value on average."""

FOLDS = 5

MIN_ERRORS, MIN_GAIN, MAX_SHARE = 2.0, 0.02, 0.9
"""Codes must raise R² by more than this number of standard errors and by at least this amount; and the R² of numbers
must be at most this share of theirs, otherwise the order of the values matters."""

MAX_OUTPUTS = 20
"""Maximum number of classes or labels that are predicted, the most frequent ones."""

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
"""Factors of the squared weights, added to the sum of squared errors."""

LEAVES, WINDOWS = 8, (1, 2, 4)
"""Leaves of the regression tree, and numbers of neighbouring values on each side."""


@dataclass(frozen=True)
class Comparison:
    """How well a target is predicted on held-out rows.

    Attributes:
        codes: R² of the values as codes.
        number: R² of the best model of the values as numbers; 0 if none is better than the mean.
        error: standard error of the difference.
    """

    codes: float
    number: float
    error: float

    @property
    def favours_codes(self) -> bool:
        """Whether codes are better, significantly and by a relevant amount."""
        gain = self.codes - self.number
        matters = gain >= MIN_GAIN and self.number <= MAX_SHARE * self.codes
        return matters and gain > MIN_ERRORS * self.error

    @property
    def favours_numbers(self) -> bool:
        """Whether numbers are significantly better."""
        return self.number - self.codes > MIN_ERRORS * self.error


@dataclass(frozen=True)
class _Labelled:
    """The labelled rows of a target for judging columns.

    Attributes:
        rows: (rows,) positions in the train table.
        values: (rows, outputs) the target: a number on the task's scale, or 0 and 1 for each class or label.
        folds: (rows,) from 0 to `FOLDS` - 1; the rows of a group are in one fold.
    """

    rows: np.ndarray
    values: np.ndarray
    folds: np.ndarray


def read_codes(
    train: Table, schema: Schema, tasks: Mapping[str, TargetTask], config: Config
) -> tuple[Schema, list[str]]:
    """Turn number columns whose values behave as codes into categories.

    A column of repeated whole numbers is judged by cross-validation within the train rows. It becomes a category if its
    codes predict some target better than its numbers, and its numbers predict no target better. The same seed gives the
    same schema, in every process.

    Args:
        train: the train rows.
        schema: the detected schema, which is not changed.
        tasks: by target, not fitted; they are not changed.
        config: the settings. Columns for which they name kind, options, cell form or augmentation are not judged.

    Returns:
        The schema, and the names of the columns that became categories.
    """
    sample = np.asarray(evenly_spaced(len(train), MAX_ROWS), dtype=np.int64)
    names = [name for name in _candidates(schema, config) if _may_be_codes(_numbers(train.cells(name, sample)))]
    targets = [rows for task in tasks.values() if names and (rows := _labelled(train, schema, task, config.seed))]
    codes = {name: reason for name in names if (reason := _reason(train, name, targets, config.seed))}
    if processes().num_processes > 1:
        codes = broadcast_object_list([codes])[0]
    specs = dict(schema.columns)
    for name, reason in codes.items():
        specs[name] = replace(specs[name], kind="category", reason=reason)
    return replace(schema, columns=specs), list(codes)


def _candidates(schema: Schema, config: Config) -> list[str]:
    """Return the input columns that were detected as plain numbers and that the settings do not mention."""
    if config.augment.get("number"):
        return []  # a user who augments numbers counts on them
    settled = {
        name
        for name, given in config.schema_overrides().items()
        if not isinstance(given, Mapping) or given.keys() & {"kind", "options", "read"}
    } | {name for name, column in config.columns.items() if column.augment is not None}
    specs = {name: schema.columns[name] for name in schema.inputs if name not in settled}
    return [name for name, spec in specs.items() if spec.kind == "number" and not spec.read.is_numeric]


def _numbers(cells: Sequence[Any]) -> np.ndarray | None:
    """Return cells as (cells,) float64, NaN if missing; or None if one of them is not a whole number."""
    values = np.full(len(cells), np.nan)
    for index, cell in enumerate(cells):
        if is_missing(cell):
            continue
        text = canonical(str(cell).strip())
        if not is_integer(text):
            return None
        values[index] = float(text)
    return values


def _may_be_codes(numbers: np.ndarray | None) -> bool:
    """Return whether there are enough rows and few distinct values, most of which repeat."""
    if numbers is None:
        return False
    present = numbers[~np.isnan(numbers)]
    counts = np.unique(present, return_counts=True)[1]
    few = MIN_DISTINCT <= len(counts) <= len(present) / ROWS_PER_CODE
    return few and len(present) >= MIN_ROWS and bool((counts > 1).mean() > 0.5)


def _labelled(train: Table, schema: Schema, task: TargetTask, seed: int) -> _Labelled | None:
    """Return a target's labelled rows, or None if they are too few or cannot be used as fixed-size outputs."""
    if task.reads is not None:
        return None
    present = np.flatnonzero(~train.missing(task.target))
    rows = present[evenly_spaced(len(present), MAX_ROWS)]
    task = copy.deepcopy(task)
    try:
        task.fit(train.lazy(task.target, present[evenly_spaced(len(present), TARGET_CELLS)]))
    except UserError:
        return None  # the fit itself will report it
    cells = train.cells(task.target, rows)
    good = [index for index, cell in enumerate(cells) if _is_good(task, cell)]
    if len(good) < MIN_ROWS:
        return None
    values = _outputs(task.encode([cells[index] for index in good]))
    if values is None:
        return None
    rows = rows[good]
    units = train.distinct(schema.group)[0][rows] if schema.group is not None else np.arange(len(rows))
    return _Labelled(rows, values, _folds(units, seed))


def _is_good(task: TargetTask, cell: Any) -> bool:
    try:
        task.check(cell, row=0)
    except BadCell:
        return False
    return True


def _outputs(target: Target) -> np.ndarray | None:
    """Return encoded targets as (rows, outputs) float64, or None if rows have no fixed number of outputs."""
    values = target.values.numpy()
    if values.ndim == 1 and values.dtype.kind in "iu":
        values = (values[:, None] == np.unique(values)).astype(np.float64)
    elif values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        return None
    values = values.astype(np.float64)
    frequent = np.argsort(-values.sum(0), kind="stable")[:MAX_OUTPUTS]
    return values[:, frequent]


def _folds(units: np.ndarray, seed: int) -> np.ndarray:
    """Assign rows to `FOLDS` folds, (rows,); rows of one unit are in one fold. -1 stands for no unit."""
    units = np.where(units < 0, units.max() + 1 + np.arange(len(units)), units)
    distinct, unit_of = np.unique(units, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(distinct)) % FOLDS)[unit_of]


def _reason(train: Table, name: str, targets: Sequence[_Labelled], seed: int) -> str:
    """Return the reason why a column holds codes, or "" if it does not."""
    comparisons: list[Comparison] = []
    for target in targets:
        numbers = _numbers(train.cells(name, target.rows))
        if numbers is None or not _may_be_codes(numbers):
            continue
        present = ~np.isnan(numbers)
        comparisons.append(compare(numbers[present], target.values[present], target.folds[present], seed))
    better = [comparison for comparison in comparisons if comparison.favours_codes]
    if not better or any(comparison.favours_numbers for comparison in comparisons):
        return ""
    best = max(better, key=lambda comparison: comparison.codes - comparison.number)
    return (
        f"whole numbers that predict the target better as codes: R² {best.codes:.2f} against {best.number:.2f} "
        "on held-out train rows"
    )


def compare(numbers: np.ndarray, target: np.ndarray, folds: np.ndarray, seed: int) -> Comparison:
    """Compare by cross-validation how well whole numbers predict a target as codes and as numbers.

    The model of codes is ridge regression on one-hot values: target means per value, shrunk to the overall mean. The
    model of numbers is the best of ridge regression on the features of `NumberModality`, a small regression tree, and
    the mean of neighbouring values without the value itself; all of these depend on the values' order.

    Args:
        numbers: (rows,) whole numbers.
        target: (rows, outputs).
        folds: (rows,) the fold in which each row is held out.
        seed: for the tree's choice among equally good splits.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> area, noise, folds = rng.integers(0, 40, 500), rng.normal(size=500), np.arange(500) % 5
        >>> compare(area, rng.normal(0, 3, 40)[area][:, None] + noise[:, None], folds, 0).favours_codes
        True
        >>> compare(area, (area + noise)[:, None], folds, 0).favours_codes
        False
    """
    distinct, codes = np.unique(numbers, return_inverse=True)
    readings = {name: np.zeros_like(target) for name in ("mean", "codes", "bins", "tree", *map(str, WINDOWS))}
    for fold in np.unique(folds):
        learn, held = folds != fold, folds == fold
        if not learn.any():
            return Comparison(0.0, 0.0, 0.0)
        mean = target[learn].mean(0)
        rows = _Rows(numbers[learn], codes[learn], target[learn] - mean, len(distinct))
        for values in readings.values():
            values[held] = mean
        readings["codes"][held] += rows.predict_by_code()[codes[held]]
        readings["bins"][held] += rows.predict_by_number(numbers[held])
        readings["tree"][held] += rows.predict_by_tree(numbers[held], seed)
        for window in WINDOWS:
            readings[str(window)][held] += rows.predict_by_neighbours(window)[codes[held]]
    errors = {name: ((values - target) ** 2).sum(1) for name, values in readings.items()}
    total = errors["mean"].sum()
    if not total > 0:
        return Comparison(0.0, 0.0, 0.0)
    by_codes = errors.pop("codes")
    by_number = min(errors.values(), key=lambda each: float(each.sum()))
    spread = float((by_number - by_codes).std(ddof=1)) * len(target) ** 0.5
    return Comparison(float(1 - by_codes.sum() / total), float(1 - by_number.sum() / total), float(spread / total))


class _Rows:
    """The training rows of the models of whole numbers.

    Attributes:
        numbers: (rows,) the values.
        codes: (rows,) the index of each row's value among the distinct ones.
        target: (rows, outputs), centred.
        counts: (codes,) number of rows of each code.
        sums: (codes, outputs) sum of the target over each code's rows.
    """

    def __init__(self, numbers: np.ndarray, codes: np.ndarray, target: np.ndarray, num_codes: int) -> None:
        self.numbers, self.codes, self.target = numbers, codes, target
        self.counts = np.bincount(codes, minlength=num_codes)
        self.sums = np.zeros((num_codes, target.shape[1]))
        np.add.at(self.sums, codes, target)

    def predict_by_code(self) -> np.ndarray:
        """Fit ridge regression on one-hot codes, its penalty chosen by leave-one-out; return (codes, outputs)."""
        counts, sums = self.counts[:, None], self.sums
        own, others = sums[self.codes] - self.target, counts[self.codes] - 1
        errors = [float(((own / (others + penalty) - self.target) ** 2).sum()) for penalty in PENALTIES]
        return np.asarray(sums / (counts + PENALTIES[int(np.argmin(errors))]))

    def predict_by_number(self, held: np.ndarray) -> np.ndarray:
        """Fit ridge regression on a number column's features, its penalty chosen likewise; return (held, outputs)."""
        modality = NumberModality("numbers")
        modality.fit(self.numbers.tolist())
        features, new = (
            modality.collate(numbers.tolist())["values"].numpy().astype(np.float64) for numbers in (self.numbers, held)
        )
        mean = features.mean(0)
        left, values, right = np.linalg.svd(features - mean, full_matrices=False)
        turned, best, weight = left.T @ self.target, np.inf, np.zeros((features.shape[1], self.target.shape[1]))
        for penalty in PENALTIES:
            shrunk = values**2 / (values**2 + penalty)
            leverage = left**2 @ shrunk + 1 / len(left)  # including that of the mean
            residual = (self.target - left @ (shrunk[:, None] * turned)) / np.maximum(1 - leverage, 1e-9)[:, None]
            if (error := float((residual**2).sum())) < best:
                best, weight = error, right.T @ ((values / (values**2 + penalty))[:, None] * turned)
        return np.asarray((new - mean) @ weight)

    def predict_by_tree(self, held: np.ndarray, seed: int) -> np.ndarray:
        """Fit a small regression tree; return (held, outputs)."""
        tree = DecisionTreeRegressor(max_leaf_nodes=LEAVES, min_samples_leaf=ROWS_PER_CODE, random_state=seed)
        predictions = tree.fit(self.numbers[:, None], self.target).predict(held[:, None])
        return np.asarray(predictions).reshape(len(held), -1)

    def predict_by_neighbours(self, window: int) -> np.ndarray:
        """Return the mean target of `window` neighbouring codes on each side, (codes, outputs)."""
        indices = np.arange(len(self.counts))
        low, high = np.maximum(indices - window, 0), np.minimum(indices + window + 1, len(indices))
        counts = np.concatenate([[0], np.cumsum(self.counts)])
        sums = np.concatenate([np.zeros((1, self.sums.shape[1])), np.cumsum(self.sums, axis=0)])
        num = counts[high] - counts[low] - self.counts
        total = sums[high] - sums[low] - self.sums
        return np.asarray(total / np.maximum(num, 1)[:, None])
