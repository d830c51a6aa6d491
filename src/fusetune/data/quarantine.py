"""Rejected rows: record them with the reason, count them, and refuse to go on where there are too many."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.errors import NEAREST, BadCell, StorageError, TooManyRejected, reason, shown

LIMIT = 0.05
MAX_CELL = 60
VALUE_CHARS = 1000


@dataclass(frozen=True)
class Rejected:
    """One row that is not used.

    Attributes:
        row: the row's id: 0 is the first row of data.
        column: the column of the bad cell, None where the row itself cannot be read.
        value: the cell (or the row's text) as in the source.
        why: a readable explanation.
        file: the table that it is in, where there are several.
        do: what the user can do about it.
    """

    row: int
    column: str | None
    value: Any
    why: str
    file: str | None = None
    do: str | None = None

    @classmethod
    def from_error(cls, error: BadCell) -> Rejected:
        """Return the record of a `BadCell`."""
        assert error.row is not None
        return cls(error.row, error.column, error.value, error.why, do=error.do)

    @property
    def cell(self) -> str:
        """The cell for a message, with the known name closest to it if there is one."""
        hint = f" ({self.do})" if self.do and self.do.startswith(NEAREST) else ""
        return shown(self.value, MAX_CELL) + hint

    @property
    def note(self) -> str:
        """The column and what is wrong, for the error column of predictions."""
        return f"column {self.column!r}: {self.why}" if self.column else self.why

    def record(self) -> dict[str, Any]:
        """Return the row as JSON: bytes by their count, text of more than `VALUE_CHARS` characters truncated."""
        file = {} if self.file is None else {"file": self.file}
        return file | {"row": self.row, "column": self.column, "value": _plain(self.value), "why": self.why}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, str):
        value = value.encode("utf-8", "backslashreplace").decode("utf-8")
        return value if len(value) <= VALUE_CHARS else f"{value[:VALUE_CHARS]}… ({len(value)} characters)"
    return shown(value, VALUE_CHARS)


@dataclass(frozen=True)
class RejectedGroup:
    """Rejected rows that share a column and a reason.

    Attributes:
        column: the column, None for rows that cannot be read.
        why: the reason; numbers and quoted names that differ between the rows appear as `…`.
        count: how many rows.
        rows: the first few row ids.
        cells: the first few distinct cells, for a message; none for rows that cannot be read.
    """

    column: str | None
    why: str
    count: int
    rows: tuple[int, ...]
    cells: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The column, the reason and some of the cells."""
        column = f"column {self.column!r}: " if self.column is not None else ""
        return f"{column}{self.why}" + (f"; came {', '.join(self.cells)}" if self.cells else "")


def group_rejected(rejected: Iterable[Rejected], *, num_rows: int = 5, num_cells: int = 3) -> list[RejectedGroup]:
    """Group rejected rows by column and reason, most frequent first.

    Args:
        rejected: in any order; a row with several bad cells is in several groups.
        num_rows: how many row ids a group names.
        num_cells: how many cells a group names.
    """
    groups: dict[tuple[str | None, str], list[Rejected]] = {}
    for item in rejected:
        alike = re.sub(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*", "…", item.why)
        groups.setdefault((item.column, alike), []).append(item)
    result = []
    for (column, alike), items in groups.items():
        why = items[0].why if all(item.why == items[0].why for item in items) else alike
        rows = sorted({item.row for item in items})
        cells = list(dict.fromkeys(item.cell for item in items if column is not None and item.value is not None))
        more = ("…",) if len(cells) > num_cells else ()
        result.append(RejectedGroup(column, why, len(rows), tuple(rows[:num_rows]), (*cells[:num_cells], *more)))
    return sorted(result, key=lambda group: (-group.count, group.column or "", group.why))


def write_rejected(rejected: Iterable[Rejected], path: Path) -> None:
    """Write one JSON object a line (file, row, column, value, why), sorted; the file is replaced atomically.

    Raises:
        StorageError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    ordered = sorted(rejected, key=lambda item: (item.file or "", item.row, item.column or ""))
    try:
        with partial.open("w", encoding="utf-8") as handle:
            for item in ordered:
                handle.write(json.dumps(item.record(), ensure_ascii=False) + "\n")
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({reason(error)})") from error


def check_rate(rejected: Sequence[Rejected], rows_in: int, *, limit: float = LIMIT, source: str | None = None) -> None:
    """Check the share of rejected rows.

    Args:
        rejected: all rejected rows; a row with several bad cells counts once.
        rows_in: number of rows in the source, used and rejected.
        limit: the greatest share that may be rejected, 0 to 1.
        source: the table's name for the message.

    Raises:
        TooManyRejected: more than `limit` of the rows are rejected; the message lists reasons and rows.
    """
    num_bad = len({item.row for item in rejected})
    if num_bad <= limit * rows_in:
        return
    groups = group_rejected(rejected)
    lines = []
    for group in groups[:5]:
        rows = ", ".join(map(str, group.rows)) + (", …" if group.count > len(group.rows) else "")
        lines.append(f"{group.text} ({group.count} row{'s' * (group.count > 1)}: {rows})")
    if len(groups) > 5:
        lines.append(f"and {len(groups) - 5} more reasons")
    raise TooManyRejected(
        f"{num_bad} of {rows_in} rows cannot be used",
        expected=f"at most {limit:.0%} rejected",
        came="; ".join(lines),
        do="put these rows right, or leave a column out that is bad as a whole; rows are counted from 0",
        file=source,
    )
