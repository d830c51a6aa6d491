"""Prediction with a tuned model."""

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
from fusetune.data.output_names import ERROR, ROW, error_notes, free_name
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.conll import Spans, span_targets
from fusetune.deploy.outputs import OUTPUTS, Output
from fusetune.deploy.predictions import Predictions
from fusetune.deploy.rows import Rows, index_of, read_rows
from fusetune.errors import ConfigError, EmptyTable
from fusetune.inference.predict import model_device
from fusetune.inference.scores import predict_scores
from fusetune.models.family import Family
from fusetune.tasks.pairs import PairTask

PART_ROWS = 8192
"""Rows that are decoded and predicted together."""
Precision = Literal["float32", "bf16", "int8"]
"""bf16: autocast, faster with hardware support, slightly different results. int8: dynamic quantisation of the encoders'
linear layers, faster on CPUs with AVX512-VNNI."""


def read_examples(
    bundle: Bundle,
    source: Rows,
    *,
    targets: bool,
    on_bad_cell: str = "mask",
    missing: Sequence[str] = (),
    progress: Progress | None = None,
) -> Examples:
    """Read and decode the input columns of a model.

    Args:
        bundle: the tuned model.
        source: see `read_rows`.
        targets: whether to read the targets too.
        on_bad_cell: "mask" replaces a cell that cannot be decoded by a missing one, "reject" rejects its row.
        missing: input columns that the table may lack.
        progress: `progress(iterator, description, total)` wraps an iterator.

    Raises:
        TableError: the table cannot be read or lacks a column.
    """
    table = read_rows(bundle, source, missing=missing)
    table.require([task.target for task in bundle.targets.values()] if targets else [])
    weight = bundle.schema.weight if targets and bundle.schema.weight in table else None
    group = bundle.schema.group if targets and bundle.schema.group in table else None
    examples = Examples(table, bundle.modalities, bundle.targets if targets else None, weight=weight, group=group)
    examples.prepare(on_bad_cell=on_bad_cell, memory=bundle.config.data.memory, progress=progress)
    for task in bundle.targets.values() if targets else ():
        if isinstance(task, PairTask):
            examples.require(task.sides)
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
    """Predict every row of a table; the arguments are those of `read_examples` and `predict_parts`.

    Raises:
        TableError: the table cannot be read or lacks a column.
    """
    parts = predict_parts(
        bundle, source, on_bad_cell=on_bad_cell, precision=precision, missing=missing, progress=progress
    )
    tables, spans = zip(*((part.table, part.spans) for part in parts), strict=True)
    return Predictions(pa.concat_tables(tables), index=index_of(source), spans=_joined(spans))


def _joined(parts: Sequence[Spans | None]) -> Spans | None:
    first = parts[0]
    return first and Spans(first.columns, [text for part in parts if part is not None for text in part.texts])


def predict_parts(
    bundle: Bundle,
    source: Rows,
    *,
    on_bad_cell: str = "mask",
    precision: Precision = "float32",
    missing: Sequence[str] = (),
    progress: Progress | None = None,
    rows: int = PART_ROWS,
    output: Output | None = None,
) -> Iterator[Predictions]:
    """Predict a table in parts of `rows` rows, in order and in bounded memory; `output` replaces the family's columns.

    Raises:
        TableError: the table cannot be read or lacks a column.
    """
    try:
        table = read_rows(bundle, source, missing=missing)
    except EmptyTable:
        yield _empty(bundle, output or OUTPUTS[bundle.model.name])
        return
    bundle, low = arithmetic(bundle, precision)
    for part in _parts(table, rows):
        examples = read_examples(bundle, part, targets=False, on_bad_cell=on_bad_cell, progress=progress)
        with low:
            result = _predict(bundle, examples, progress, output or OUTPUTS[bundle.model.name])
        yield result


