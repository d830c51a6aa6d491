"""Reader of files of JSON objects: one a line, or the elements of one array; integers stay exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusetune.data.reading.json_items import Layout, items_of
from fusetune.data.reading.records import parse_records
from fusetune.data.reading.text_files import Parsed, encoding_of
from fusetune.errors import TableError


def read_jsonl(path: Path, encoding: str | None = None) -> Parsed:
    """Read a file of one JSON object a line. Blank lines are skipped; a key that an object lacks is a missing cell.

    A line that is not an object, or has a key twice, is rejected. A column whose cells share a scalar type has the
    matching Arrow type; all other columns are stored as JSON.

    Raises:
        TableError: it is empty, holds one JSON array, has no rows, or is not in its encoding.
    """
    return read_json_objects(path, encoding_of(path, encoding), "lines")


def read_json_objects(path: Path, encoding: str, layout: Layout) -> Parsed:
    """Read a file of JSON objects, each a row.

    Args:
        path: the file.
        encoding: of its text.
        layout: "lines" or "array".

    Raises:
        TableError: as `read_jsonl`; an array that is not JSON, with the row and the character.
    """

    def records(parsed: Parsed) -> Iterator[dict[str, Any]]:
        for item in items_of(path, encoding, layout):
            if layout == "lines" and not parsed.rows_in and item.text.lstrip()[:1] == "[":
                raise TableError(
                    "the file is one JSON array",
                    expected="one JSON object a line",
                    do="call it .json, or write one object a line (pandas: to_json(..., orient='records', lines=True))",
                    file=str(path),
                )
            if item.fault is not None or not isinstance(item.value, dict):
                parsed.reject(item.text, f"{item.where}: {item.fault or 'not a JSON object'}", path)
                continue
            parsed.rows_in += 1
            yield item.value

    what = "one JSON object a line" if layout == "lines" else "a JSON array of objects"
    return parse_records(path, records, expected=what)
