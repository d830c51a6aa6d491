"""Infer the task from a target column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusetune.data.table import Table, is_missing
from fusetune.errors import TableError, shown
from fusetune.registry import TASKS
from fusetune.tasks.abilities import DetectedInTable
from fusetune.tasks.base import TargetTask

EXPECTED = {
    "understand": "labels that repeat, lists of labels, numbers, or texts to be written",
    "match": "numbers that say how alike both sides are, or two values, related and not",
}
"""By family, the cells of a target."""

NAMED = {"understand": "multiclass", "match": "similarity"}
"""By family, a task to name as an example."""

MIN_CONFIDENCE = 0.15
"""Lowest confidence at which a task is chosen."""


def registered_target_tasks(*families: str) -> dict[str, type[TargetTask]]:
    """Return the registered tasks that predict a target column, by name; those of some families, or all."""
    tasks = {name: TASKS.get(name) for name in TASKS}
    targets = {name: task for name, task in tasks.items() if issubclass(task, TargetTask)}
    return {name: task for name, task in targets.items() if not families or task.family in families}


def infer_task(
    values: Sequence[Any],
    column: str | None = None,
    table: Table | None = None,
    *,
    families: Sequence[str] = ("understand", "generate"),
) -> tuple[str, str]:
    """Return the registered task with the highest confidence for the target's cells, and the reason.

    Args:
        values: the target's cells, or a sample of them; missing ones are skipped.
        column: the target's name.
        table: with the target and the other columns, for tasks that these tell; None considers the target alone.
        families: of the tasks to choose from: "match" where the target is of pairs, with a query and a document.

    Returns:
        The task's name, and the reason as text.

    Raises:
        TableError: all cells are missing, or no task fits.
    """
    cells = [value for value in values if not is_missing(value)]
    if not cells:
        raise TableError("the target column is empty", do="name another target column", column=column)
    tasks = registered_target_tasks(*families)
    detections = {name: task.detect(cells) for name, task in tasks.items()}
    if table is not None and column is not None:
        beside = {name: task for name, task in tasks.items() if issubclass(task, DetectedInTable)}
        detections |= {name: task.detect_in(table, column) for name, task in beside.items()}
    name = max(detections, key=lambda name: detections[name].confidence)
    if detections[name].confidence < MIN_CONFIDENCE:
        raise TableError(
            "no task fits the target column",
            expected=EXPECTED[families[0]],
            came=", ".join(shown(cell, 40) for cell in cells[:3])
            + " ("
            + "; ".join(f"{task}: {detection.reason}" for task, detection in detections.items())
            + ")",
            do=f"name the task, as in tasks.{column or 'TARGET'}={NAMED[families[0]]}, or another target column",
            column=column,
        )
    return name, detections[name].reason
