"""Named negatives: columns of documents that a row's query should not find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusetune.data.distinct import cell_key
from fusetune.data.examples import Examples
from fusetune.data.reading.joined import concat, only, renamed, with_column
from fusetune.data.table import Table


def without_right_answers(
    table: Table, query: Sequence[str], document: str, negative: Sequence[str], group: str | None = None
) -> tuple[Table, int]:
    """Return a table whose negatives are no right answers, and how many were.

    Right answers of a row are the documents of all rows with an equal query, or of its group. A negative that equals
    one becomes a missing cell.

    Args:
        table: the rows.
        query, document, negative: the columns.
        group: the column of groups, if there is one.
    """
    codes = np.stack([table.distinct(name)[0] for name in query], 1)
    _, asked = np.unique(codes, axis=0, return_inverse=True)
    owners = [asked.reshape(-1), table.distinct(group)[0] if group is not None else np.full(len(table), -1)]
    documents = _cell_keys(table, document)
    right = [
        {(int(owner), key) for owner, key in zip(part, documents, strict=True) if owner >= 0 and key is not None}
        for part in owners
    ]
    count = 0
    for name in negative:
        keys = _cell_keys(table, name)
        wrong = np.array(
            [
                key is not None and any((int(owner), key) in known for owner, known in zip(own, right, strict=True))
                for *own, key in zip(*owners, keys, strict=True)
            ]
        )
        if wrong.any():
            table, count = _emptied(table, name, wrong), count + int(wrong.sum())
    return table, count


def with_negatives(table: Table, document: str, negative: Sequence[str], *, reserved: int) -> Table:
    """Return the rows, then a row for each of their negatives with it as its document.

    The other cells of such a row are missing, so nothing asks for it, but it is among the documents that are searched.
    In the result the columns of negatives are empty.

    Args:
        table: the rows.
        document, negative: the columns.
        reserved: the number of row ids of the table's file; those of the added rows follow.
    """
    parts, rows = [table], np.arange(len(table))
    for name in negative:
        parts[0] = _emptied(parts[0], name, np.ones(len(table), dtype=bool))
        named = rows[~table.missing(name)]
        if len(named):
            parts.append(renamed(only(table.select(named), [name]), name, document))
    return concat(parts, table.source, reserved=reserved)


def common_keys(examples: Examples, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Return `Column.keys` of columns, by which equal cells of different columns are known.

    Args:
        examples: prepared rows.
        columns: their names.
    """
    numbers: dict[Any, int] = {}
    keys = {}
    for name in columns:
        column = examples.columns[name]
        cells = np.array([numbers.setdefault(cell_key(cell), len(numbers)) for cell in column.cells], dtype=np.int64)
        codes = np.asarray(column.codes)
        keys[name] = np.where(codes >= 0, cells[codes] if len(cells) else -1, -1)
    return keys


def _cell_keys(table: Table, name: str) -> list[Any]:
    """Return a key of every row's cell, None for a missing one; equal cells of any column have equal keys."""
    codes, first = table.distinct(name)
    keys = [cell_key(cell) for cell in table.lazy(name, first)]
    return [keys[code] if code >= 0 else None for code in codes]


def _emptied(table: Table, name: str, rows: np.ndarray) -> Table:
    """Return a table with the cells of some rows, (rows,) bool, missing."""
    values = table.arrow.column(name)
    empty = pc.if_else(pa.array(rows), pa.scalar(None, values.type), values)
    return with_column(table, name, empty)
