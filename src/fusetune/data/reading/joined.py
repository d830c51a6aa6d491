"""Concatenation of tables over the union of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.data.quarantine import Rejected
from fusetune.data.reading.arrow import from_cells, is_json
from fusetune.data.storage.mapped import mapped_concatenate
from fusetune.data.table import Table

PROBED = 500
"""Cells of a text column that are checked for file names."""


def concat(tables: Sequence[Table], source: str | None = None, *, reserved: int = 0) -> Table:
    """Concatenate tables.

    A column that a table lacks is missing in its rows. Row ids continue from table to table, rejected rows included;
    `Table.file_and_row` maps them back. If the tables are in several folders, relative file paths become absolute.

    Args:
        tables: one or more; a single table is returned unchanged.
        source: name of the result; None joins the tables' names.
        reserved: the number of row ids that the first table has, if its rows and rejected rows are not all of them.

    Raises:
        TableError: a column's cells in two tables have incompatible types.
    """
    if len(tables) == 1:
        return tables[0]
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    columns = {name: _joined(name, tables) for name in names}
    rows: list[tuple[np.ndarray, int]] = []
    rejected: list[Rejected] = []
    files: list[tuple[str, int]] = []
    first = 0
    for table in tables:
        rows.append((table.rows, first))
        rejected += [replace(item, row=item.row + first) for item in table.rejected]
        files += [(source, start + first) for source, start in table.files]
        first += 1 + max([int(table.rows.max(initial=-1)), *(item.row for item in table.rejected)])
        first = max(first, reserved)
    schema = pa.schema([field for field, _ in columns.values()])
    made = Table(
        pa.Table.from_arrays([array for _, array in columns.values()], schema=schema),
        source=source or " + ".join(table.source for table in tables),
        base_dir=tables[0].base_dir,
        rows=mapped_concatenate((ids + first for ids, first in rows), sum(map(len, tables))),
        rejected=rejected,
        notes=[f"{table.source}: {note}" for table in tables for note in table.notes],
        keep=[table.keep for table in tables],
        files=files,
    )
    made.lone = any(table.lone for table in tables)
    made.fetcher = next((table.fetcher for table in tables if table.fetcher is not None), None)
    return made


def beside(left: Table, left_rows: np.ndarray, right: Table, right_rows: np.ndarray, columns: Sequence[str]) -> Table:
    """Return rows of two tables side by side, with the row ids and files of the left one.

    If the tables are in two folders, relative file paths of the right one become absolute.

    Args:
        left, right: the tables.
        left_rows, right_rows: (rows,) positions in each, in any order; a row may repeat.
        columns: those of the right table; they replace columns of the left one that have the same name.
    """
    apart = left.base_dir.resolve() != right.base_dir.resolve()
    arrow, take = left.arrow, pa.array(left_rows)
    names = [name for name in left.column_names if name not in columns]
    parts = [(arrow.schema.field(name), arrow.column(name).take(take)) for name in names]
    take = pa.array(right_rows)
    for name in columns:
        field, data = _column(right, name, apart=apart)
        parts.append((field, data.take(take)))
    made = pa.Table.from_arrays([data for _, data in parts], schema=pa.schema([field for field, _ in parts]))
    table = _rebuilt(left, made, left.rows[left_rows])
    table.keep = [left.keep, right.keep]
    table.lone, table.fetcher = left.lone or right.lone, left.fetcher or right.fetcher
    return table


def only(table: Table, columns: Sequence[str]) -> Table:
    """Return a table's rows with some of its columns."""
    return _rebuilt(table, table.arrow.select(list(columns)), table.rows)


def renamed(table: Table, name: str, other: str) -> Table:
    """Return a table's rows with a column under another name."""
    names = [other if column == name else column for column in table.column_names]
    return _rebuilt(table, table.arrow.rename_columns(names), table.rows)


def with_column(table: Table, name: str, values: pa.Array | pa.ChunkedArray) -> Table:
    """Return a table's rows with a column replaced."""
    arrow = table.arrow
    return _rebuilt(table, arrow.set_column(arrow.column_names.index(name), name, values), table.rows)


def _rebuilt(table: Table, arrow: pa.Table, rows: np.ndarray) -> Table:
    """Return a table with other content, and the source, folder and files of this one."""
    made = Table(arrow, source=table.source, base_dir=table.base_dir, rows=rows, keep=table.keep, files=table.files)
    made.lone, made.fetcher = table.lone, table.fetcher
    return made


def _joined(name: str, tables: Sequence[Table]) -> tuple[pa.Field, pa.ChunkedArray]:
    """Return a column over all tables."""
    apart = len({table.base_dir.resolve() for table in tables}) > 1
    parts = [_column(table, name, apart=apart) for table in tables]
    fields = [field for field, _ in parts if not pa.types.is_null(field.type)]
    field = fields[0] if fields else pa.field(name, pa.null())
    kinds, marks = {field.type for field in fields}, {is_json(field) for field in fields}
    if len(kinds) > 1 and marks == {False}:
        if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
            field = pa.field(name, pa.float64())
        elif all(_plain(kind) for kind in kinds):  # the same cells as from a text file
            field = pa.field(name, pa.string())
        else:
            marks = {True, False}
    if len(marks) > 1:
        column = from_cells({name: [cell for table in tables for cell in _cells(table, name)]}, tables[0].source)
        return column.schema.field(0), column.column(0)
    chunks = [chunk for _, data in parts for chunk in _cast(data, field.type).chunks]
    return field, pa.chunked_array(chunks, field.type)


def _cast(data: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    number = pa.types.is_integer(data.type) or pa.types.is_floating(data.type) or pa.types.is_boolean(data.type)
    if number and pa.types.is_string(kind):  # in Python's notation, not Arrow's
        return pa.chunked_array([pa.array([None if cell is None else str(cell) for cell in data.to_pylist()], kind)])
    return data.cast(kind)


def _plain(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
    )


def _cells(table: Table, name: str) -> list[Any]:
    return table.cells(name) if name in table else [None] * len(table)


def _column(table: Table, name: str, *, apart: bool) -> tuple[pa.Field, pa.ChunkedArray]:
    """Return a table's column; with `apart`, relative paths of files become absolute."""
    if name not in table:
        return pa.field(name, pa.null()), pa.chunked_array([pa.nulls(len(table))])
    arrow = table.arrow
    field, data = arrow.schema.field(name), arrow.column(name)
    if not apart or is_json(field) or not pa.types.is_string(field.type):
        return field, data
    probed = [cell for cell in data.slice(0, PROBED).to_pylist() if cell]
    if not any(_is_file(cell, table.base_dir) for cell in probed):
        return field, data
    home = table.base_dir.resolve()
    cells = [
        ";".join(part if "://" in part else str(home / part.strip()) for part in cell.split(";")) if cell else cell
        for cell in data.to_pylist()
    ]
    return field, pa.chunked_array([pa.array(cells, field.type)])


def _is_file(cell: str, home: Path) -> bool:
    try:
        return len(cell) < 4096 and (home / cell.split(";")[0].strip()).is_file()
    except (OSError, ValueError):
        return False
