"""Integers that behave as codes: number columns that tell the target better by name than by size."""

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
"""Train rows that a column is judged by; of more, evenly spaced ones."""

TARGET_CELLS = 200_000
"""Cells of a target that its labels or scale are learned from."""

MIN_DISTINCT, ROWS_PER_CODE = 3, 5
"""A code column has at least so many values, and so many rows a value on average."""

FOLDS = 5

MIN_ERRORS, MIN_GAIN, MAX_SHARE = 2.0, 0.02, 0.9
"""Codes must gain more than so many standard errors and at least so much R²; numbers may tell at most such a share of
what codes tell, else the order is what matters."""

MAX_OUTPUTS = 20
"""Classes or labels that are told apart: the most frequent."""

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
"""Of the squared weights, beside the sum of squared errors."""

LEAVES, WINDOWS = 8, (1, 2, 4)
"""Of a tree on the size, and of means over neighbouring values."""


@dataclass(frozen=True)
class Comparison:
    """How well a target is told on held-out rows.

    Attributes:
        codes: R² of the values taken as codes.
        number: R² of the best reading of the values as numbers; 0 where none is better than the mean.
        error: the standard error of their difference.
    """

    codes: float
    number: float
    error: float

    @property
    def favours_codes(self) -> bool:
        """Whether codes are better, by more than noise and by enough to matter."""
        gain = self.codes - self.number
        matters = gain >= MIN_GAIN and self.number <= MAX_SHARE * self.codes
        return matters and gain > MIN_ERRORS * self.error

    @property
    def favours_numbers(self) -> bool:
        """Whether numbers are better, by more than noise."""
        return self.number - self.codes > MIN_ERRORS * self.error


@dataclass(frozen=True)
class _Labelled:
    """The rows of a target that columns are judged by.

    Attributes:
        rows: (rows,) positions in the train table.
        values: (rows, outputs) the target: a number on the task's scale, or 0 and 1 for each class or label.
        folds: (rows,) from 0 to `FOLDS` - 1; the rows of a group are in one.
    """

    rows: np.ndarray
    values: np.ndarray
    folds: np.ndarray


def read_codes(
    train: Table, schema: Schema, tasks: Mapping[str, TargetTask], config: Config
) -> tuple[Schema, list[str]]:
    """Make number columns whose whole numbers behave as codes categories.

    A column of whole numbers that repeat is judged by cross-validation inside the train rows. It becomes a category
    where its codes tell some target better than its size does, and its size tells no target better. The same seed
    gives the same schema, in every process.

    Args:
        train: the train rows.
        schema: as detected; it stays as it is.
        tasks: not fitted, by target; they stay so.
        config: a column for which it names kind, options, cell form or augmentation is left alone.

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
    """Return the inputs that were detected as plainly written numbers and that the settings say nothing of."""
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
    """Return cells as (cells,) float64, nan where missing, or None where one is no whole number."""
    values = np.full(len(cells), np.nan)
    for place, cell in enumerate(cells):
        if is_missing(cell):
            continue
        text = canonical(str(cell).strip())
        if not is_integer(text):
            return None
        values[place] = float(text)
    return values


def _may_be_codes(numbers: np.ndarray | None) -> bool:
    """Whether there are few values, most of which repeat, in rows enough to judge by."""
    if numbers is None:
        return False
    present = numbers[~np.isnan(numbers)]
    counts = np.unique(present, return_counts=True)[1]
    few = MIN_DISTINCT <= len(counts) <= len(present) / ROWS_PER_CODE
    return few and len(present) >= MIN_ROWS and bool((counts > 1).mean() > 0.5)


def _labelled(train: Table, schema: Schema, task: TargetTask, seed: int) -> _Labelled | None:
    """Return the rows to judge by; None where the target's form is not known, or nothing can be learned from it."""
    present = np.flatnonzero(~train.missing(task.target))
    rows = present[evenly_spaced(len(present), MAX_ROWS)]
    task = copy.deepcopy(task)
    try:
        task.fit(train.lazy(task.target, present[evenly_spaced(len(present), TARGET_CELLS)]))
    except UserError:
        return None  # fitting says it, with the row and what to do
    cells = train.cells(task.target, rows)
    good = [place for place, cell in enumerate(cells) if _is_good(task, cell)]
    if len(good) < MIN_ROWS:
        return None
    values = _outputs(task.encode([cells[place] for place in good]))
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
    """Return encoded targets as (rows, outputs) float64, or None where a row has no fixed number of figures."""
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
    """Deal rows out to `FOLDS` folds, (rows,); rows of equal units are in one, and rows without a unit are alone."""
    units = np.where(units < 0, units.max() + 1 + np.arange(len(units)), units)
    distinct, which = np.unique(units, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(distinct)) % FOLDS)[which]


