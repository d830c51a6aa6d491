"""A tuned model in use: predictions and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from fusetune._optional import optional_import
from fusetune.data.examples import Examples, Progress
from fusetune.data.quarantine import Rejected
from fusetune.data.table import Source, Table
from fusetune.deploy.bundle import Bundle
from fusetune.errors import StorageError, TableError
from fusetune.training.inference import row_vectors
from fusetune.trees.stack import predict_scores

if TYPE_CHECKING:
    import pandas

ROW, ERROR = "row", "error"


class Predictions:
    """One row for each row that came, in order.

    Attributes:
        table: an Arrow table: `row` (the row's number, 0 is the first), identifier columns, each target's prediction
            and its probabilities, and `error`: why a row has no prediction, or what was left out of it; else null.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"Predictions({len(self)} rows, {self.num_errors} with an error; columns {self.table.column_names})"

    @property
    def num_errors(self) -> int:
        """Rows with something in their error column."""
        return len(self) - int(self.table.column(ERROR).null_count)

    def __getitem__(self, column: str) -> list[Any]:
        """A column as a list."""
        return list(self.table.column(column).to_pylist())

    def to_pandas(self) -> pandas.DataFrame:
        """As a pandas DataFrame."""
        optional_import("pandas", "to give predictions as a DataFrame")
        return self.table.to_pandas()

    def to_csv(self, path: str | Path) -> None:
        """Write a CSV file with a header; lists are JSON."""
        flat = self.table
        for index, column in enumerate(flat.schema):
            if pa.types.is_list(column.type):
                cells = [None if cell is None else _as_json([cell])[0] for cell in flat.column(index).to_pylist()]
                flat = flat.set_column(index, column.name, pa.array(cells, type=pa.string()))
        self._write(path, lambda target: arrow_csv.write_csv(flat, target))

    def to_parquet(self, path: str | Path) -> None:
        """Write a Parquet file."""
        self._write(path, lambda target: parquet.write_table(self.table, target))

    def to_jsonl(self, path: str | Path) -> None:
        """Write one JSON object a row."""
        lines = "".join(line + "\n" for line in _as_json(self.table.to_pylist()))
        self._write(path, lambda target: target.write(lines.encode()))

    def _write(self, path: str | Path, write: Any) -> None:
        try:
            with Path(path).open("wb") as target:
                write(target)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from error


def _as_json(values: Sequence[Any]) -> list[str]:
    import json

    return [json.dumps(value, ensure_ascii=False) for value in values]


def read_examples(
    bundle: Bundle, source: Source, *, targets: bool, on_bad_cell: str = "mask", progress: Progress | None = None
) -> Examples:
    """A table's rows, read as the model's columns.

    Args:
        bundle: the tuned model.
        source: anything that `Table.read` takes; it must have the model's columns.
        targets: whether the rows' targets are read too.
        on_bad_cell: "mask" goes on without a cell that cannot be read, "reject" without its row.
        progress: wraps iterators.

    Raises:
        TableError: the table cannot be read or lacks a column.
    """
    table = Table.read(source)
    table.require([*bundle.modalities, *([task.target for task in bundle.tasks.values()] if targets else [])])
    weight = bundle.schema.weight if targets and bundle.schema.weight in table else None
    group = bundle.schema.group if targets and bundle.schema.group in table else None
    examples = Examples(table, bundle.modalities, bundle.tasks if targets else None, weight=weight, group=group)
    examples.prepare(on_bad_cell=on_bad_cell, memory=bundle.config.data.memory, progress=progress)
    return examples


def predict(
    bundle: Bundle, source: Source, *, on_bad_cell: str = "mask", progress: Progress | None = None
) -> Predictions:
    """Predictions for every row of a table; see `Predictions` for what they hold.

    Raises:
        TableError: the table cannot be read or lacks a column.
    """
    examples = read_examples(bundle, source, targets=False, on_bad_cell=on_bad_cell, progress=progress)
    table = examples.table
    rows, places = _in_order(table)
    used = places[examples.used]
    columns: dict[str, Any] = {ROW: pa.array(rows)}
    _add_identifiers(columns, bundle, table, places)
    if len(used):
        scores = (
            predict_scores(bundle.model, bundle.tasks, examples, stack=bundle.stack, progress=progress)
            if bundle.tasks
            else {}
        )
        for name, task in bundle.tasks.items():
            for column, values in task.columns(scores[name]).items():
                spread: list[Any] = [None] * len(rows)
                for position, value in zip(used, values, strict=True):
                    spread[position] = value
                columns[_free(column, columns)] = pa.array(spread)
        if not bundle.tasks:
            _add_vectors(columns, bundle, examples, used, len(rows))
    else:
        columns |= {task.target: pa.nulls(len(rows)) for task in bundle.tasks.values()}
    errors = _errors(examples, rows)
    columns[_free(ERROR, columns)] = pa.array(errors, type=pa.string())
    return Predictions(pa.table(columns))


def _in_order(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all rows that came, rejected ones where they came, and the place of each of the table's rows there.

    Rows that were selected from a table may come in any order and more than once; that order is kept.
    """
    if not table.rejected:
        return table.rows, np.arange(len(table))
    rows = np.concatenate([table.rows, np.asarray([item.row for item in table.rejected], dtype=np.int64)])
    order = np.argsort(rows, kind="stable")
    return rows[order], np.argsort(order, kind="stable")[: len(table)]


def _free(name: str, taken: dict[str, Any]) -> str:
    """The name, or the name with underscores, where the table has one of that name already."""
    while name in taken:
        name += "_"
    return name


def _add_identifiers(columns: dict[str, Any], bundle: Bundle, table: Table, places: np.ndarray) -> None:
    for name in bundle.schema.names("id"):
        if name in table:
            spread: list[Any] = [None] * (len(table) + len(table.rejected))
            for place, cell in zip(places, table.cells(name), strict=True):
                spread[place] = None if cell is None else str(cell)
            columns[_free(name, columns)] = pa.array(spread, type=pa.string())


def _add_vectors(columns: dict[str, Any], bundle: Bundle, examples: Examples, used: np.ndarray, num_rows: int) -> None:
    """Per input column, each row's vector in the common space; null where the row lacks the column."""
    for name, values in row_vectors(bundle.model, examples, examples.used).items():
        there = examples.columns[name].codes[examples.used] >= 0
        spread: list[list[float] | None] = [None] * num_rows
        for position, vector, has in zip(used, values.numpy(), there, strict=True):
            if has:
                spread[position] = vector.tolist()
        columns[_free(f"{name}_vector", columns)] = pa.array(spread, type=pa.list_(pa.float32()))


def _errors(examples: Examples, rows: np.ndarray) -> list[str | None]:
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(int(row), []).append(place)
    notes_at: dict[int, list[str]] = {}
    notes = [(item, "") for item in [*examples.table.rejected, *examples.rejected]]
    notes += [(item, " (predicted without it)") for item in examples.masked]
    without_prediction = {item.row for item in examples.rejected}
    for item, suffix in notes:
        note = _describe(item) + ("" if item.row in without_prediction else suffix)
        for place in places[item.row]:
            told = notes_at.setdefault(place, [])
            if note not in told:  # a row that came twice is noted twice
                told.append(note)
    return ["; ".join(notes_at[place]) if place in notes_at else None for place in range(len(rows))]


def _describe(item: Rejected) -> str:
    return f"column {item.column!r}: {item.why}" if item.column else item.why


def require_labels(examples: Examples, source: str) -> None:
    """Refuse to measure where no row has a target; a model without a task needs none.

    Raises:
        TableError: there is none.
    """
    if examples.tasks and not any(len(examples.labelled(name)) for name in examples.tasks):
        raise TableError(
            "no row has a target that the model can be measured on",
            expected=f"values in {', '.join(task.target for task in examples.tasks.values())}",
            file=source,
        )
