"""`fusetune rollback`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def rollback(
    folder: Annotated[Path, typer.Argument(help="Folder of versions.", show_default=False)],
    to: Annotated[str | None, typer.Option(help="The version to use; else the parent of the one in use.")] = None,
    as_json: common.Json = False,
) -> None:
    """Use an earlier version of a model that was tuned again.

    Only the file `current` changes; `serve --watch` follows it.

    \b
    Examples:
      fusetune rollback runs/tickets-versions
      fusetune rollback runs/tickets-versions --to 1
    """
    from fusetune.lifecycle.retune import roll_back

    version = roll_back(folder, to)
    if as_json:
        common.print_json({"folder": str(folder), "version": version})
    else:
        common.console().print(f"version {version} is in use", soft_wrap=True)
