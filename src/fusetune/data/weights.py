"""The rows' weights in the loss and in the metrics, from a column of the table."""

from __future__ import annotations

import numpy as np

from fusetune.data.distinct import is_missing
from fusetune.data.quarantine import Rejected
from fusetune.data.storage.mapped import mapped_full
from fusetune.data.table import Table


def row_weights(table: Table, column: str) -> tuple[np.ndarray, dict[int, Rejected]]:
    """Return each row's weight, (rows,) float32, 1 for a missing cell; and the rows whose cell is no weight.

    Args:
        table: the rows.
        column: of the weights, numbers of 0 or more.

    Returns:
        The weights, and by position in the table why a row's cell is none.
    """
    weights, bad = mapped_full(len(table), 1, np.float32), dict[int, Rejected]()
    for index, cell in enumerate(table.lazy(column)):
        try:
            weight = 1.0 if is_missing(cell) else float(cell)
            valid = np.isfinite(weight) and weight >= 0
        except (TypeError, ValueError):
            valid = False
        if valid:
            weights[index] = weight
        else:
            why = "the weight is no number of 0 or more"
            bad[index] = Rejected(int(table.rows[index]), column, cell, why)
    return weights, bad
