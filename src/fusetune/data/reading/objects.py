"""Objects in memory as tables: Arrow tables, pandas DataFrames and Hugging Face datasets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.data.reading.arrow import check_whole, from_cells, normal_array, normal_field, normal_schema
from fusetune.data.reading.text_files import check_names
from fusetune.data.table import Table
from fusetune.errors import TableError

NO_ROWS = "the table has no rows"


def from_arrow(arrow: pa.Table, source: str, folder: Path) -> Table:
    """An Arrow table; columns that need no change are not copied.

    Raises:
        TableError: it has no rows, column names that clash, or cells that are broken or of no type that is read.
    """
    check_names([str(name) for name in arrow.column_names], source)
    if arrow.num_rows == 0:
        raise TableError(NO_ROWS, expected="at least one row", do="check how it was made", file=source)
    try:
        check_whole(arrow)
        schema = normal_schema(arrow.schema)
        return Table(_normal_table(arrow, schema), source=source, base_dir=folder)
    except TableError as error:
        raise error.in_file(source) from error.__cause__


def _normal_table(arrow: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for place, field in enumerate(schema):
        column = arrow.column(place)
        changed = column.type != field.type
        chunks = [normal_array(chunk, field) for chunk in column.chunks] if changed else column.chunks
        columns.append(pa.chunked_array(chunks, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def from_pandas(frame: Any, folder: Path) -> Table:
    """A pandas DataFrame; its index is not a column.

    Integers stay integers, NaN and NaT are missing, text stays text, also beside numbers in one column.

    Raises:
        TableError: it has no rows, column names that clash, or cells that cannot be kept.
    """
    source = "the DataFrame"
    names = [str(name) for name in frame.columns]
    check_names(names, source)
    if not len(frame):
        raise TableError("the DataFrame has no rows", expected="at least one row", file=source)
    arrays, fields = [], []
    for place, name in enumerate(names):
        series = frame.iloc[:, place]
        part = None
        # Arrow would keep periods as numbers, and categories that are intervals as pairs.
        if not str(series.dtype).startswith(("object", "category", "period", "interval")):
            try:
                part = pa.table({name: pa.array(series, from_pandas=True)})
            except (pa.ArrowException, TypeError, ValueError):
                part = None
        if part is None:
            part = from_cells({name: [_cell(value) for value in series]}, source)
        fields.append(normal_field(part.schema.field(0)))
        arrays.append(normal_array(part.column(0).combine_chunks(), fields[-1]))
    return Table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), source=source, base_dir=folder)


def _cell(value: Any) -> Any:
    """An object cell of pandas as plain Python: its own words for nothing as None, numpy as lists and numbers."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return _cell(value.item())
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if type(value).__name__ in ("Period", "Interval", "Decimal"):
        return str(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def from_hugging_face(data: Any, folder: Path) -> Table:
    """A Hugging Face `Dataset`: media undecoded, class labels as their names (-1, "none", as missing).

    Raises:
        TableError: it is a dictionary of splits, is streamed, has no rows, or column names that clash.
    """
    sort = type(data).__name__
    if sort != "Dataset":
        splits = ", ".join(map(repr, data)) if isinstance(data, dict) else ""
        raise TableError(
            f"a datasets.{sort} is not one table",
            expected="a datasets.Dataset",
            do=f"choose a split: data[name], of {splits}" if splits else "load it without streaming=True",
        )
    source = "the Dataset"
    if not len(data):
        raise TableError("the Dataset has no rows", expected="at least one row", file=source)
    arrow = data.with_format("arrow")[:]
    for place, name in enumerate(arrow.column_names):
        names = getattr(data.features[name], "names", None)
        if names is not None and type(data.features[name]).__name__ == "ClassLabel":
            labels = [names[i] if i is not None and i >= 0 else None for i in arrow.column(place).to_pylist()]
            arrow = arrow.set_column(place, name, pa.array(labels, pa.string()))
    return from_arrow(arrow, source, folder)
