"""Vectors of rows and their columns, and the searches among them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusetune.data.examples import Examples
from fusetune.inference.predict import row_vectors
from fusetune.models.family import Family
from fusetune.tasks.base import Task
from fusetune.tasks.match import MatchTask, Search


def searches(tasks: Mapping[str, Task], examples: Examples) -> dict[str, tuple[MatchTask, Search]]:
    """Return each match task with its search among the used rows; tasks that fewer than two rows have are left out.

    Args:
        tasks: by name.
        examples: prepared rows.
    """
    codes = {name: column.codes[examples.used] for name, column in examples.columns.items()}
    ids, groups = examples.rows[examples.used], examples.groups[examples.used]
    by_task = {}
    for name, task in tasks.items():
        if isinstance(task, MatchTask) and (search := task.search(codes, ids=ids, groups=groups)) is not None:
            by_task[name] = (task, search)
    return by_task


def used_vectors(model: Family, examples: Examples) -> dict[str, np.ndarray]:
    """Return by column the used rows' vectors, (rows, dim) of unit length; zeros for a row without the column."""
    return {name: values.numpy() for name, values in row_vectors(model, examples, examples.used).items()}
