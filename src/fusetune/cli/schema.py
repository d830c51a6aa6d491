"""`fusetune schema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusetune.cli import common

if TYPE_CHECKING:
    from fusetune.data.schema import Schema

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def schema(
    table: Annotated[str, typer.Argument(help="Table to look at.", show_default=False)],
    target: common.Target = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="YAML file to write, to edit and give back.")] = None,
    as_json: common.Json = False,
) -> None:
    """Show what each column of a table is taken for, and why.

    With --out it is written as YAML. Edit kinds and roles there and give it
    back to `fit` with --schema.

    \b
    Examples:
      fusetune schema train.csv --target rating
      fusetune schema train.csv -t rating -o schema.yaml
      fusetune fit train.csv -t rating --schema schema.yaml
    """
    from fusetune import api

    found = api.schema_of(table, target=target or [])
    if out is not None:
        found.save(out)
    if as_json:
        common.print_json(found.to_dict() | {"warnings": found.warnings})
        return
    _show(found)
    if out is not None:
        common.console().print(f"schema  {out}", soft_wrap=True)


def _show(found: Schema) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table("column", "kind", "role", "why")
    for row in found.rows():
        style = "" if row["role"] == "input" else "bold" if row["role"] == "target" else "dim"
        shown.add_row(*(Text(row[name], style=style) for name in ("column", "kind", "role", "reason")))
    to = common.console()
    to.print(shown)
    for warning in found.warnings:
        to.print(f"note: {warning}", style="yellow")
