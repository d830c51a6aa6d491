"""The pool: the rows that may be labelled, with ids that stay the same, and vectors of the pretrained encoders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fusetune.config.config import Config
from fusetune.config.fusion import neural
from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.data.reading.joined import concat, only
from fusetune.data.schema import Schema
from fusetune.data.table import Source, Table, is_missing
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.rows import needed_columns, read_source
from fusetune.errors import ConfigError, SchemaError, TableError
from fusetune.fitting.prepared import backbones_of
from fusetune.lifecycle.frozen import FrozenRows, read_frozen
from fusetune.lifecycle.held_out import all_rows
from fusetune.lifecycle.label_errors import task_of
from fusetune.lifecycle.labelling.probe import Blocks
from fusetune.modalities.values import ValueIndex
from fusetune.models.build import build_modalities, build_model
from fusetune.registry import TASKS
from fusetune.tasks.cells import label_text

MIN_ROWS = 20
"""The fewest distinct rows of a pool."""
MAX_GIVEN = 2000
"""The most rows of a model that count as labels: a probe is fitted for each round."""


@dataclass(frozen=True)
class Pool:
    """Rows that are labelled already, then the pool's.

    Attributes:
        frozen: all of them, with the outputs of the encoders before tuning.
        table: the pool alone, as it was read.
        bundle: the model's processors, or new ones that are fitted on the pool.
        target: the column of labels.
        labels: those that the model knows; empty without a model.
        first: the position of the pool's first row: the number of rows before it.
        ids: (pool rows,) str; equal rows have equal ids.
        given: by position, the labels that rows have without this labelling.
        open: positions of the pool's rows that may be labelled: readable, without a label, the first of equal ones.
        notes: sentences for the user.
    """

    frozen: FrozenRows
    table: Table
    bundle: Bundle
    target: str
    labels: list[str]
    first: int
    ids: np.ndarray
    given: dict[int, str]
    open: np.ndarray
    notes: list[str]

    @property
    def inputs(self) -> list[str]:
        """The columns that a row is read from."""
        return needed_columns(self.bundle)

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of the columns, by name; of those that only a joined column reads, "text"."""
        own = {name: spec.kind for name, spec in self.bundle.schema.columns.items()}
        return {**dict.fromkeys(self.inputs, "text"), **own}

    @cached_property
    def positions(self) -> dict[str, int]:
        """The position of the first row with each id."""
        backwards = range(len(self.ids) - 1, -1, -1)
        return {str(self.ids[row]): self.first + row for row in backwards}

    def id_of(self, position: int) -> str:
        """Return the id of a row of the pool."""
        return str(self.ids[position - self.first])

    @cached_property
    def blocks(self) -> Blocks:
        """By block, (rows, features): what a linear model reads."""
        return self.frozen.blocks(np.arange(len(self.frozen.table)))

    @cached_property
    def vectors(self) -> np.ndarray:
        """(rows, dim) float32 of unit length: the standardised outputs of the encoders, side by side."""
        own = [values[:, :-1] for key, values in self.blocks.items() if isinstance(key, str)]
        joined = np.concatenate(own, 1).astype(np.float32)
        return np.asarray(joined / np.maximum(np.linalg.norm(joined, axis=1, keepdims=True), 1e-9))


def read_pool(
    source: Source,
    model: FineTuned | None,
    target: str | None,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    progress: Progress | None = None,
) -> Pool:
    """Read a pool with the encoders of a model before tuning, or with new ones.

    Args:
        source: the pool. Its rows that have the target are labelled already.
        model: whose train rows are labelled already, too; None starts without a model.
        target: the column, if there is no model or it predicts several.
        overrides: settings of columns and encoders, without a model.
        progress: wraps iterators.

    Raises:
        ConfigError: the target is not one of several labels, or no column has features before tuning.
        TableError: the pool cannot be read, lacks a column, or has too few distinct rows.
    """
    notes: list[str] = []
    if model is None:
        if target is None:
            raise ConfigError("the column of labels has no name", expected="a model, or --target COLUMN")
        config = Config().with_overrides(overrides) if overrides else Config()
        table = Table.read(source, read=config.data.read)
        bundle = _new_bundle(config, table, target)
        base, labels = None, []
    else:
        bundle = model.bundle
        key, task = task_of(bundle.targets, target)
        target, labels = task.target, list(task.labels)
        bundle = replace(bundle, tasks={key: task})
        table = read_source(bundle, source)
        base = _train_rows(model, target, notes)
    columns = needed_columns(bundle)
    table.require(columns)
    ids = row_ids(table, columns)
    parts = [part for part in (base, table) if part is not None and len(part)]
    both = concat(parts) if len(parts) > 1 else table
    frozen = read_frozen(bundle, both, targets=False, progress=progress)
    first = len(both) - len(table)
    given = labels_of(both, target, labels)
    known = set() if base is None else set(row_ids(base, columns)).union(ids[[p - first for p in given if p >= first]])
    if base is None:
        known = {str(ids[position]) for position in given}
    _, firsts = np.unique(ids, return_index=True)
    usable = np.intersect1d(firsts + first, frozen.examples.used)
    is_open = np.asarray([str(ids[row - first]) not in known for row in usable], dtype=bool)
    notes += _notes(table, ids, len(firsts) - len(usable), known, frozen)
    used = set(frozen.examples.used.tolist())
    given = {position: label for position, label in given.items() if position in used}
    if len(firsts) < MIN_ROWS:
        raise TableError("the pool has too few distinct rows", expected=f"{MIN_ROWS} or more", came=str(len(firsts)))
    return Pool(frozen, table, bundle, target, labels, first, ids, given, usable[is_open], notes)


