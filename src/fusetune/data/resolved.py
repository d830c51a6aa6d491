"""Target cells that refer to a text: resolved with the cell that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusetune.data.distinct import Cells, is_missing
from fusetune.data.table import Table
from fusetune.errors import BadCell

if TYPE_CHECKING:
    from fusetune.tasks.base import TargetTask


def target_cells(table: Table, task: TargetTask) -> Cells:
    """Return a task's target cells; resolved, if the target refers to a text."""
    cells = table.lazy(task.target)
    return cells if task.reads is None and task.second is None else ResolvedCells(cells, task)


def raw_targets(table: Table, task: TargetTask, rows: np.ndarray) -> list[Any]:
    """Return a task's target cells before `resolve`, None for unlabelled rows.

    Args:
        table: with the target.
        task: its target may be in two columns; see `TargetTask.second`. Where the table lacks the second, a task that
            reads a text gets pairs with None, and others the first cell alone.
        rows: positions in the table.
    """
    cells = table.cells(task.target, rows)
    unlabelled = [not task.empty_is_value and is_missing(cell) for cell in cells]
    if task.second is not None and (task.second in table or task.reads is not None):
        more = table.cells(task.second, rows) if task.second in table else [None] * len(rows)
        unlabelled = [lacks and is_missing(cell) for lacks, cell in zip(unlabelled, more, strict=True)]
        cells = list(zip(cells, more, strict=True))
    return [None if lacks else cell for lacks, cell in zip(unlabelled, cells, strict=True)]


def unlabelled_rows(table: Table, task: TargetTask) -> np.ndarray:
    """Return which rows of a table have no value of a task's target, (rows,) bool."""
    missing = table.missing(task.target)
    if task.empty_is_value:
        missing[:] = False
    elif task.second is not None and task.second in table:
        np.logical_and(missing, table.missing(task.second), out=missing)
    return missing


class ResolvedCells(Cells):
    """A target's cells as `Task.resolve` returns them; None for one that cannot be resolved."""

    def __init__(self, cells: Cells, task: TargetTask) -> None:
        super().__init__(cells.table, cells.column, cells.rows)
        self.task = task

    def take(self, places: Sequence[int] | np.ndarray) -> list[Any]:
        """See `Cells.take`."""
        wanted = np.asarray(places, dtype=np.int64)
        rows = wanted if self.rows is None else self.rows[wanted]
        about = [None] * len(rows) if self.task.reads is None else self.table.cells(self.task.reads, rows)
        return [
            None if value is None else self._resolved(value, cell, int(self.table.rows[row]))
            for value, cell, row in zip(raw_targets(self.table, self.task, rows), about, rows, strict=True)
        ]

    def _resolved(self, value: Any, cell: Any, row: int) -> Any:
        try:
            return self.task.resolve(value, cell, row=row)
        except BadCell:
            return None

    def of(self, places: np.ndarray) -> ResolvedCells:
        """See `Cells.of`."""
        return ResolvedCells(super().of(places), self.task)
