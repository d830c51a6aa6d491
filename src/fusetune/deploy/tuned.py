"""A tuned model in use: predictions and measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from fusetune import _private
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.int8 import has_int8, in_int8, num_linear
from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.data.quarantine import Rejected
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.outputs import OUTPUTS
from fusetune.deploy.predictions import ERROR, ROW, Predictions
from fusetune.deploy.rows import Rows, index_of, read_rows
from fusetune.errors import ConfigError, EmptyTable
from fusetune.inference.predict import model_device
from fusetune.inference.scores import predict_scores
from fusetune.models.family import Family

PART_ROWS = 8192
"""Rows whose cells are in memory at once."""
Precision = Literal["float32", "bf16", "int8"]
"""bf16: autocast, faster where the processor or GPU has it; the last digits differ. int8: the encoders' linear layers
in 8-bit integers, faster on a processor with AVX512-VNNI."""


def read_examples(
    bundle: Bundle,
    source: Rows,
    *,
    targets: bool,
    on_bad_cell: str = "mask",
    missing: Sequence[str] = (),
    progress: Progress | None = None,
) -> Examples:
    """Read a table's rows as the model's columns.

    Args:
        bundle: the tuned model.
        source: see `read_rows`.
        targets: whether the rows' targets are read too.
        on_bad_cell: "mask" goes on without a cell that cannot be read, "reject" without its row.
        missing: input columns that the table may lack.
        progress: wraps iterators.

    Raises:
        TableError: the table cannot be read or lacks a column.
    """
    table = read_rows(bundle, source, missing=missing)
    table.require([task.target for task in bundle.targets.values()] if targets else [])
    weight = bundle.schema.weight if targets and bundle.schema.weight in table else None
    group = bundle.schema.group if targets and bundle.schema.group in table else None
    examples = Examples(table, bundle.modalities, bundle.targets if targets else None, weight=weight, group=group)
    examples.prepare(on_bad_cell=on_bad_cell, memory=bundle.config.data.memory, progress=progress)
    return examples


def predict(
    bundle: Bundle,
    source: Rows,
    *,
    on_bad_cell: str = "mask",
    precision: Precision = "float32",
    missing: Sequence[str] = (),
    progress: Progress | None = None,
) -> Predictions:
    """Return predictions for every row of a table; see `Predictions` for what they hold.

    Raises:
        TableError: the table cannot be read or lacks a column.
    """
    parts = predict_parts(
        bundle, source, on_bad_cell=on_bad_cell, precision=precision, missing=missing, progress=progress
    )
    return Predictions(pa.concat_tables([part.table for part in parts]), index=index_of(source))


def predict_parts(
    bundle: Bundle,
    source: Rows,
    *,
    on_bad_cell: str = "mask",
    precision: Precision = "float32",
    missing: Sequence[str] = (),
    progress: Progress | None = None,
    rows: int = PART_ROWS,
) -> Iterator[Predictions]:
    """Yield predictions of so many rows of a table at a time, in order, in memory that does not grow with the table.

    Raises:
        TableError: the table cannot be read or lacks a column.
    """
    try:
        table = read_rows(bundle, source, missing=missing)
    except EmptyTable:
        yield _empty(bundle)
        return
    bundle, low = arithmetic(bundle, precision)
    for part in _parts(table, rows):
        examples = read_examples(bundle, part, targets=False, on_bad_cell=on_bad_cell, progress=progress)
        with low:
            result = _predict(bundle, examples, progress)
        yield result


def predict_proba(bundle: Bundle, source: Rows, target: str | None, *, missing: Sequence[str] = ()) -> np.ndarray:
    """Return the probabilities of a target's labels, (rows, labels); nan for a row that cannot be predicted.

    Raises:
        ConfigError: the target is none of the model's, has no labels, or there are several and none is named.
        TableError: the table cannot be read or lacks a column.
    """
    by_target = {task.target: (name, task) for name, task in bundle.targets.items()}
    if target is None and len(by_target) == 1:
        target = next(iter(by_target))
    if target not in by_target or not by_target[target][1].labels:
        labelled = [name for name, (_, task) in by_target.items() if task.labels]
        raise ConfigError(
            "there are no probabilities without a target that has labels",
            expected=f"target={' or '.join(map(repr, labelled))}" if labelled else "a model that predicts labels",
            came=f"target={target!r}",
        )
    name, task = by_target[target]
    try:
        table = read_rows(bundle, source, missing=missing)
    except EmptyTable:
        return np.zeros((0, len(task.labels)))
    result = []
    for part in _parts(table, PART_ROWS):
        examples = read_examples(bundle, part, targets=False)
        rows, indices = _in_order(part)
        result.append(np.full((len(rows), len(task.labels)), np.nan))
        if len(examples):
            scores = predict_scores(bundle.model, bundle.targets, examples, stack=bundle.stack)
            result[-1][indices[examples.used]] = scores[name]
    return np.concatenate(result)


def arithmetic(bundle: Bundle, precision: Precision) -> tuple[Bundle, torch.autocast]:
    """Return what a precision means for a model: the bundle that predicts, and inside what.

    Raises:
        ConfigError: it is int8, and the model is on a GPU or has no layer for it, or the processor lacks it.
    """
    device = model_device(bundle.model).type
    if precision == "int8":
        bundle = dataclasses.replace(bundle, model=_in_int8(bundle.model, device))
    return bundle, torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


_low: WeakKeyDictionary[Family, tuple[list[tuple[int, int]], Family]] = WeakKeyDictionary()
"""Models in int8, and what their parameters were then: where they lie, and how often they were changed."""


def _in_int8(model: Family, device: str) -> Family:
    if device != "cpu" or not has_int8():
        raise ConfigError(
            "int8 cannot be computed here",
            expected="a processor with AVX512-VNNI, and no GPU",
            came=f"a model on {device}" if device != "cpu" else "a processor without it",
            do="take float32 or bf16",
        )
    backbones = {key: encoder for key, encoder in model.encoders.items() if isinstance(encoder, Backbone)}
    if not any(num_linear(encoder) for encoder in backbones.values()):
        raise ConfigError(
            "int8 would change nothing",
            expected="a pretrained encoder with linear layers, as texts have",
            came=", ".join(encoder.source for encoder in backbones.values()) or "no pretrained encoder",
            do="take float32 or bf16",
        )
    state = [
        (item.data_ptr(), _private.num_changes(item)) for encoder in backbones.values() for item in encoder.parameters()
    ]
    before, view = _low.get(model, ([], None))
    if view is not None and before == state:
        return view
    low = {key: in_int8(encoder) for key, encoder in backbones.items()}
    view = _private.shallow_copy(model, {"encoders": nn.ModuleDict({**dict(model.encoders.items()), **low})})
    _low[model] = (state, view)
    return view


def _parts(table: Table, rows: int) -> Iterator[Table]:
    """So many of a table's rows at a time, each part with the rejected rows that came among its own."""
    if len(table) <= rows:
        yield table
        return
    starts = range(0, len(table), rows)
    for number, start in enumerate(starts):
        part = table.select(np.arange(start, min(start + rows, len(table))))
        first = -1 if number == 0 else int(table.rows[start])
        after = np.inf if number == len(starts) - 1 else int(table.rows[start + rows])
        part.rejected = [item for item in table.rejected if first <= item.row < after]
        yield part


