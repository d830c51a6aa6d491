"""Cells in Arrow columns: types that survive as they came, and JSON where a column has several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fusetune.errors import TableError, shown

MARK = {b"fusetune": b"json"}
"""Field metadata of a column whose strings are JSON, because its cells differ in type or are lists or objects."""

_PLAIN = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "bytes": pa.binary()}


def arrow_type(value: Any) -> str:
    """The sort of a Python cell: a key of the plain types, "null", or "json" for everything else."""
    if value is None:
        return "null"
    name = type(value).__name__
    if name == "int":
        return "int" if -(2**63) <= value < 2**63 else "json"
    return name if name in _PLAIN else "json"


def field_for(name: str, sorts: set[str]) -> pa.Field:
    """The field of a column whose cells are of these sorts."""
    kinds = sorts - {"null"}
    if not kinds:
        return pa.field(name, pa.null())
    if len(kinds) == 1 and "json" not in kinds:
        return pa.field(name, _PLAIN[kinds.pop()])
    return pa.field(name, pa.string(), metadata=MARK)


def is_json(field: pa.Field) -> bool:
    """Whether the column's strings are JSON."""
    return bool(field.metadata and field.metadata.get(b"fusetune") == b"json")


def encode_column(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """Python cells as an Arrow array of this field's type."""
    if is_json(field):
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.array(values, field.type)


def from_cells(columns: Mapping[str, Sequence[Any]], source: str) -> pa.Table:
    """Columns of Python cells as an Arrow table.

    Raises:
        TableError: a cell is of a type that no column can hold.
    """
    arrays, fields = [], []
    for name, values in columns.items():
        field = field_for(name, {arrow_type(value) for value in values})
        try:
            arrays.append(encode_column(values, field))
        except (pa.ArrowInvalid, TypeError, ValueError) as error:
            arrays.append(_structured(values, name, source, error))
            field = pa.field(name, arrays[-1].type)
        fields.append(field)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _structured(values: Sequence[Any], name: str, source: str, first: Exception) -> pa.Array:
    """Lists of bytes or `{"bytes", "path"}` cells, which JSON cannot hold."""
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


def normal_field(field: pa.Field) -> pa.Field:
    """The field that `normal_array` makes arrays for."""
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_string_view(kind):
        kind = pa.string()
    elif pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        kind = pa.binary()
    return pa.field(field.name, kind, metadata=MARK if is_json(field) else None)


def normal_array(array: pa.Array, field: pa.Field) -> pa.Array:
    """Dates, times and decimals as text, categoricals as their values, the rest as it is.

    Dates become text because no column kind computes with them; decimals because a float would round them.
    """
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == field.type:
        return array
    try:
        return pc.cast(array, field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None if cell is None else str(cell) for cell in array.to_pylist()], field.type)


def normal_schema(schema: pa.Schema) -> pa.Schema:
    """`normal_field` of every column; the table's own metadata is dropped."""
    return pa.schema([normal_field(field) for field in schema])


def normal_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterable[pa.RecordBatch]:
    """The batches with every column as `schema` (from `normal_schema`) has it."""
    for batch in batches:
        columns = [normal_array(batch.column(place), field) for place, field in enumerate(schema)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