def predict_proba(bundle: Bundle, source: Rows, target: str | None, *, missing: Sequence[str] = ()) -> np.ndarray:
    """Return the probabilities of a target's labels, (rows, labels); NaN for rows that cannot be predicted.

    Raises:
        ConfigError: the model has no such target, the target has no labels, or there are several and none is named.
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
    probabilities = []
    for part in _parts(table, PART_ROWS):
        examples = read_examples(bundle, part, targets=False)
        rows, indices = _in_order(part)
        probabilities.append(np.full((len(rows), len(task.labels)), np.nan))
        if len(examples):
            scores = predict_scores(bundle.model, bundle.targets, examples, stack=bundle.stack)
            probabilities[-1][indices[examples.used]] = scores[name]
    return np.concatenate(probabilities)


def arithmetic(bundle: Bundle, precision: Precision) -> tuple[Bundle, torch.autocast]:
    """Return the bundle and the autocast context for predicting in a precision.

    Raises:
        ConfigError: int8 is not supported by the device, or the model has no layer that it would change.
    """
    device = model_device(bundle.model).type
    if precision == "int8":
        bundle = dataclasses.replace(bundle, model=_in_int8(bundle.model, device))
    return bundle, torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


_low: WeakKeyDictionary[Family, tuple[list[tuple[int, int]], Family]] = WeakKeyDictionary()
"""Quantised models, each with the addresses and versions of the parameters that it was made from."""


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
        (parameter.data_ptr(), _private.num_changes(parameter))
        for encoder in backbones.values()
        for parameter in encoder.parameters()
    ]
    before, view = _low.get(model, ([], None))
    if view is not None and before == state:
        return view
    low = {key: in_int8(encoder) for key, encoder in backbones.items()}
    view = _private.shallow_copy(model, {"encoders": nn.ModuleDict({**dict(model.encoders.items()), **low})})
    _low[model] = (state, view)
    return view


def _parts(table: Table, rows: int) -> Iterator[Table]:
    """Split a table into parts of `rows` rows, each with the rejected rows between its own."""
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


def _empty(bundle: Bundle, output: Output) -> Predictions:
    """Return the predictions of a table without rows."""
    columns: dict[str, Any] = {_row_name(bundle): pa.array([], type=pa.int64())}
    for column, kind, _ in output.columns(bundle, None, None):
        columns[free_name(column, columns)] = pa.array([], type=kind)
    columns[free_name(ERROR, columns)] = pa.array([], type=pa.string())
    targets, text = span_targets(bundle.targets.values())
    return Predictions(pa.table(columns), spans=None if text is None else Spans(targets, []))


def _row_name(bundle: Bundle) -> str:
    """Return the name of the column of row numbers, which differs from all targets' names."""
    return free_name(ROW, dict.fromkeys(task.target for task in bundle.targets.values()))


def _predict(bundle: Bundle, examples: Examples, progress: Progress | None, output: Output) -> Predictions:
    table = examples.table
    rows, indices = _in_order(table)
    used = indices[examples.used]
    columns: dict[str, Any] = {_row_name(bundle): pa.array(rows)}
    _add_identifiers(columns, bundle, table, indices)
    for column, kind, values in output.columns(bundle, examples, progress):
        spread: list[Any] = [None] * len(rows)
        for position, value in zip(used, values, strict=True):
            spread[position] = value
        columns[free_name(column, columns)] = pa.array(spread, type=kind)
    errors = error_notes(rows.tolist(), [*examples.table.rejected, *examples.rejected], examples.masked)
    columns[free_name(ERROR, columns)] = pa.array(errors, type=pa.string())
    return Predictions(pa.table(columns), spans=_spans(bundle, table, indices, len(rows)))


def _spans(bundle: Bundle, table: Table, indices: np.ndarray, rows: int) -> Spans | None:
    """Return the columns of predicted spans with the rows' texts; None without such columns."""
    targets, text = span_targets(bundle.targets.values())
    if text is None:
        return None
    spread: list[Any] = [None] * rows
    for index, cell in zip(indices, table.cells(text), strict=True):
        spread[index] = cell
    return Spans(targets, spread)


def _in_order(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all rows, rejected ones included, in order, and the position among them of the table's rows.

    Rows that were selected from a table may be in any order and repeat; that order is preserved.
    """
    if not table.rejected:
        return table.rows, np.arange(len(table))
    rows = np.concatenate([table.rows, np.asarray([item.row for item in table.rejected], dtype=np.int64)])
    order = np.argsort(rows, kind="stable")
    return rows[order], np.argsort(order, kind="stable")[: len(table)]


def _add_identifiers(columns: dict[str, Any], bundle: Bundle, table: Table, indices: np.ndarray) -> None:
    for name in bundle.schema.names("id"):
        if name in table:
            spread: list[Any] = [None] * (len(table) + len(table.rejected))
            for index, cell in zip(indices, table.cells(name), strict=True):
                spread[index] = None if cell is None else str(cell)
            columns[free_name(name, columns)] = pa.array(spread, type=pa.string())
