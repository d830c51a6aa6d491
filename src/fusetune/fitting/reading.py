"""Which texts are read token by token, or together: what the tasks ask for, as columns of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fusetune.data.schema import ColumnSpec, Schema
from fusetune.errors import ConfigError
from fusetune.tasks.base import Reading, TargetTask


def read_for_tasks(schema: Schema, tasks: Mapping[str, TargetTask]) -> Schema:
    """Return the schema with the texts read as the tasks need it, and tell the tasks which column they answer.

    Several texts that are read together become a column of their own, and are inputs no longer.

    Args:
        schema: as detected; it stays as it is.
        tasks: by target; `reads` of those that answer token by token is set.

    Raises:
        ConfigError: a task finds no such columns, or two tasks need one column read in different ways.
    """
    for target, task in tasks.items():
        if (reading := task.reading(schema)) is None:
            continue
        schema = _with(schema, reading, target)
        if reading.by_token:
            task.reads = reading.name
    return schema


def _with(schema: Schema, reading: Reading, target: str) -> Schema:
    specs, name = dict(schema.columns), reading.name
    known = specs.get(name)
    options = {"read": reading.read}
    joined = len(reading.columns) > 1 or bool(reading.choices)
    if known is not None and known.options.get("read", "vector") not in ("vector", reading.read):
        raise ConfigError(
            f"two targets need the text {name!r} read in different ways",
            came=f"{known.options['read']} and, for {target!r}, {reading.read}",
            do="predict them with a model each, or give the text as two columns",
        )
    if joined and known is None:
        join: list[str | list[str]] = [*reading.columns, *([list(reading.choices)] if reading.choices else [])]
        specs[name] = ColumnSpec(name, "text", "input", f"read together for {target}", {**options, "join": join})
    elif known is not None:
        specs[name] = replace(known, kind="text", role="input", options={**known.options, **options})
    used = (*(reading.columns if joined else ()), *reading.choices, *reading.also)
    for column in used:
        if column in specs and specs[column].role in ("input", "id", "ignore"):
            specs[column] = replace(specs[column], role="ignore", reason=f"used in {name}")
    return replace(schema, columns=specs)
