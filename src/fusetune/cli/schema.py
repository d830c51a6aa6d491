"""`fusetune schema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusetune.cli import common
from fusetune.errors import ConfigError

if TYPE_CHECKING:
    from fusetune.config.config import Config
    from fusetune.data.schema import Schema
    from fusetune.data.table import Table
    from fusetune.tasks.base import TargetTask

EXAMPLES = 500
"""Rows from which an example is taken, and how their targets are read is found."""

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def schema(
    table: Annotated[str | None, typer.Argument(help="Table to look at.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, as data.read.decimal=','.", show_default=False)
    ] = None,
    target: common.Target = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write: the schema as YAML, or that of the settings.")
    ] = None,
    of_settings: Annotated[
        bool, typer.Option("--settings", help="The JSON schema of settings, for editors; takes no table.")
    ] = False,
    as_json: common.Json = False,
) -> None:
    """Show what each column of a table is taken for, and why.

    Shows a row as it will be read and, for a target, the task; for one that a
    language model writes, the prompt. With --out the schema is written as
    YAML. Edit kinds and roles there and give it back to `fit` with --schema.

    \b
    Examples:
      fusetune schema train.csv --target rating
      fusetune schema train.csv -t rating -o schema.yaml
      fusetune schema sales.csv -t price data.read.decimal=','
      fusetune schema quiz.csv -t correct tasks.correct=choice
      fusetune schema pairs.csv -t de "prompt.template=Translate to German: {en}"
      fusetune fit train.csv -t rating --schema schema.yaml
      fusetune schema --settings -o fusetune.schema.json
    """
    if of_settings:
        _write_settings_schema(table, out)
        return
    if table is None:
        raise ConfigError("there is no table to look at", do="name one: fusetune schema TABLE")
    common.check_table(table)
    from fusetune import api
    from fusetune.config.config import Config
    from fusetune.data.table import Table

    sections = ("data.read", "tasks.", "prompt.")
    config = Config().with_overrides([text for text in settings or [] if text.startswith(sections)])
    rows = Table.read(table, read=config.data.read)
    found = api.schema_of(rows, target=target or [], overrides=settings or [])
    if out is not None:
        found.save(out)
    rows = rows.read_as(found.forms())
    tasks = _tasks(found, rows, config)
    row = rows.row(0) if len(rows) else {}
    if as_json:
        told = {"warnings": found.warnings, "notes": [*rows.notes, *found.notes], "tasks": tasks}
        common.print_json(found.to_dict() | told | {"row": {name: _brief(cell) for name, cell in row.items()}})
        return
    _show(found, rows.notes, tasks, row)
    if out is not None:
        common.console().print(f"schema  {out}", soft_wrap=True)


def _write_settings_schema(table: str | None, out: Path | None) -> None:
    """Write the JSON schema of the settings to a file, or print it.

    Raises:
        ConfigError: a table is given too.
        StorageError: the file cannot be written.
    """
    import json

    from fusetune.config.json_schema import json_schema
    from fusetune.deploy.bundle import write_text

    if table is not None:
        raise ConfigError("the settings' schema is the same for every table", came=table, do="leave out the table")
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if out is None:
        common.print_json(text)
        return
    write_text(out, text + "\n")
    common.console().print(f"settings  {out}", soft_wrap=True)


def _tasks(found: Schema, rows: Table, config: Config) -> dict[str, dict[str, str]]:
    """Return each target's task, the reason for it, the columns that it reads together, and an example of them."""
    from fusetune.data.detect.columns import MAX_CELLS, evenly_spaced
    from fusetune.errors import TableError
    from fusetune.models.build import build_task
    from fusetune.tasks.infer import infer_task

    tasks = {}
    for target in found.targets:
        given = config.tasks.get(target)
        name, reason = (given.name or "", "as the settings say") if given else ("", "")
        if not name:
            try:
                families = ("match",) if config.query else ("understand", "generate")
                cells = rows.cells(target, evenly_spaced(len(rows), MAX_CELLS))
                name, reason = infer_task(cells, target, rows, families=families)
            except TableError as error:
                name, reason = "", error.what
        tasks[target] = {"task": name, "reason": reason}
        if name:
            task = build_task(target, name, given.options if given else {})
            tasks[target] |= _reading(found, rows, task, insist=bool(given)) | _prompt(found, rows, task, config)
    return tasks


