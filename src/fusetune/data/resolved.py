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
    """A task's target cells; resolved, if the target refers to a text."""
    cells = table.lazy(task.target)
    return cells if task.reads is None else ResolvedCells(cells, task)


class ResolvedCells(Cells):
    """A target's cells as `Task.resolve` returns them; None for one that cannot be resolved."""

    def __init__(self, cells: Cells, task: TargetTask) -> None:
        super().__init__(cells.table, cells.column, cells.rows)
        self.task = task

    def take(self, places: Sequence[int] | np.ndarray) -> list[Any]:
        """See `Cells.take`."""
        wanted = np.asarray(places, dtype=np.int64)
        rows = wanted if self.rows is None else self.rows[wanted]
        assert self.task.reads is not None
        about = self.table.cells(self.task.reads, rows)
        return [
            None if is_missing(value) else self._resolved(value, cell, int(self.table.rows[row]))
            for value, cell, row in zip(super().take(places), about, rows, strict=True)
        ]

    def _resolved(self, value: Any, cell: Any, row: int) -> Any:
        try:
            return self.task.resolve(value, cell, row=row)
        except BadCell:
            return None

    def of(self, places: np.ndarray) -> ResolvedCells:
        """See `Cells.of`."""
        return ResolvedCells(super().of(places), self.task)
