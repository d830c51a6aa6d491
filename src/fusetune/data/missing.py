"""Which cells are missing."""

from __future__ import annotations

from typing import Any


def is_missing(cell: Any) -> bool:
    """Return whether a cell is None, an empty or blank string, NaN, or `{"bytes": None, "path": None}`.

    Words such as "NA", "null" and "none" are not missing.
    """
    if cell is None:
        return True
    if isinstance(cell, str):
        return not cell or cell.isspace()
    if isinstance(cell, float):
        return cell != cell
    if isinstance(cell, dict):
        return cell.keys() <= {"bytes", "path"} and all(is_missing(part) for part in cell.values())
    return False
