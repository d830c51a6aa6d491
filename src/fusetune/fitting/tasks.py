"""The tasks of a fit's targets, as the settings name them or as the targets' cells suggest."""

from __future__ import annotations

import numpy as np

from fusetune.config.config import Config
from fusetune.data.detect.columns import evenly_spaced
from fusetune.data.distinct import Cells
from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.errors import ConfigError, TableError
from fusetune.models.build import build_task
from fusetune.tasks.abilities import Writes
from fusetune.tasks.base import TargetTask
from fusetune.tasks.infer import infer_task
from fusetune.tasks.pairs import PairTask

TASK_SAMPLE = 200_000
"""Maximum number of cells from which a target's task is inferred."""


def make_tasks(config: Config, schema: Schema, train: Table) -> dict[str, TargetTask]:
    """Build the targets' tasks, unfitted.

    Args:
        config: may name a target's task and its options.
        schema: names the targets.
        train: rows whose targets' cells suggest the tasks that are not named.

    Raises:
        TableError: no task fits a target's cells.
        ConfigError: a task is unknown, or does not take its options.
    """
    tasks: dict[str, TargetTask] = {}
    families = (PairTask.family,) if config.query else ("understand", "generate")
    for target in schema.names("target"):
        settings = config.tasks.get(target)
        name, options = (settings.name, settings.options) if settings else (None, {})
        try:
            name = name or infer_task(_sample(train, target), target, train, families=families)[0]
        except TableError as error:
            raise error.in_file(train.source) from None
        tasks[target] = task = build_task(target, name, options)
        if isinstance(task, Writes):
            task.look(_sample(train, target))
        if isinstance(task, PairTask):
            task.compare(config.query, config.document)
            if task.learned_by not in config.objectives:
                raise ConfigError(
                    "the schema file gives pairs a target that the settings do not name",
                    do=f"name it: --target {target}",
                )
    return tasks


def settled_tasks(config: Config, schema: Schema) -> dict[str, TargetTask]:
    """Return the tasks that the settings name, by target, unfitted.

    They say which rows are unlabelled. A task that is chosen by the target's cells has none but missing ones.
    """
    tasks = {}
    for target in schema.names("target"):
        settings = config.tasks.get(target)
        if settings is not None and settings.name is not None:
            tasks[target] = build_task(target, settings.name, settings.options)
            tasks[target].reading(schema)
    return tasks


def passages(config: Config, schema: Schema, train: Table) -> list[str]:
    """Return the text columns that several rows may ask about, so that equal ones should be in one split.

    Args:
        config, schema, train: see `make_tasks`.

    Raises:
        TableError, ConfigError: see `make_tasks`; or a task finds no such column.
    """
    readings = [task.reading(schema) for task in make_tasks(config, schema, train).values()]
    return list(dict.fromkeys(r.passage for r in readings if r is not None and r.passage is not None))


def _sample(table: Table, target: str) -> Cells:
    """Return the target's cells that are not missing, at most `TASK_SAMPLE` evenly spaced ones."""
    indices = np.flatnonzero(~table.missing(target))
    return table.lazy(target, indices[evenly_spaced(len(indices), TASK_SAMPLE)])
