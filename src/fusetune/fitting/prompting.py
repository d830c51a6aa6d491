"""The prompts of targets that a language model writes, as columns of the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fusetune.backbones.load_language import hears
from fusetune.backbones.tuned import is_tuned
from fusetune.config.config import Config
from fusetune.data.joins import PRESENT
from fusetune.data.schema import ColumnSpec, Schema
from fusetune.data.table import Table, is_missing
from fusetune.errors import BadCell, ConfigError, nearest
from fusetune.modalities.messages import last_turn, parse_messages
from fusetune.modalities.prompt import words_of
from fusetune.modalities.template import Template, default_template
from fusetune.tasks.abilities import Prefers, Writes
from fusetune.tasks.base import TargetTask

PROMPT = "prompt"
"""The column of prompts, and their kind."""
EXAMPLES = 500
"""Rows by which it is found whether a target's cells are chats."""
WORDS = ("text", "category", "number", "date")
"""Kinds of columns that are read as words."""
SOFT = ("image", "audio")
"""Kinds that are always read as vectors."""


def with_prompts(schema: Schema, tasks: Mapping[str, TargetTask], config: Config) -> Schema:
    """Return the schema with a column of prompts for each task that writes, and tell the tasks theirs.

    Columns of words that a prompt names are inputs no longer, nor are those that no prompt names.

    Args:
        schema: as detected; it stays as it is.
        tasks: by target.
        config: the settings.

    Raises:
        ConfigError: a template names no column, or one that is not read; or some targets are written and others not.
    """
    writing = {target: task for target, task in tasks.items() if isinstance(task, Writes)}
    if not writing:
        _check_unused(tasks, config)
        return schema
    if len(writing) < len(tasks):
        others = [target for target in tasks if target not in writing]
        raise ConfigError(
            f"{', '.join(writing)} is written by a language model, and {', '.join(others)} is not",
            expected="targets that are all written, or none",
            do=f"fit a model for each; or have {others[0]} written too: tasks.{others[0]}=generate",
        )
    specs, used = dict(schema.columns), dict[str, str]()
    for task in writing.values():
        if task.second is not None:
            specs[task.second] = _second(specs, task)
    inputs = {name: spec for name, spec in specs.items() if spec.role == "input"}
    soft, speaks = _soft(inputs, config.prompt.soft), is_speech(config)
    for target, task in writing.items():
        name = _free(PROMPT if len(writing) == 1 else f"{PROMPT}: {target}", specs)
        if task.chats:
            specs[name] = ColumnSpec(
                name, PROMPT, "input", f"{target} up to the last answer", _chat_options(task, config)
            )
            task.prompt = name
            continue
        text = task.template or config.prompt.template or default_template(inputs, target)
        if speaks:
            text = _heard(inputs, text, default=not (task.template or config.prompt.template))
        template = Template(text)
        template.check(inputs, where=f"tasks.{target}.template" if task.template else "prompt.template")
        why = "made of the columns in its template"
        specs[name] = ColumnSpec(name, PROMPT, "input", why, _options(template, soft, config))
        task.prompt = name
        used |= {column: f"read in {name}" for column in template.columns}
    for column, spec in inputs.items():
        if column not in used:
            specs[column] = replace(spec, role="ignore", reason="no prompt names it")
        elif column not in soft:
            specs[column] = replace(spec, role="ignore", reason=used[column])
    return replace(schema, columns=specs)


def _second(specs: Mapping[str, ColumnSpec], task: Writes) -> ColumnSpec:
    """Return a target's second column such that it is no part of a prompt.

    Raises:
        ConfigError: there is no such column.
    """
    assert task.second is not None
    if task.second not in specs:
        raise ConfigError(
            f"tasks.{task.target} names {task.second!r}, which is no column",
            expected=", ".join(name for name in specs if name != task.target),
            do=nearest(task.second, list(specs)) or "name the column of the second answers",
        )
    return replace(specs[task.second], role="ignore", reason=f"answers beside {task.target}")


def filled_prompt(schema: Schema, rows: Table, target: str, task: TargetTask, config: Config) -> tuple[str, str]:
    """Return the template of a target's prompt, and the prompt of the first row that has the target.

    No language model is loaded: what its chat template puts around a prompt is left out.

    Args:
        schema: as detected.
        rows: of the table.
        target: the column.
        task: that writes it; other tasks give two empty texts.
        config: with the sections `prompt` and `tasks`.

    Raises:
        ConfigError: see `with_prompts`.
    """
    if not isinstance(task, Writes):
        return "", ""
    present = np.flatnonzero(~rows.missing(target))
    task.look(rows.cells(target, present[:EXAMPLES]))
    spec = with_prompts(schema, {target: task}, config).columns[task.prompt]
    first = rows.row(int(present[0])) if len(present) else {}
    if task.chats:
        return f"{target} up to the last answer", _chat_before(first[target]) if first else ""
    template, soft = Template(spec.options["template"]), spec.options["soft"]
    cells = {name: words_of(first.get(name)) for name in template.columns}
    cells |= {name: None if is_missing(first.get(name)) else f"<{name}>" for name in soft}
    return template.text, template.fill(cells) if first else ""


