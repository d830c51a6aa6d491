"""Reader of JSONL files, which yields Arrow record batches; integers stay exact and columns may mix types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.data.quarantine import check_rate
from fusetune.data.reading.arrow import arrow_type, encode_column, field_for
from fusetune.data.reading.text_files import BATCH_CHARS, BATCH_ROWS, Parsed, check_names, encoding_of, wrong_encoding
from fusetune.errors import TableError

MAX_COLUMNS = 20_000


def read_jsonl(path: Path, encoding: str | None = None) -> Parsed:
    """Read a file of one JSON object a line. Blank lines are skipped; a key that an object lacks is a missing cell.

    A line that is not an object, or has a key twice, is rejected. A column whose cells share a scalar type has the
    matching Arrow type; all other columns are stored as JSON.

    Raises:
        TableError: it is empty, holds one JSON array, has no rows, or is not in its encoding.
    """
    encoding = encoding_of(path, encoding)
    types: dict[str, set[str]] = {}
    scout = Parsed(pa.schema([]), iter(()))
    for record in _json_records(path, encoding, scout):
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
        raise TableError("the file is empty", expected="one JSON object a line", do="write it again", file=str(path))
    check_rate(scout.rejected, scout.rows_in, limit=0.999999, source=str(path))
    check_names(list(types), str(path))
    parsed = Parsed(pa.schema([field_for(name, kinds) for name, kinds in types.items()]), iter(()))
    parsed.batches = _json_batches(parsed, path, encoding)
    return parsed


def _json_batches(parsed: Parsed, path: Path, encoding: str) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    chars = 0

    def batch() -> pa.RecordBatch:
        columns = [encode_column([row.get(field.name) for row in rows], field) for field in parsed.schema]
        return pa.RecordBatch.from_arrays(columns, schema=parsed.schema)

    for record in _json_records(path, encoding, parsed):
        rows.append(record)
        chars += sum(len(value) for value in record.values() if isinstance(value, str | list))
        if len(rows) >= BATCH_ROWS or chars >= BATCH_CHARS:
            yield batch()
            rows, chars = [], 0
    if rows:
        yield batch()


class _DuplicateKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(f"the key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return made


def _json_records(path: Path, encoding: str, parsed: Parsed) -> Iterator[dict[str, Any]]:
    decode = json.JSONDecoder(object_pairs_hook=_object).decode
    with path.open(encoding=encoding, newline="\n") as handle:
        lines = enumerate(handle, start=1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise wrong_encoding(path, encoding) from error
            if not line.strip():
                continue
            if not parsed.rows_in and line.lstrip()[0] == "[":
                raise TableError(
                    "the file is one JSON array",
                    expected="one JSON object a line",
                    do="write one object a line (pandas: to_json(..., orient='records', lines=True))",
                    file=str(path),
                )
            try:
                record = decode(line)
                line.encode() if "\\ud" not in line.lower() else json.dumps(record, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                parsed.reject(line.rstrip("\r\n"), f"line {number}: {_json_fault(error)}", path)
                continue
            if not isinstance(record, dict):
                parsed.reject(line.rstrip("\r\n"), f"line {number}: not a JSON object", path)
                continue
            parsed.rows_in += 1
            yield record


def _json_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at character {error.colno}: {error.msg}"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair, which is no character"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)
