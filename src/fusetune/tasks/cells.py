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
    """Whether a label is written as a whole number: "7", "-2"; not "007", which is a code."""
    return _WHOLE.fullmatch(text) is not None


def label_text(cell: Any) -> str:
    """The label a cell stands for: text exactly as it is, a whole number without its point (1.0 is "1")."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def named_label(setting: Any, labels: Iterable[str]) -> str:
    """Return the label of the table that a setting names, whatever YAML made of it; its text where there is none.

    Example:
        >>> named_label(True, ["no", "yes"]), named_label(1, ["01", "02"]), named_label("1.0", ["0", "1"])
        ('yes', '01', '1')
    """
    labels = list(labels)
    found = spelled(setting, labels)
    if found is None:
        text = label_text(setting)
        found = next((label for label in labels if canonical(label) == canonical(text)), text)
    return found


def named_labels(settings: Mapping[Any, float], labels: Iterable[str]) -> dict[str, float]:
    """Return what settings say a label, by the labels of the table; see `named_label`."""
    labels = list(labels)
    return {named_label(setting, labels): value for setting, value in settings.items()}


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Labels in order: by value where all are whole numbers, else by character."""
    distinct = set(labels)
    if all(is_whole(label) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def present_cells(values: Sequence[Any], target: str) -> list[Any]:
    """The cells that are not missing.

    Raises:
        TableError: there is none.
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
