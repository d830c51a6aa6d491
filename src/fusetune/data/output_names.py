"""The error column of predictions, and names of columns that do not collide; without torch."""

from __future__ import annotations

from collections.abc import Container, Sequence

from fusetune.data.quarantine import Rejected

ROW, ERROR = "row", "error"


def free_name(name: str, taken: Container[str]) -> str:
    """Return a name with underscores appended until it is not taken."""
    while name in taken:
        name += "_"
    return name


def error_notes(rows: Sequence[int], rejected: Sequence[Rejected], masked: Sequence[Rejected]) -> list[str | None]:
    """Return each row's entry in the error column, or None.

    Args:
        rows: the rows' ids; an id may occur several times.
        rejected: why rows have no prediction.
        masked: cells that were ignored.
    """
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(int(row), []).append(place)
    lost = {item.row for item in rejected}
    notes: dict[int, list[str]] = {}
    for item, suffix in [*((item, "") for item in rejected), *((item, " (predicted without it)") for item in masked)]:
        note = item.note + ("" if item.row in lost else suffix)
        for place in places[item.row]:
            noted = notes.setdefault(place, [])
            if note not in noted:  # a row that was selected twice has its notes twice
                noted.append(note)
    return ["; ".join(notes[place]) if place in notes else None for place in range(len(rows))]
