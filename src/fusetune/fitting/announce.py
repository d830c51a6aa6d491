"""What a fit inferred, printed before it trains: tasks, columns, backbones and rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fusetune.backbones.backbone import Backbone
from fusetune.data.examples import Examples
from fusetune.data.joins import flat_names
from fusetune.data.schema import Schema
from fusetune.modalities.base import Modality
from fusetune.tasks.base import TargetTask, Task, target_tasks

MAX_NAMES = 12
"""Maximum number of columns named in a line; the others are counted."""


def announcement(
    schema: Schema,
    tasks: Mapping[str, Task],
    modalities: Mapping[str, Modality],
    examples: Mapping[str, Examples],
    codes: Iterable[str] = (),
) -> list[str]:
    """Return lines that describe the tasks, columns and rows of a fit.

    Args:
        schema: the train table's schema.
        tasks: fitted, by name.
        modalities: of the input columns.
        examples: the prepared rows of each split.
        codes: columns of integers that became categories.
    """
    targets = target_tasks(tasks)
    lines = [f"{'target' if name in targets else 'task':<9}{name}: {_task(task)}" for name, task in tasks.items()]
    kinds: dict[str, list[str]] = {}
    for name, modality in modalities.items():
        kinds.setdefault(_kind(modality), []).append(name)
    lines += [f"columns  {kind}: {_names(names)}" for kind, names in kinds.items()]
    lines += [f"codes    {name}: {schema.columns[name].reason}; columns.{name}.kind=number insists" for name in codes]
    joined = {name for column in schema.inputs for name in flat_names(schema.joins().get(column, ()))}
    unused = [name for role in ("id", "ignore") for name in schema.names(role) if name not in joined]
    if unused:
        lines.append(f"unused   {_names(unused)}")
    counts = [_count(split, rows) for split, rows in examples.items()]
    rejected = sum(len(rows.rejected) for rows in examples.values())
    return [*lines, f"rows     {', '.join(counts)}{f'; {rejected:,} rejected' if rejected else ''}"]


def _count(split: str, rows: Examples) -> str:
    without = int(np.count_nonzero(rows.unlabelled()))
    return f"{len(rows):,} {split}" + (f" ({without:,} of them without a target)" if without else "")


def _task(task: Task) -> str:
    labels = task.labels
    choice = f"; {task.choice}" if isinstance(task, TargetTask) and task.choice else ""
    return (f"{task.name} ({len(labels)} labels)" if len(labels) > 2 else task.name) + choice


def _kind(modality: Modality) -> str:
    backbone = getattr(modality, "backbone", None)
    return f"{modality.kind} read by {backbone.source}" if isinstance(backbone, Backbone) else modality.kind


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
