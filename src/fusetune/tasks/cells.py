"""Target cells as labels, and the order of labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fusetune.config.spelling import spelled
from fusetune.data.table import is_missing
from fusetune.errors import TableError
from fusetune.modalities.values import canonical

_WHOLE = re.compile(r"[+-]?(0|[1-9]\d*)")


def is_whole(text: str) -> bool:
    """Return whether a label is a whole number, "7" or "-2", but not a code such as "007"."""
    return _WHOLE.fullmatch(text) is not None


def label_text(cell: Any) -> str:
    """Return a cell's label: text unchanged, a whole number without its decimal point (1.0 is "1")."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def named_label(setting: Any, labels: Iterable[str]) -> str:
    """Return the table's label that a setting names, whatever type YAML gave it, else the setting's text.

    Example:
        >>> named_label(True, ["no", "yes"]), named_label(1, ["01", "02"]), named_label("1.0", ["0", "1"])
        ('yes', '01', '1')
    """
    labels = list(labels)
    match = spelled(setting, labels)
    if match is None:
        text = label_text(setting)
        match = next((label for label in labels if canonical(label) == canonical(text)), text)
    return match


def named_labels(settings: Mapping[Any, float], labels: Iterable[str]) -> dict[str, float]:
    """Return a setting's values per label, by the labels of the table; see `named_label`."""
    labels = list(labels)
    return {named_label(setting, labels): value for setting, value in settings.items()}


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Sort distinct labels: by value if all are whole numbers, else by character."""
    distinct = set(labels)
    if all(is_whole(label) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def present_cells(values: Sequence[Any], target: str) -> list[Any]:
    """Return the cells that are not missing.

    Raises:
        TableError: all cells are missing.
    """
    cells = [value for value in values if not is_missing(value)]
    if not cells:
        raise TableError(
            "no train row has a value in the target column",
            came=f"{len(values)} train rows, all unlabelled",
            do="name another target column, or fill this one",
            column=target,
        )
    return cells
