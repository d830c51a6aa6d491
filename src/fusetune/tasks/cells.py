"""Target cells as labels and numbers, and the order of labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.config.spelling import spelled
from fusetune.data.table import is_missing
from fusetune.errors import BadCell, ConfigError, TableError, shown, unmatched
from fusetune.modalities.number import NumberModality
from fusetune.modalities.values import canonical

_WHOLE = re.compile(r"[+-]?(0|[1-9]\d*)")
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d{,14})(\.\d+)?")
_TRUTHS = {"true": True, "false": False}


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


def named_labels(settings: Mapping[Any, float], labels: Iterable[str], *, where: str) -> dict[str, float]:
    """Return a setting's values per label, by the labels of the table; see `named_label`.

    Raises:
        ConfigError: the setting, called `where`, names labels that are not among these.
    """
    labels = list(labels)
    named = {named_label(setting, labels): value for setting, value in settings.items()}
    if lost := [label for label in named if label not in labels]:
        what = "a label" if len(lost) == 1 else "labels"
        raise ConfigError(
            f"{where} names {what} that no train row has: {unmatched(lost, labels)}", expected=few(labels)
        )
    return named


def few(labels: Sequence[str], limit: int = 20) -> str:
    """Return labels for a message, not more than `limit` of them."""
    return ", ".join(shown(label, 40) for label in labels[:limit]) + (", …" if len(labels) > limit else "")


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Sort distinct labels: by value if all are whole numbers, else by character."""
    distinct = set(labels)
    if all(is_whole(label) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def label_values(labels: Sequence[str]) -> np.ndarray:
    """Return distinct labels as a function of the user's compares them, (labels,): numbers or booleans where all are.

    Example:
        >>> [label_values(labels).tolist() for labels in (["0", "1"], ["False", "True"], ["01", "2"])]
        [[0, 1], [False, True], ['01', '2']]
    """
    if all(_NUMBER.fullmatch(label) for label in labels):
        return np.asarray([float(label) for label in labels] if "." in "".join(labels) else [int(x) for x in labels])
    truths = [_TRUTHS.get(label.casefold()) for label in labels]
    return np.asarray(truths) if None not in truths else np.asarray(labels)


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


def read_number(value: Any, *, row: int, column: str) -> float:
    """Return a cell's number, read as in a number column.

    Raises:
        BadCell: the cell is not a number.
    """
    return NumberModality(column).decode(value, row=row, base_dir=Path())


def number_of(value: Any) -> float | None:
    """Return a cell's number, or None if it is not a number."""
    try:
        return read_number(value, row=0, column="")
    except BadCell:
        return None