def _reading(found: Schema, rows: Table, task: TargetTask, *, insist: bool) -> dict[str, str]:
    """Return what a task reads: the columns, and a row as it is read, if the task can show one; empty if nothing.

    In `found`, columns that the task uses and the model does not read become what they are in a fit.

    Raises:
        ConfigError: the task finds no such columns, and the settings insist on it.
    """
    import numpy as np

    from fusetune.data.resolved import target_cells
    from fusetune.errors import TableError
    from fusetune.fitting.reading import read_for_tasks
    from fusetune.tasks.abilities import Choosing

    try:
        reading, schema = task.reading(found), read_for_tasks(found, {task.target: task})
    except ConfigError as error:
        if insist:
            raise
        return {"reads": f"nothing yet: {error.what}" + (f"; {error.do}" if error.do else "")}
    if reading is None:
        return {}
    for name in (name for name in reading.also if name in found.columns):
        found.columns[name] = schema.columns[name]
    choices = f"; choices: {', '.join(reading.choices)}" if reading.choices else ""
    told = {"reads": (", ".join(reading.columns) or "no other text") + choices}
    if isinstance(task, Choosing):
        some = rows.select(np.flatnonzero(~rows.missing(task.target))[:EXAMPLES]).with_joined(schema.joins())
        try:
            told["example"] = task.example([value for value in target_cells(some, task) if value is not None])
        except TableError as error:
            told["example"] = str(error)
    return told


def _prompt(found: Schema, rows: Table, task: TargetTask, config: Config) -> dict[str, str]:
    """Return the template of a written target's prompt, and a row's prompt; empty for other targets.

    Raises:
        ConfigError: the template names a column that is not read.
    """
    from fusetune.fitting.prompting import filled_prompt

    template, prompt = filled_prompt(found, rows, task.target, task, config)
    return {"template": template, "prompt": prompt} if template else {}


def _brief(cell: Any) -> str | None:
    """Return a cell as a display shows it: None for a missing one."""
    from fusetune.data.table import is_missing
    from fusetune.errors import shown
    from fusetune.modalities.messages import chat_text

    if is_missing(cell):
        return None
    cell = chat_text(cell) or cell
    if isinstance(cell, list) and all(isinstance(word, str) for word in cell):
        cell = " ".join(cell)
    return shown(cell, 60) if not isinstance(cell, str) else " ".join(cell[:60].split()) + "…" * (len(cell) > 60)


def _show(found: Schema, notes: list[str], tasks: dict[str, dict[str, str]], row: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table("column", "kind", "role", "why", "first row as read")
    for line in found.rows():
        style = {"input": "", "target": "bold"}.get(line["role"], "dim")
        cell = _brief(row.get(line["column"]))
        texts = [*(line[name] for name in ("column", "kind", "role", "reason")), "(missing)" if cell is None else cell]
        shown.add_row(*(Text(text, style=style) for text in texts))
    to = common.console()
    to.print(shown)
    for target, task in tasks.items():
        to.print(f"task    {target}: {task['task'] or 'none'} ({task['reason']})", soft_wrap=True, markup=False)
        for key in [key for key in ("reads", "example") if key in task]:
            to.print(f"{key:<8}{task[key]}", soft_wrap=True, markup=False)
        if "prompt" in task:
            to.print("prompt of the first row, without what the language model's chat template puts around it:")
            to.print("\n".join(f"    {line}" for line in task["prompt"].split("\n")), soft_wrap=True, markup=False)
    for note in [*notes, *found.notes, *found.warnings]:
        to.print(f"note: {note}", style="yellow", soft_wrap=True)
