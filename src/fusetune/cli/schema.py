"""`fusetune schema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusetune.cli import common

if TYPE_CHECKING:
    from fusetune.data.schema import Schema
    from fusetune.data.table import Table

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def schema(
    table: Annotated[str, typer.Argument(help="Table to look at.", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, as data.read.decimal=','.", show_default=False)
    ] = None,
    target: common.Target = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="YAML file to write, to edit and give back.")] = None,
    as_json: common.Json = False,
) -> None:
    """Show what each column of a table is taken for, and why.

    Shows a row as it will be read and, for a target, the task. With --out the
    schema is written as YAML. Edit kinds and roles there and give it back to
    `fit` with --schema.

    \b
    Examples:
      fusetune schema train.csv --target rating
      fusetune schema train.csv -t rating -o schema.yaml
      fusetune schema sales.csv -t price data.read.decimal=','
      fusetune fit train.csv -t rating --schema schema.yaml
    """
    common.check_table(table)
    from fusetune import api
    from fusetune.config.config import Config
    from fusetune.data.table import Table

    read = Config().with_overrides([setting for setting in settings or [] if setting.startswith("data.read")]).data.read
    rows = Table.read(table, read=read)
    found = api.schema_of(rows, target=target or [], overrides=settings or [])
    if out is not None:
        found.save(out)
    rows = rows.read_as(found.forms())
    tasks = _tasks(found, rows)
    row = rows.row(0) if len(rows) else {}
    if as_json:
        told = {"warnings": found.warnings, "notes": [*rows.notes, *found.notes], "tasks": tasks}
        common.print_json(found.to_dict() | told | {"row": {name: _brief(cell) for name, cell in row.items()}})
        return
    _show(found, rows.notes, tasks, row)
    if out is not None:
        common.console().print(f"schema  {out}", soft_wrap=True)


def _tasks(found: Schema, rows: Table) -> dict[str, dict[str, str]]:
    """Return each target's inferred task and the reason."""
    from fusetune.data.detect.columns import MAX_CELLS, evenly_spaced
    from fusetune.errors import TableError
    from fusetune.tasks.infer import infer_task

    tasks = {}
    for target in found.targets:
        try:
            name, reason = infer_task(rows.cells(target, evenly_spaced(len(rows), MAX_CELLS)), target)
        except TableError as error:
            name, reason = "", error.what
        tasks[target] = {"task": name, "reason": reason}
    return tasks


def _brief(cell: Any) -> str | None:
    """Return a cell as a display shows it: None for a missing one."""
    from fusetune.data.table import is_missing
    from fusetune.errors import shown

    if is_missing(cell):
        return None
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
        to.print(f"task    {target}: {task['task'] or 'none'} ({task['reason']})", soft_wrap=True)
    for note in [*notes, *found.notes, *found.warnings]:
        to.print(f"note: {note}", style="yellow", soft_wrap=True)
