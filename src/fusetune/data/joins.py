"""Cells that are lists of other columns' cells, as texts that are read together are, and prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import pyarrow as pa

from fusetune.data.distinct import is_missing
from fusetune.data.reading.arrow import MARK

ROWS = 4096
"""Rows whose cells are joined together."""
Parts = Sequence[str | Sequence[str] | Mapping[str, Sequence[str]]]
"""Names of columns. A list of names among them stands for one entry, the list of these columns' cells, None for missing
ones; a list of one name for that column's own list; `{"present": [names]}` for a list of which of these have a cell."""
PRESENT = "present"
GetCells = Callable[[str, range], list[Any]]
"""Returns a column's cells in some rows."""


def flat_names(parts: Parts) -> Iterator[str]:
    """Yield the names of the columns that are joined."""
    for part in parts:
        yield from [part] if isinstance(part, str) else part[PRESENT] if isinstance(part, Mapping) else part


def joined_column(name: str, cells: GetCells, rows: int, parts: Parts) -> tuple[pa.Field, pa.ChunkedArray]:
    """Return a table's joined cells as a column; `rows` is the number of its rows."""
    arrays = [
        pa.array(joined_cells(cells, parts, range(start, min(start + ROWS, rows))), pa.string())
        for start in range(0, rows, ROWS)
    ]
    return pa.field(name, pa.string(), metadata=MARK), pa.chunked_array(arrays, pa.string())


def joined_cells(get_cells: GetCells, parts: Parts, rows: range) -> list[str | None]:
    """Return some rows' joined cells as JSON, None for a row that lacks all of the columns."""
    cells = {name: get_cells(name, rows) for name in flat_names(parts)}
    joined: list[str | None] = []
    for place in range(len(rows)):
        own = {name: values[place] for name, values in cells.items()}
        if all(is_missing(cell) for cell in own.values()):
            joined.append(None)
            continue
        entries = [_entry(part, own) for part in parts]
        joined.append(json.dumps(entries, ensure_ascii=False, default=str))
    return joined


def _entry(part: str | Sequence[str] | Mapping[str, Sequence[str]], cells: Mapping[str, Any]) -> Any:
    """Return what a joined cell has of one part."""
    if isinstance(part, str):
        return cells[part]
    if isinstance(part, Mapping):
        return [not is_missing(cells[name]) for name in part[PRESENT]]
    return _listed(part, cells)


def _listed(names: Sequence[str], cells: Mapping[str, Any]) -> list[Any]:
    """Return the cells of several columns as one list, None for missing ones, or the list that one column holds."""
    if len(names) > 1:
        return [None if is_missing(cells[name]) else cells[name] for name in names]
    return listed(cells[names[0]])


def listed(cell: Any) -> list[Any]:
    """Return a cell as a list: its own, that of its JSON, the texts of {"text": [...], "label": ["A", ...]}, or itself.

    Labels must name the places in order, A, B, ... or 0, 1, ... or 1, 2, ...; else the cell is the only entry.
    """
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return [cell]
    if (
        isinstance(cell, dict)
        and isinstance(cell.get("text"), list)
        and _in_order(cell.get("label"), len(cell["text"]))
    ):
        cell = cell["text"]
    if isinstance(cell, list | tuple):
        return [None if is_missing(part) else part for part in cell]
    return [] if is_missing(cell) else [cell]


def _in_order(labels: Any, num: int) -> bool:
    """Return whether labels name `num` places in order; None names none, and is so."""
    if labels is None:
        return True
    orders = (ascii_uppercase[:num], range(num), range(1, num + 1))
    return isinstance(labels, list) and any([str(label) for label in labels] == list(map(str, o)) for o in orders)
