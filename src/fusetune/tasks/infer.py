"""Which task a target column asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusetune.data.table import is_missing
from fusetune.errors import TableError, shown
from fusetune.registry import TASKS

LEAST_CONFIDENCE = 0.15
"""Below this, no task fits and none is chosen."""


def infer_task(values: Sequence[Any], column: str | None = None) -> tuple[str, str]:
    """The registered task that is surest of the target's cells, and why.

    Args:
        values: a sample of the target's cells, or all; missing ones are skipped.
        column: the target's name, for errors.

    Returns:
        The task's name and the reason, for people.

    Raises:
        TableError: all are missing, or no task fits.
    """
    cells = [value for value in values if not is_missing(value)]
    if not cells:
        raise TableError("the target column is empty", do="name another target column", column=column)
    found = {name: TASKS.get(name).detect(cells) for name in TASKS}
    name = max(found, key=lambda name: found[name].confidence)
    if found[name].confidence < LEAST_CONFIDENCE:
        raise TableError(
            "no task fits the target column",
            expected="labels that repeat, lists of labels, or numbers",
            came=", ".join(shown(cell, 40) for cell in cells[:3])
            + " ("
            + "; ".join(f"{task}: {detection.reason}" for task, detection in found.items())
            + ")",
            do=f"name the task, as in tasks.{column or 'TARGET'}=multiclass, or another target column",
            column=column,
        )
    return name, found[name].reason
