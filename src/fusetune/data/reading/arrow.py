"""Conversion of cells to Arrow columns: plain types are preserved, mixed types are stored as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusetune.data.quarantine import VALUE_CHARS, Rejected
from fusetune.errors import TableError, shown
from fusetune.modalities.media.image_files import image_to_png

MARK = {b"fusetune": b"json"}
"""Field metadata of a column whose strings are JSON, because its cells differ in type or are lists or objects."""

_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_FRACTION = (r"(:\d\d)(?:\.0+|(\.\d*[1-9])0*)(Z|[+-][\d:]+)?$", r"\1\2\3")
"""Pattern and replacement that strip trailing zeros of fractional seconds."""
_NOT_UTF8 = re.compile(r"UTF8 sequence at string index (\d+)")
_PLAIN = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "bytes": pa.binary()}


def arrow_type(value: Any) -> str:
    """Return the storage type of a Python cell: a key of `_PLAIN`, "null", or "json" for everything else."""
    if value is None:
        return "null"
    name = type(value).__name__
    if name == "int":
        return "int" if -(2**63) <= value < 2**63 else "json"
    return name if name in _PLAIN else "json"


def field_for(name: str, types: set[str]) -> pa.Field:
    """Return the field of a column whose cells have these storage types."""
    kinds = types - {"null"}
    if not kinds:
        return pa.field(name, pa.null())
    if len(kinds) == 1 and "json" not in kinds:
        return pa.field(name, _PLAIN[kinds.pop()])
    return pa.field(name, pa.string(), metadata=MARK)


def is_json(field: pa.Field) -> bool:
    """Return whether the column's strings are JSON."""
    return bool(field.metadata and field.metadata.get(b"fusetune") == b"json")


def is_text(field: pa.Field) -> bool:
    """Return whether the column's cells are strings, or JSON, which may hold strings."""
    return bool(pa.types.is_string(field.type) or pa.types.is_large_string(field.type))


