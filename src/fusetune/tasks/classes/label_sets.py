"""Cells that hold any number of labels."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusetune.errors import ConfigError
from fusetune.tasks.cells import is_whole, label_text

SEPARATORS = ("|", ";", ",", " ")
"""The separators that are tried, in this order, if none is given."""

MAX_LABEL_CHARS = 60
"""The longest label: if a separator gives longer parts, the cells are prose."""


def split_labels(cell: Any, separator: str | None) -> list[str]:
    """Return a cell's distinct labels, in the cell's order.

    Args:
        cell: a list, tuple or array of labels; text with a JSON or Python list in brackets; or other text, which is
            split. White space around labels is removed.
        separator: the separator of labels in text; " " is any white space. With None the text is one label.

    Raises:
        ValueError: the cell has none of these forms; the message says why.
    """
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, str):
        text = cell.strip()
        if text.startswith("[") and text.endswith("]"):
            cell = _bracketed(text)
        elif separator is None:
            cell = [text]
        else:
            cell = text.split() if separator == " " else text.split(separator)
    elif not isinstance(cell, list | tuple | set | frozenset):
        cell = [cell]
    if any(part is None or isinstance(part, list | tuple | dict | set) for part in cell):
        raise ValueError("an element of the list is not a label")
    labels = (label_text(part).strip() for part in cell)
    return list(dict.fromkeys(label for label in labels if label))


def multi_hot_width(cells: Sequence[Any]) -> int:
    """Return the length of multi-hot lists such as [1.0, 0.0, 1.0]; 0 for other cells.

    A list of labels names no label twice, so a list with a repeated 0 or 1 must be multi-hot.
    """
    lists: list[list[Any]] = []
    for cell in cells:
        try:
            parts = _listed(cell)
        except ValueError:
            return 0
        if parts is None or len(parts) != (len(lists[0]) if lists else len(parts)) or not _all_hot(parts):
            return 0
        lists.append(parts)
    repeated = any(len({float(part) for part in parts}) < len(parts) for parts in lists)
    return len(lists[0]) if lists and repeated else 0


def multi_hot_names(cells: Sequence[Any], names: list[str] | None) -> list[str] | None:
    """Return the labels' names, by position, if the cells are multi-hot lists; None for other cells.

    Args:
        cells: the train rows'.
        names: as the settings give them; None takes the positions.

    Raises:
        ConfigError: there are other names than positions.
    """
    width = multi_hot_width(cells)
    if names is not None and len(names) != width:
        raise ConfigError(
            f"names has {len(names)} labels",
            expected=f"{width}, as the lists of 0 and 1 have elements" if width else "a target of such lists",
        )
    return names if names is not None or not width else [str(index) for index in range(width)]


def hot_labels(cell: Any, names: Sequence[str]) -> list[str]:
    """Return the names of the positions where a multi-hot list has a 1.

    Raises:
        ValueError: the cell is not a list of 0 and 1 of this length.
    """
    parts = _listed(cell)
    if parts is None or len(parts) != len(names) or not _all_hot(parts):
        raise ValueError(f"it is no list of {len(names)} zeros and ones, as the train rows have")
    return [name for name, part in zip(names, parts, strict=True) if part]


def _listed(cell: Any) -> list[Any] | None:
    if isinstance(cell, str):
        text = cell.strip()
        return _bracketed(text) if text.startswith("[") and text.endswith("]") else None
    return list(cell) if isinstance(cell, list | tuple | np.ndarray) else None


def _all_hot(parts: list[Any]) -> bool:
    return all(isinstance(part, bool | int | float | np.generic) and part in (0, 1) for part in parts)


def _bracketed(text: str) -> list[Any]:
    """Parse text in brackets as a JSON or Python list."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        try:
            parsed = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError('text in brackets that is no list: labels are written as ["a", "b"]') from None
    assert isinstance(parsed, list)
    return parsed


def is_list(cell: Any) -> bool:
    """Return whether a cell is a list, or text that looks like one."""
    if isinstance(cell, str):
        return cell.strip().startswith("[") and cell.strip().endswith("]")
    return isinstance(cell, list | tuple | set | frozenset | np.ndarray)


def find_separator(cells: Sequence[str]) -> tuple[str, str] | None:
    """Return the separator of labels in text cells and the reason, or None.

    "|" must occur in 2 % of the cells, another separator in 10 %. The parts must be short, keep brackets together, and
    occur twice or more on average. For separators other than "|" the number of parts must vary between cells, unlike
    in "Paris, France", and parts must occur in different combinations, unlike in a repeated sentence. With "," the
    parts must not all be digits ("1,234"); with " " all must be whole numbers ("8 1 3").
    """
    for separator in SEPARATORS:
        split = [[part.strip() for part in cell.split(separator)] for cell in cells if not is_list(cell)]
        several = sum(len(parts) > 1 for parts in split)
        if not split or several < max(2, len(split) * (0.02 if separator == "|" else 0.1)):
            continue
        counts = Counter(part for parts in split for part in parts if part)
        codes = all(part.isdecimal() if separator == "," else is_whole(part) for part in counts)
        fits = {",": not codes, " ": codes}.get(separator, True)
        distinct = {tuple(parts) for parts in split}
        mixed = sum(map(len, distinct)) >= 1.5 * len(counts)
        varied = separator == "|" or (mixed and len({len(parts) for parts in split}) > 1)
        plausible = all(len(part) <= MAX_LABEL_CHARS and part.count("(") == part.count(")") for part in counts)
        if counts and plausible and varied and fits and counts.total() >= 2 * len(counts):
            return separator, f"{several} of {len(split)} cells hold labels separated by {separator!r}"
    return None