def _reason(train: Table, name: str, targets: Sequence[_Labelled], seed: int) -> str:
    """Return why a column is one of codes, or "" where it is not."""
    found: list[Comparison] = []
    for target in targets:
        numbers = _numbers(train.cells(name, target.rows))
        if numbers is None or not _may_be_codes(numbers):
            continue
        present = ~np.isnan(numbers)
        found.append(compare(numbers[present], target.values[present], target.folds[present], seed))
    better = [comparison for comparison in found if comparison.favours_codes]
    if not better or any(comparison.favours_numbers for comparison in found):
        return ""
    best = max(better, key=lambda comparison: comparison.codes - comparison.number)
    return (
        f"whole numbers that tell the target better as codes: R² {best.codes:.2f} against {best.number:.2f} "
        "on held-out train rows"
    )


def compare(numbers: np.ndarray, target: np.ndarray, folds: np.ndarray, seed: int) -> Comparison:
    """Compare by cross-validation how well a target is told by whole numbers taken as codes and as numbers.

    Codes are ridge regression on the one-hot values, which is their target means shrunk to the mean of all. Numbers
    are the best of ridge regression on what `NumberModality` makes of them, a small regression tree, and the mean of
    the neighbouring values, which leaves the value itself out: what any of them tells is in the order.

    Args:
        numbers: (rows,) whole numbers.
        target: (rows, outputs).
        folds: (rows,) the fold in which each row is held out.
        seed: of the tree, where splits are equally good.

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
        readings["codes"][held] += rows.told_by_codes()[codes[held]]
        readings["bins"][held] += rows.told_by_bins(numbers[held])
        readings["tree"][held] += rows.told_by_tree(numbers[held], seed)
        for window in WINDOWS:
            readings[str(window)][held] += rows.told_by_neighbours(window)[codes[held]]
    errors = {name: ((values - target) ** 2).sum(1) for name, values in readings.items()}
    total = errors["mean"].sum()
    if not total > 0:
        return Comparison(0.0, 0.0, 0.0)
    by_codes = errors.pop("codes")
    by_number = min(errors.values(), key=lambda each: float(each.sum()))
    spread = float((by_number - by_codes).std(ddof=1)) * len(target) ** 0.5
    return Comparison(float(1 - by_codes.sum() / total), float(1 - by_number.sum() / total), float(spread / total))


class _Rows:
    """The rows that the readings of whole numbers are learned from.

    Attributes:
        numbers: (rows,).
        codes: (rows,) the rank of each row's number among the distinct ones.
        target: (rows, outputs), its mean taken off.
        counts: (codes,) the rows of each code.
        sums: (codes, outputs) of the target.
    """

    def __init__(self, numbers: np.ndarray, codes: np.ndarray, target: np.ndarray, num_codes: int) -> None:
        self.numbers, self.codes, self.target = numbers, codes, target
        self.counts = np.bincount(codes, minlength=num_codes)
        self.sums = np.zeros((num_codes, target.shape[1]))
        np.add.at(self.sums, codes, target)

    def told_by_codes(self) -> np.ndarray:
        """Return (codes, outputs): ridge regression on one-hot codes, the penalty chosen by leave-one-out."""
        counts, sums = self.counts[:, None], self.sums
        own, others = sums[self.codes] - self.target, counts[self.codes] - 1
        errors = [float(((own / (others + penalty) - self.target) ** 2).sum()) for penalty in PENALTIES]
        return np.asarray(sums / (counts + PENALTIES[int(np.argmin(errors))]))

    def told_by_bins(self, held: np.ndarray) -> np.ndarray:
        """Return (held, outputs): ridge regression on a number column's features, the penalty chosen likewise."""
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
            leverage = left**2 @ shrunk + 1 / len(left)  # of the mean too
            residual = (self.target - left @ (shrunk[:, None] * turned)) / np.maximum(1 - leverage, 1e-9)[:, None]
            if (error := float((residual**2).sum())) < best:
                best, weight = error, right.T @ ((values / (values**2 + penalty))[:, None] * turned)
        return np.asarray((new - mean) @ weight)

    def told_by_tree(self, held: np.ndarray, seed: int) -> np.ndarray:
        """Return (held, outputs): a tree of few leaves, which finds thresholds."""
        tree = DecisionTreeRegressor(max_leaf_nodes=LEAVES, min_samples_leaf=ROWS_PER_CODE, random_state=seed)
        told = tree.fit(self.numbers[:, None], self.target).predict(held[:, None])
        return np.asarray(told).reshape(len(held), -1)

    def told_by_neighbours(self, window: int) -> np.ndarray:
        """Return (codes, outputs): the mean over the rows of so many codes on either side, without the code's own."""
        places = np.arange(len(self.counts))
        low, high = np.maximum(places - window, 0), np.minimum(places + window + 1, len(places))
        counts = np.concatenate([[0], np.cumsum(self.counts)])
        sums = np.concatenate([np.zeros((1, self.sums.shape[1])), np.cumsum(self.sums, axis=0)])
        num = counts[high] - counts[low] - self.counts
        total = sums[high] - sums[low] - self.sums
        return np.asarray(total / np.maximum(num, 1)[:, None])