def row_ids(table: Table, columns: Sequence[str]) -> np.ndarray:
    """Return an id of each row, (rows,) str: of the content of its cells in some columns, not of its place."""
    cells = [table.cells(name) if name in table else [None] * len(table) for name in columns]
    return np.asarray([_digest(row) for row in zip(*cells, strict=True)])


def _digest(row: Sequence[Any]) -> str:
    content = json.dumps(row, ensure_ascii=False, default=_shortened).encode("utf-8", "surrogatepass")
    return f"r{hashlib.sha256(content).hexdigest()[:12]}"  # a letter first, so that no sheet takes it for a number


def _shortened(cell: Any) -> str:
    return hashlib.sha256(cell).hexdigest() if isinstance(cell, bytes) else repr(cell)


def labels_of(table: Table, target: str, known: Sequence[str]) -> dict[int, str]:
    """Return the labels in a column by position, in the form of the known ones; empty if the table lacks it."""
    if target not in table:
        return {}
    index, result = ValueIndex(known), {}
    for row, cell in enumerate(table.cells(target)):
        if not is_missing(cell):
            place = index.find(label_text(cell))
            result[row] = label_text(cell) if place is None else known[place]
    return result


def _train_rows(model: FineTuned, target: str, notes: list[str]) -> Table | None:
    """Return the train and validation rows of a model, or None if they cannot be read again."""
    try:
        splits = all_rows(model)
    except (ConfigError, TableError) as error:
        notes.append(
            f"The rows that the model learned from cannot be read again ({error.what}). Only labels of the pool count."
        )
        return None
    rows = concat([splits[split] for split in ("train", "val") if split in splits])
    labelled = np.flatnonzero(~rows.missing(target))
    if len(labelled) > MAX_GIVEN:
        notes.append(f"{MAX_GIVEN:,} of the model's {len(labelled):,} rows, drawn at random, count as labels.")
        labelled = np.sort(np.random.default_rng(0).permutation(labelled)[:MAX_GIVEN])
    return rows.select(labelled)


def _new_bundle(config: Config, table: Table, target: str) -> Bundle:
    """Return processors for a pool, fitted on it, with pretrained encoders as the settings name them."""
    overrides = config.schema_overrides()
    inputs = only(table, [name for name in table.column_names if name != target]) if target in table else table
    try:
        schema = Schema.detect(inputs, overrides=overrides, read=config.data.read)
    except SchemaError as error:
        raise error.in_file(table.source) from None
    if not schema.inputs:
        raise ConfigError(
            "the pool has no column to read",
            expected="texts, images, audio, numbers or categories",
            came="; ".join(f"{name} ({spec.reason})" for name, spec in schema.columns.items()) or "no column",
            do="insist on one with columns.NAME.role=input",
        )
    columns = {name: (schema.columns[name].kind, schema.columns[name].options) for name in schema.inputs}
    modalities = build_modalities(columns, backbones_of(config))
    examples = Examples(inputs.read_as(schema.forms()).with_joined(schema.joins()), modalities)
    examples.prepare(on_bad_cell="mask", memory=config.data.memory)
    if not len(examples):
        raise TableError("no row can be read", file=table.source)
    examples.fit()
    # A head that is not used: the encoders alone are.
    task = TASKS.get("multiclass").from_state(target, {"classes": ["", " "], "counts": [1, 1]})
    model = build_model(modalities, {target: task}, neural(config.fusion))
    return Bundle(model, modalities, {target: task}, schema, config)


def _notes(table: Table, ids: np.ndarray, unread: int, known: set[str], frozen: FrozenRows) -> list[str]:
    notes = list(table.notes)
    distinct = set(ids.tolist())
    if repeated := len(ids) - len(distinct):
        notes.append(
            f"{repeated:,} rows of the pool repeat others: one of each is shown, and its label is that of all."
        )
    if lost := unread + len(table.rejected):
        notes.append(f"{lost:,} rows of the pool cannot be read and are left out.")
    if already := len(distinct & known):
        notes.append(f"{already:,} distinct rows of the pool have a label already.")
    if frozen.left_out:
        notes.append(f"Encoders trained from scratch are not read: {', '.join(frozen.left_out)}.")
    return notes
