"""Keys by which the rows of one table name those of another: how cells are read as keys, and which column has them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fusetune.data.detect.columns import evenly_spaced
from fusetune.data.distinct import is_missing
from fusetune.data.table import Table
from fusetune.errors import TableError, nearest

SEPARATORS = ("|", ";", ",")
"""Characters that separate several keys or grades in the text of a cell."""
SAMPLE = 2000
"""Cells by which a column is tried as the key."""
MOST = 0.5
"""The share of cells that match, and of the keys that are distinct, above which a column can be the key."""


@dataclass(frozen=True)
class Key:
    """The columns by which rows of a query table name items.

    Attributes:
        query: the column of the query table.
        item: the column of the catalogue.
        why: the reason, if the column was detected; else "".
    """

    query: str
    item: str
    why: str = ""


def key_of(cell: Any) -> str | None:
    """Return a cell as a key: 12, 12.0, "12" and " 12 " are equal; None if the cell is missing."""
    if is_missing(cell):
        return None
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return json.dumps(cell, sort_keys=True, default=str) if isinstance(cell, dict | list) else str(cell)


def keys_of(cell: Any, known: Collection[str]) -> list[str]:
    """Return the keys that a cell names, each once: a list's, a text's by `|`, `;` or `,`, or the cell as one key.

    Args:
        cell: of the query table.
        known: the catalogue's keys; a text that is one of them is not split.
    """
    text = cell.strip() if isinstance(cell, str) else None
    if text is not None and text not in known:
        cell = _parts(text, known)
    parts = cell if isinstance(cell, list | tuple) else [cell]
    return list(dict.fromkeys(key for part in parts if (key := key_of(part)) is not None))


def _parts(text: str, known: Collection[str]) -> Any:
    """Return the keys that are written in a text, or the text if it is no list of keys."""
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    for separator in SEPARATORS:
        parts = [part.strip() for part in text.split(separator)]
        if len(parts) > 1 and any(part in known for part in parts):
            return parts
    return text


def grades_of(cell: Any, num: int) -> list[float]:
    """Return the grade of each of the `num` keys of a row: a number for all, or as many as there are keys.

    Raises:
        ValueError: the cell is missing or holds something else; the message says why.
    """
    if is_missing(cell):
        raise ValueError("the relevance is missing")
    parts = cell
    if isinstance(cell, str):
        separator = next((sign for sign in SEPARATORS if sign in cell), None)
        parts = json.loads(cell) if cell.strip().startswith("[") else cell.split(separator) if separator else [cell]
    parts = list(parts) if isinstance(parts, list | tuple) else [parts]
    if len(parts) not in (1, num):
        raise ValueError(f"there are {len(parts)} grades for {num} keys")
    try:
        grades = [float(part) for part in parts]
    except (TypeError, ValueError):
        raise ValueError("the relevance is no number") from None
    if not all(math.isfinite(grade) and grade >= 0 for grade in grades):
        raise ValueError("the relevance is no number of 0 or more")
    return grades if len(grades) == num else grades * num


def key_columns(key: str | Mapping[str, str]) -> tuple[str, str]:
    """Return the columns of the query table and of the catalogue that `catalogue.key` names."""
    query, item = (key, key) if isinstance(key, str) else next(iter(key.items()))
    return query, item


def find_key(asked: str | Mapping[str, str] | None, queries: Table, items: Table) -> Key:
    """Return the columns of the key, detected if none is named.

    A column of both tables is the key if most of the query table's cells name rows of the catalogue by it and most of
    its cells there are distinct.

    Args:
        asked: `catalogue.key`.
        queries, items: the tables.

    Raises:
        TableError: a table lacks the named column, or there is not exactly one that can be the key.
    """
    if asked is not None:
        query, item = key_columns(asked)
        for table, name in ((queries, query), (items, item)):
            if name not in table:
                raise TableError(
                    f"there is no column {name!r}, the key by which queries name documents",
                    expected=f"one of {', '.join(map(repr, table.column_names))}",
                    do=nearest(name, table.column_names) or "name another: catalogue.key=COLUMN",
                    file=table.source,
                )
        return Key(query, item)
    tried = {name: _matching(name, queries, items) for name in queries.column_names if name in items}
    fitting = {name: share for name, (share, distinct) in tried.items() if share > MOST and distinct > MOST}
    if len(fitting) == 1:
        name, share = next(iter(fitting.items()))
        amount = "all" if share == 1 else f"{share:.1%}"
        why = f"{amount} of its cells in {queries.source} are cells of it in {items.source}"
        others = [f"{other} {tried[other][0]:.0%}" for other in tried if other != name]
        return Key(name, name, why + (f" (of other columns of both: {', '.join(others)})" if others else ""))
    came = [
        f"{name!r} ({share:.0%} of its cells match, {distinct:.0%} of the catalogue's are distinct)"
        for name, (share, distinct) in tried.items()
    ]
    raise TableError(
        f"it is not clear by which column {queries.source} names rows of {items.source}",
        expected="one column of both tables whose values match",
        came="; ".join(came) or f"no column of both: {', '.join(items.column_names)} in {items.source}",
        do="name it: catalogue.key=COLUMN, or catalogue.key.QUERY_COLUMN=ITEM_COLUMN if the names differ",
    )


def _matching(name: str, queries: Table, items: Table) -> tuple[float, float]:
    """Return the share of the query table's cells that name items by a column, and of its distinct cells there."""
    listed = pa.types.is_list(queries.arrow.schema.field(name).type)
    if not (items.is_scalar(name) and (queries.is_scalar(name) or listed)):
        return 0.0, 0.0
    cells = [key for cell in items.cells(name) if (key := key_of(cell)) is not None]
    known = set(cells)
    sample = queries.cells(name, evenly_spaced(len(queries), SAMPLE))
    named = [keys for cell in sample if (keys := keys_of(cell, known))]
    matching = sum(any(key in known for key in keys) for keys in named)
    return matching / max(len(named), 1), len(known) / max(len(cells), 1)