def encode_column(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """Return Python cells as an Arrow array of the field's type."""
    if is_json(field):
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.array(values, field.type)


def from_cells(columns: Mapping[str, Sequence[Any]], source: str) -> pa.Table:
    """Return columns of Python cells as an Arrow table.

    Raises:
        TableError: a cell is of a type that no column can hold.
        UnicodeEncodeError: a text holds a lone surrogate; `lone_surrogates` finds it.
    """
    arrays, fields = [], []
    for name, values in columns.items():
        field = field_for(name, {arrow_type(value) for value in values})
        try:
            arrays.append(encode_column(values, field))
        except UnicodeEncodeError:
            raise
        except (pa.ArrowInvalid, TypeError, ValueError) as error:
            arrays.append(_structured(values, name, source, error))
            field = pa.field(name, arrays[-1].type)
        fields.append(field)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def lone_surrogates(columns: Mapping[str, Sequence[Any]]) -> list[Rejected]:
    """Return the rows with a text that cannot be encoded as UTF-8 because of a lone surrogate.

    Args:
        columns: Python cells by column, all of one length.
    """
    rejected: dict[int, Rejected] = {}
    for name, cells in columns.items():
        for row, cell in enumerate(cells):
            if isinstance(cell, str | list | tuple | dict) and _has_half(cell):
                why = "the text holds half a character (a lone surrogate), as cutting between two UTF-16 units leaves"
                rejected.setdefault(row, Rejected(row, name, ascii(cell)[:VALUE_CHARS], why))
    return [rejected[row] for row in sorted(rejected)]


def _has_half(cell: Any) -> bool:
    if isinstance(cell, str):
        return any("\ud800" <= character <= "\udfff" for character in cell)
    if isinstance(cell, dict):
        return any(_has_half(part) for pair in cell.items() for part in pair)
    return isinstance(cell, list | tuple) and any(map(_has_half, cell))


def _structured(values: Sequence[Any], name: str, source: str, first: Exception) -> pa.Array:
    """Return an array of lists of bytes or of `{"bytes", "path"}` cells, which JSON cannot represent."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError) as error:
        odd = next((value for value in values if arrow_type(value) == "json"), values[0])
        raise TableError(
            f"the cells cannot be kept: {error or first}",
            expected="text, numbers, true/false, bytes, {'bytes', 'path'}, or lists of these",
            came=f"{type(odd).__name__}: {shown(odd)}",
            do="turn the cells into one of these (an image: its path or the bytes of its file)",
            file=source,
            column=name,
        ) from error


def normal_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which cells of a type are stored; the same type where they need no conversion.

    Dates and times become text, independent of their resolution. Durations become seconds. Decimals become text, as a
    float would round them.

    Raises:
        TableError: no column can hold them.
    """
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return normal_type(kind.storage_type)
    if types.is_dictionary(kind):
        return normal_type(kind.value_type)
    if types.is_duration(kind):
        return pa.float64()
    if types.is_temporal(kind) or types.is_decimal(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_struct(kind) and len({field.name for field in kind}) == len(kind):
        return pa.struct([pa.field(field.name, normal_type(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(normal_type(kind.key_type), normal_type(kind.item_type))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = normal_type(kind.value_type)
        return kind if inner == kind.value_type else pa.list_(inner)
    if types.is_nested(kind) or types.is_run_end_encoded(kind):
        raise TableError(
            f"cells of the Arrow type {kind} are not read",
            expected="text, numbers, true/false, dates, bytes, lists, or structs with each name once",
            do="change the column's type, or leave it out",
        )
    return kind


def normal_field(field: pa.Field) -> pa.Field:
    """Return the field with its type normalised by `normal_type`.

    Raises:
        TableError: no column can hold such cells.
    """
    try:
        return pa.field(field.name, normal_type(field.type), metadata=MARK if is_json(field) else None)
    except TableError as error:
        raise TableError(error.what, expected=error.expected, do=error.do, column=field.name) from None


def normal_array(array: pa.Array, field: pa.Field) -> pa.Array:
    """Convert an array to a field's normalised type, see `normal_type`; categoricals become their values.

    Raises:
        TableError: a cell cannot be converted, such as a date after the year 9999.
    """
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == field.type:
        return array
    if pa.types.is_duration(array.type):
        return pc.divide(array.cast(pa.int64()).cast(pa.float64(), safe=False), _UNITS[array.type.unit])
    try:
        cells = pc.cast(array, field.type)
        if pa.types.is_timestamp(array.type) or pa.types.is_time(array.type):
            return pc.replace_substring_regex(cells, *_FRACTION)
        return cells
    except pa.ArrowException:
        pass
    try:
        return pa.array([_in_type(cell, field.type) for cell in array.to_pylist()], field.type)
    except (pa.ArrowException, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise TableError(
            f"cells of the type {array.type} cannot be read: {str(error) or type(error).__name__}",
            do="put the cells right, or write the column as text",
            column=field.name,
        ) from error


def time_text(value: Any) -> str:
    """Return a date, time or datetime as text, independent of its resolution: "2020-03-14 08:30:00.5"."""
    text = value.isoformat(sep=" ") if isinstance(value, datetime) else value.isoformat()
    return re.sub(_FRACTION[0], _FRACTION[1], text)


def _in_type(cell: Any, kind: pa.DataType) -> Any:
    """Convert a Python cell to an Arrow type, recursively."""
    if cell is None:
        return None
    if isinstance(cell, timedelta):
        return cell.total_seconds()
    if pa.types.is_string(kind):
        return time_text(cell) if isinstance(cell, date | time) else str(cell)
    if pa.types.is_struct(kind):
        return {field.name: _in_type(cell[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        return [(_in_type(key, kind.key_type), _in_type(item, kind.item_type)) for key, item in cell]
    if isinstance(cell, list):
        return [_in_type(part, kind.value_type) for part in cell]
    return cell


def validate_data(data: pa.RecordBatch | pa.Table, first: int = 0) -> None:
    """Refuse text that is not UTF-8 and offsets beyond the buffers, which Arrow does not check and may crash on.

    Args:
        data: as read from a file.
        first: the id of its first row.

    Raises:
        TableError: the data is invalid; the error names the column, and the row for text.
    """
    for name, column in zip(data.schema.names, data.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            text = _NOT_UTF8.search(str(error))
            raise TableError(
                "the text is not UTF-8" if text else f"the column is broken: {str(error).splitlines()[0]}",
                do="write the table again; text in another encoding must be decoded before it is written",
                column=name,
                row=None if text is None or isinstance(data, pa.Table) else first + int(text[1]),
            ) from error


def normal_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema with `normal_field` applied to every field, without the table's metadata."""
    return pa.schema([normal_field(field) for field in schema])


def normal_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterable[pa.RecordBatch]:
    """Validate the batches and yield them converted to `schema`, which `normal_schema` returned."""
    first = 0
    for batch in batches:
        validate_data(batch, first)
        columns = [normal_array(batch.column(index), field) for index, field in enumerate(schema)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
        first += len(batch)


def python_cell(value: Any) -> Any:
    """Return a value with numpy scalars as Python values, times as text and durations in seconds."""
    value = value.item() if isinstance(value, np.generic) else value
    if (picture := image_to_png(value)) is not None:
        return picture
    if isinstance(value, timedelta):
        return value.total_seconds()
    return time_text(value) if isinstance(value, date | time) else value