def _chat_before(cell: Any) -> str:
    """Return a chat's messages before its last answer, a line each; "" if it cannot be read."""
    try:
        messages = parse_messages(cell, row=0, column="")
        return "\n".join(f"{message.role}: {message.text}" for message in last_turn(messages, row=0, column="")[0])
    except BadCell:
        return ""


def _check_unused(tasks: Mapping[str, TargetTask], config: Config) -> None:
    """Refuse settings of prompts and of writing where nothing is written.

    Raises:
        ConfigError: there are such settings.
    """
    for name, section in (("prompt", config.prompt), ("generation", config.generation)):
        if section != type(section)():
            targets = ", ".join(f"{target}, {task.name}" for target, task in tasks.items()) or "no target"
            raise ConfigError(
                f"{name} is for targets that a language model writes",
                came=targets,
                do=f"have it written: tasks.{next(iter(tasks), 'TARGET')}=generate; or leave {name} out",
            )


def _options(template: Template, soft: Sequence[str], config: Config) -> dict[str, Any]:
    """Return the options of `PromptModality`."""
    own = [column for column in template.columns if column in soft]
    join: list[Any] = [column for column in template.columns if column not in own]
    settings = config.prompt
    if settings.turns != "last":
        do = "leave it out, or name a column of chats as the target"
        raise ConfigError("prompt.turns is for targets that are chats", came=f"prompt.turns={settings.turns}", do=do)
    return {
        "template": template.text,
        "join": [*join, *([{PRESENT: own}] if own else [])],
        "soft": own,
        "soft_tokens": settings.soft_tokens,
        "system": settings.system,
        "language": settings.language,
        "chat": settings.chat,
        "max_tokens": settings.max_tokens,
        "answer_tokens": settings.max_answer_tokens,
        "projector": settings.projector,
        "noise": settings.noise,
    }


def _chat_options(task: Writes, config: Config) -> dict[str, Any]:
    """Return the options of `PromptModality` for a target whose cells are chats.

    Raises:
        ConfigError: a template is given, or no chat template is to be used.
    """
    settings = config.prompt
    if task.template or settings.template or settings.chat == "no":
        raise ConfigError(
            f"the cells of {task.target} are chats, which are their own prompts",
            came="prompt.chat=no" if settings.chat == "no" else "a template",
            do="leave it out, or give the answers as a column of their own",
        )
    if settings.turns == "all" and isinstance(task, Prefers):
        raise ConfigError(
            "pairs of answers differ in the last one alone, so no other is learned",
            came="prompt.turns=all",
            do=f"leave it out, or learn the chats by themselves: tasks.{task.target}=generate",
        )
    return {
        "messages": task.target,
        "turns": settings.turns,
        "join": [task.target],
        "system": settings.system,
        "max_tokens": settings.max_tokens,
        "answer_tokens": settings.max_answer_tokens,
        "noise": settings.noise,
    }


def is_speech(config: Config) -> bool:
    """Return whether the language model of the settings is a model of speech."""
    return config.text.name is not None and not is_tuned(config.text.name) and hears(config.text.name)


def with_hearing(config: Config) -> Config:
    """Return the settings with sounds read by the encoder of the model of speech that writes.

    Raises:
        ConfigError: the settings name another one.
    """
    if config.audio.name not in (None, config.text.name):
        raise ConfigError(
            "a model of speech hears by its own encoder",
            came=f"audio={config.audio.name}",
            do="leave audio out, or name a language model that reads text: text=FOLDER",
        )
    return config.model_copy(
        update={"audio": config.audio.model_copy(update={"name": config.text.name, "pool": "none"})}
    )


def _heard(inputs: Mapping[str, ColumnSpec], text: str, *, default: bool) -> str:
    """Return the template of a model of speech: its column of sounds, and nothing else.

    Raises:
        ConfigError: there is no such column, or several, or the template has more.
    """
    sounds = [name for name, spec in inputs.items() if spec.kind == "audio"]
    template = Template(text)
    if default and len(sounds) == 1:
        return f"{{{sounds[0]}}}"
    if len(template.columns) == 1 and template.columns[0] in sounds and text.strip() == f"{{{template.columns[0]}}}":
        return text.strip()
    raise ConfigError(
        "a model of speech reads one sound, and no other column",
        expected=f"prompt.template={{{sounds[0]}}}" if sounds else "a column of sounds",
        came=f"the columns {', '.join(inputs)}" if default else text[:80],
        do="name the column; or a language model that reads text, and sounds as vectors: text=smollm2",
    )


def _soft(inputs: Mapping[str, ColumnSpec], named: Sequence[str]) -> list[str]:
    """Return the columns that are read as vectors.

    Raises:
        ConfigError: a named one is no input, or its kind is read as words alone.
    """
    for name in named:
        if name not in inputs or inputs[name].kind == "text":
            kinds = [column for column, spec in inputs.items() if spec.kind != "text"]
            raise ConfigError(
                f"prompt.soft names {name!r}, which is "
                + ("text, and always read as words" if name in inputs else "no column that is read"),
                expected=", ".join(kinds) or "a column of numbers, categories or dates",
                do=nearest(name, kinds) or "leave it out",
            )
    return [name for name, spec in inputs.items() if spec.kind not in WORDS or name in named]


def _free(name: str, known: Mapping[str, ColumnSpec]) -> str:
    """Return a name that no column has."""
    while name in known:
        name += "_"
    return name
