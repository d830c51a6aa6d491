"""Tables from records: one dictionary a row, read twice, for the columns' types and for the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.data.quarantine import check_rate
from fusetune.data.reading.arrow import arrow_type, encode_column, field_for
from fusetune.data.reading.text_files import BATCH_CHARS, BATCH_ROWS, Parsed, check_names
from fusetune.errors import TableError

MAX_COLUMNS = 20_000

Records = Callable[[Parsed], Iterator[dict[str, Any]]]
"""Yields the accepted rows of a file, and counts and rejects rows in the `Parsed` that it is given."""


def parse_records(path: Path, records: Records, *, expected: str) -> Parsed:
    """Return a table of records. A key that a record lacks is a missing cell.

    A column whose cells share a scalar type has the matching Arrow type; all other columns are stored as JSON.

    Args:
        path: the file.
        records: called twice, as only one batch of rows is kept in memory.
        expected: what the file should hold, for the error of an empty one.

    Raises:
        TableError: there is no row, or there are too many columns or invalid names.
        TooManyRejected: no row can be used.
    """
    types: dict[str, set[str]] = {}
    scout = Parsed(pa.schema([]), iter(()))
    for record in records(scout):
        for name, value in record.items():
            types.setdefault(name, set()).add(arrow_type(value))
        if len(types) > MAX_COLUMNS:
            raise TableError(
                f"the objects have more than {MAX_COLUMNS} different keys",
                expected="the same keys in every line",
                do="put values, not names, into the rows",
                file=str(path),
            )
    if not scout.rows_in:
        raise TableError("the file is empty", expected=expected, do="write it again", file=str(path))
    check_rate(scout.rejected, scout.rows_in, limit=0.999999, source=str(path))
    check_names(list(types), str(path))
    parsed = Parsed(pa.schema([field_for(name, kinds) for name, kinds in types.items()]), iter(()))
    parsed.batches = _batches(parsed, records)
    return parsed


def _batches(parsed: Parsed, records: Records) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    chars = 0

    def batch() -> pa.RecordBatch:
        columns = [encode_column([row.get(field.name) for row in rows], field) for field in parsed.schema]
        return pa.RecordBatch.from_arrays(columns, schema=parsed.schema)

    for record in records(parsed):
        rows.append(record)
        chars += sum(len(value) for value in record.values() if isinstance(value, str | list))
        if len(rows) >= BATCH_ROWS or chars >= BATCH_CHARS:
            yield batch()
            rows, chars = [], 0
    if rows:
        yield batch()