def _empty(bundle: Bundle) -> Predictions:
    """Return the predictions of a table without rows."""
    columns: dict[str, Any] = {_row_name(bundle): pa.array([], type=pa.int64())}
    for column, kind, _ in OUTPUTS[bundle.model.name].columns(bundle, None, None):
        columns[_free(column, columns)] = pa.array([], type=kind)
    columns[_free(ERROR, columns)] = pa.array([], type=pa.string())
    return Predictions(pa.table(columns))


def _row_name(bundle: Bundle) -> str:
    """Return what the column of row numbers is called: targets keep their names."""
    return _free(ROW, dict.fromkeys(task.target for task in bundle.targets.values()))


def _predict(bundle: Bundle, examples: Examples, progress: Progress | None) -> Predictions:
    table = examples.table
    rows, indices = _in_order(table)
    used = indices[examples.used]
    columns: dict[str, Any] = {_row_name(bundle): pa.array(rows)}
    _add_identifiers(columns, bundle, table, indices)
    for column, kind, values in OUTPUTS[bundle.model.name].columns(bundle, examples, progress):
        spread: list[Any] = [None] * len(rows)
        for position, value in zip(used, values, strict=True):
            spread[position] = value
        columns[_free(column, columns)] = pa.array(spread, type=kind)
    errors = _errors(examples, rows)
    columns[_free(ERROR, columns)] = pa.array(errors, type=pa.string())
    return Predictions(pa.table(columns))


def _in_order(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all rows that came, rejected ones where they came, and the place of each of the table's rows
    there.

    Rows that were selected from a table may come in any order and more than once; that order is kept.
    """
    if not table.rejected:
        return table.rows, np.arange(len(table))
    rows = np.concatenate([table.rows, np.asarray([item.row for item in table.rejected], dtype=np.int64)])
    order = np.argsort(rows, kind="stable")
    return rows[order], np.argsort(order, kind="stable")[: len(table)]


def _free(name: str, taken: dict[str, Any]) -> str:
    """Return the name, or the name with underscores, where the table has one of that name already."""
    while name in taken:
        name += "_"
    return name


def _add_identifiers(columns: dict[str, Any], bundle: Bundle, table: Table, indices: np.ndarray) -> None:
    for name in bundle.schema.names("id"):
        if name in table:
            spread: list[Any] = [None] * (len(table) + len(table.rejected))
            for index, cell in zip(indices, table.cells(name), strict=True):
                spread[index] = None if cell is None else str(cell)
            columns[_free(name, columns)] = pa.array(spread, type=pa.string())


def _errors(examples: Examples, rows: np.ndarray) -> list[str | None]:
    indices: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        indices.setdefault(int(row), []).append(index)
    notes_at: dict[int, list[str]] = {}
    notes = [(item, "") for item in [*examples.table.rejected, *examples.rejected]]
    notes += [(item, " (predicted without it)") for item in examples.masked]
    without_prediction = {item.row for item in examples.rejected}
    for item, suffix in notes:
        note = _describe(item) + ("" if item.row in without_prediction else suffix)
        for index in indices[item.row]:
            told = notes_at.setdefault(index, [])
            if note not in told:  # a row that came twice is noted twice
                told.append(note)
    return ["; ".join(notes_at[index]) if index in notes_at else None for index in range(len(rows))]


def _describe(item: Rejected) -> str:
    return f"column {item.column!r}: {item.why}" if item.column else item.why
