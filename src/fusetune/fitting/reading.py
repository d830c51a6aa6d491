"""Which texts are read token by token, or together: what the tasks ask for, as columns of the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fusetune.config.text import TextConfig
from fusetune.data.detect.pairs import is_pair
from fusetune.data.schema import ColumnSpec, Schema
from fusetune.errors import ConfigError, nearest
from fusetune.registry import MODALITIES
from fusetune.tasks.base import Reading, TargetTask
from fusetune.tasks.pairs import PairTask


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


def join_columns(schema: Schema, joins: Sequence[Sequence[str]], cut: str) -> Schema:
    """Return the schema with some text columns read together, as the section `text` says.

    Args:
        schema: as detected; it stays as it is.
        joins: the names of columns that are read together.
        cut: see `TextConfig`.

    Raises:
        ConfigError: a name is no text column, or a join has fewer than two.
    """
    texts = [name for name, spec in schema.columns.items() if spec.role == "input" and spec.kind == "text"]
    for columns in joins:
        for name in columns:
            if name not in texts:
                came = f", but {schema.columns[name].kind}" if name in schema.columns else ""
                raise ConfigError(
                    f"text.join names {name!r}, which is no text column that is read{came}",
                    expected=", ".join(texts) or "text columns",
                    do=nearest(name, texts) or f"say so with columns.{name}=text, or leave it out",
                )
        if len(set(columns)) < 2:
            raise ConfigError("text.join needs two columns or more", came=", ".join(columns), do="[[first, second]]")
    known = {name for columns in joins for name in columns}
    if cut != "longest" and cut not in known:
        raise ConfigError(
            f"text.cut names {cut!r}, which is not joined",
            expected=", ".join(["longest", *known]),
            do=nearest(cut, known),
        )
    for columns in joins:
        options = {"cut": cut} if cut in columns else {}
        schema = _with(schema, Reading(tuple(columns), "vector", by_token=False), "text.join", options)
    return schema


def text_pair(schema: Schema, tasks: Mapping[str, TargetTask], text: TextConfig) -> tuple[str, str] | None:
    """Return the two text columns that may be read apart or together, as `text.join` says; None without such.

    They must be the only texts that are read, by one backbone, as one vector each. With `text.join` at its default
    their names must say that they are a pair, and no picture or sound is beside them.

    Args:
        schema: with the texts read as the tasks need it.
        tasks: by target; none without a target.
        text: the section `text`.

    Raises:
        ConfigError: `text.join` is `auto` and there are no such columns, or `text.cut` names another column.
    """
    if isinstance(text.join, list) or any(isinstance(task, PairTask) for task in tasks.values()):
        return None
    inputs = {name: spec for name, spec in schema.columns.items() if spec.role == "input"}
    texts = [name for name, spec in inputs.items() if spec.kind == "text"]
    pair = (
        (texts[0], texts[1]) if len(texts) == 2 and tasks and not any(inputs[name].options for name in texts) else None
    )
    if text.join == "auto" and pair is None:
        raise ConfigError(
            "text.join=auto finds no pair of texts",
            expected="exactly two text columns, read by one backbone and as a whole, and a target",
            came=f"the text columns {', '.join(texts)}" if texts else "no text column",
            do="name the columns, as text.join=[[first, second]], or leave it out",
        )
    heavy = any(MODALITIES.get(spec.kind).needs_backbone for spec in inputs.values() if spec.kind != "text")
    if pair is None or (text.join is None and (heavy or not is_pair(*pair))):
        return None
    join_columns(schema, [list(pair)], text.cut)
    return pair


def _with(schema: Schema, reading: Reading, target: str, more: Mapping[str, str] | None = None) -> Schema:
    specs, name = dict(schema.columns), reading.name
    known = specs.get(name)
    options = {"read": reading.read, **(more or {})}
    joined = len(reading.parts) > 1 or bool(reading.choices)
    if known is not None and known.options.get("read", "vector") not in ("vector", reading.read):
        raise ConfigError(
            f"two targets need the text {name!r} read in different ways",
            came=f"{known.options['read']} and, for {target!r}, {reading.read}",
            do="predict them with a model each, or give the text as two columns",
        )
    if joined and known is None:
        join: list[str | list[str]] = [*reading.columns, *([list(reading.choices)] if reading.choices else [])]
        join += [list(columns) if len(columns) > 1 else columns[0] for columns in reading.entities]
        why = f"read together for {target}" + (f": {reading.reason}" if reading.reason else "")
        specs[name] = ColumnSpec(name, "text", "input", why, {**options, "join": join})
    elif known is not None:
        specs[name] = replace(known, kind="text", role="input", options={**known.options, **options})
    used = dict.fromkeys(reading.parts if joined else (), f"used in {name}")
    used |= dict.fromkeys(reading.also, f"read for {target}, not an input")
    for column, why in used.items():
        if column in specs and specs[column].role in ("input", "id", "ignore"):
            specs[column] = replace(specs[column], role="ignore", reason=why)
    return replace(schema, columns=specs)
