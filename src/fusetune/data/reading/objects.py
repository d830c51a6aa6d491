"""Tables from objects in memory: Arrow tables, pandas DataFrames and Hugging Face datasets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.data.reading.arrow import (
    from_cells,
    lone_surrogates,
    normal_array,
    normal_field,
    normal_schema,
    time_text,
    validate_data,
)
from fusetune.data.reading.text_files import check_names
from fusetune.data.table import Table
from fusetune.errors import EmptyTable, TableError
from fusetune.modalities.media.image_files import image_to_png

NO_ROWS = "the table has no rows"


def from_arrow(arrow: pa.Table, source: str, folder: Path) -> Table:
    """Return the table of an Arrow table; columns that need no conversion are not copied.

    Raises:
        TableError: it has no rows, invalid column names, broken cells, or cells of an unsupported type.
    """
    check_names([str(name) for name in arrow.column_names], source)
    if arrow.num_rows == 0:
        raise EmptyTable(NO_ROWS, expected="at least one row", do="check how it was made", file=source)
    try:
        validate_data(arrow)
        schema = normal_schema(arrow.schema)
        return Table(_normal_table(arrow, schema), source=source, base_dir=folder)
    except TableError as error:
        raise error.in_file(source) from error.__cause__


def _normal_table(arrow: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for index, field in enumerate(schema):
        column = arrow.column(index)
        changed = column.type != field.type
        chunks = [normal_array(chunk, field) for chunk in column.chunks] if changed else column.chunks
        columns.append(pa.chunked_array(chunks, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def from_pandas(frame: Any, folder: Path) -> Table:
    """Return the table of a pandas DataFrame, without its index.

    Integers stay integers, NaN and NaT are missing, and columns may mix text and numbers. Rows whose text has a lone
    surrogate are rejected.

    Raises:
        TableError: it has no rows, invalid column names, or cells of an unsupported type.
    """
    source = "the DataFrame"
    names = [str(name) for name in frame.columns]
    check_names(names, source)
    if not len(frame):
        raise EmptyTable("the DataFrame has no rows", expected="at least one row", file=source)
    try:
        return Table(_pandas_to_arrow(frame, names, source), source=source, base_dir=folder)
    except UnicodeEncodeError:
        rejected = lone_surrogates({name: frame.iloc[:, index].tolist() for index, name in enumerate(names)})
    if not rejected or len(rejected) == len(frame):
        raise TableError("no row's text can be written as UTF-8", do="decode the text again", file=source)
    rows = np.delete(np.arange(len(frame)), [item.row for item in rejected])
    arrow = _pandas_to_arrow(frame.iloc[rows], names, source)
    return Table(arrow, source=source, base_dir=folder, rows=rows, rejected=rejected)


def _pandas_to_arrow(frame: Any, names: list[str], source: str) -> pa.Table:
    arrays, fields = [], []
    for index, name in enumerate(names):
        series = frame.iloc[:, index]
        part = None
        # Arrow would store periods as numbers and intervals as pairs.
        if not str(series.dtype).startswith(("object", "category", "period", "interval")):
            try:
                part = pa.table({name: pa.array(series, from_pandas=True)})
            except UnicodeEncodeError:
                raise
            except (pa.ArrowException, TypeError, ValueError):
                part = None
        if part is None:
            part = from_cells({name: [_cell(value) for value in series]}, source)
        fields.append(normal_field(part.schema.field(0)))
        arrays.append(normal_array(part.column(0).combine_chunks(), fields[-1]))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _cell(value: Any) -> Any:
    """Return an object cell of pandas as plain Python: NaN, NaT and NA as None, numpy values as lists and numbers."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if (picture := image_to_png(value)) is not None:
        return picture
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return _cell(value.item())
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "total_seconds"):
        return value.total_seconds()
    if hasattr(value, "isoformat"):
        return time_text(value)
    if type(value).__name__ in ("Period", "Interval", "Decimal"):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [image_to_png(part) or part for part in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def from_hugging_face(data: Any, folder: Path) -> Table:
    """Return the table of a Hugging Face `Dataset`; media stay encoded, class labels become names (-1 is missing).

    Raises:
        TableError: it is a dictionary of splits, is streamed, has no rows, or has invalid column names.
    """
    name = type(data).__name__
    if name != "Dataset":
        splits = ", ".join(map(repr, data)) if isinstance(data, dict) else ""
        raise TableError(
            f"a datasets.{name} is not one table",
            expected="a datasets.Dataset",
            do=f"choose a split: data[name], of {splits}" if splits else "load it without streaming=True",
        )
    source = "the Dataset"
    if not len(data):
        raise EmptyTable("the Dataset has no rows", expected="at least one row", file=source)
    arrow = data.with_format("arrow")[:]
    for index, name in enumerate(arrow.column_names):
        feature = data.features[name]
        inner = getattr(feature, "feature", None)  # of a list
        if _is_class_label(feature):
            labels: list[Any] = [_class_name(feature, cell) for cell in arrow.column(index).to_pylist()]
            arrow = arrow.set_column(index, name, pa.array(labels, pa.string()))
        elif _is_class_label(inner):
            cells = arrow.column(index).to_pylist()
            labels = [None if cell is None else [_class_name(inner, part) for part in cell] for cell in cells]
            arrow = arrow.set_column(index, name, pa.array(labels, pa.list_(pa.string())))
    return from_arrow(arrow, source, folder)


def _is_class_label(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel" and getattr(feature, "names", None) is not None


def _class_name(feature: Any, number: int | None) -> str | None:
    return None if number is None or number < 0 else str(feature.names[number])
