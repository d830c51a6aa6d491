"""Tables of multiple-choice questions: columns with the names of choices, and a target that names one of them."""

from __future__ import annotations

import numpy as np

from fusetune.data.distinct import is_missing
from fusetune.data.joins import listed
from fusetune.data.table import Table
from fusetune.errors import TableError
from fusetune.modalities.base import Detection
from fusetune.tasks.choice.cells import Answered, find_form, real_choices
from fusetune.tasks.choice.columns import find_choices

SAMPLE = 500
"""Rows that are looked at."""
MIN_FIT = 0.95
"""The least share of their answers that must name one of the row's choices."""


def detect_choices(table: Table, target: str) -> Detection:
    """Rate a table: sure where columns have the names of choices, and nearly all answers name one of them.

    Args:
        table: with values of the target.
        target: the target's name.
    """
    columns = find_choices([name for name in table.column_names if name != target])
    if columns is None:
        return Detection(0.0, "no columns have the names of choices")
    rows = np.flatnonzero(~table.missing(target))
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64))]
    cells = [table.cells(name, rows) for name in columns.names]
    lists = [listed(cell) for cell in cells[0]] if len(cells) == 1 else list(map(list, zip(*cells, strict=True)))
    given = []
    for value, choices in zip(table.cells(target, rows), lists, strict=True):
        texts = tuple("" if is_missing(choice) else str(choice) for choice in choices)
        if len(real_choices(texts)) > 1 and any(map(str.isalpha, "".join(texts))):
            given.append(Answered(value, texts))
    if not given or len(given) < MIN_FIT * len(rows):
        return Detection(0.0, f"{columns.reason}, but few rows have two choices or more that are texts")
    try:
        found = find_form(given, columns.names, target=target)
    except TableError as error:
        return Detection(0.0, f"{columns.reason}, but {error.what}")
    if found.share < MIN_FIT:
        return Detection(0.0, f"{columns.reason}, but only {found.reason}")
    return Detection(0.97, f"{columns.reason}; {found.reason}")
