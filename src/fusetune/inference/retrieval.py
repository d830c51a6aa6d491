"""Vectors of rows and their columns, and the searches among them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from fusetune.data.examples import Examples
from fusetune.inference.predict import row_vectors
from fusetune.models.family import Family
from fusetune.tasks.base import Task
from fusetune.tasks.match import MatchTask, Search


def searches(
    tasks: Mapping[str, Task], examples: Examples, related: sparse.csr_array | None = None
) -> dict[str, tuple[MatchTask, Search]]:
    """Return each match task with its search among the used rows; tasks that fewer than two rows have are left out.

    The ids are row numbers in the rows' files.

    Args:
        tasks: by name.
        examples: prepared rows.
        related: (rows, rows) of the table; see `MatchTask.search`.
    """
    used = examples.used
    codes = {name: column.codes[used] for name, column in examples.columns.items()}
    ids, groups = examples.rows[used], examples.groups[used]
    if related is not None:
        related = sparse.csr_array(related[used][:, used])
    if len(examples.table.files) > 1:
        ids = ids - np.array([first for _, first in examples.table.files])[examples.table.parts()[used]]
    by_task: dict[str, tuple[MatchTask, Search]] = {}
    for name, task in tasks.items():
        if isinstance(task, MatchTask):
            search = task.search(codes, ids=ids, groups=groups, related=related)
            if search is not None:
                by_task[name] = (task, search)
    return by_task


def used_vectors(model: Family, examples: Examples) -> dict[str, np.ndarray]:
    """Return by column the used rows' vectors, (rows, dim) of unit length; zeros for a row without the column."""
    return {name: values.numpy() for name, values in row_vectors(model, examples, examples.used).items()}
