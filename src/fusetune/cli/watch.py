"""`fusetune watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusetune.cli import common
from fusetune.cli.drift import DRIFTED

if TYPE_CHECKING:
    from fusetune.lifecycle.watch import Watched

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def watch(
    config: Annotated[Path, typer.Argument(help="YAML file: model, tables, drift, retune.", show_default=False)],
    once: Annotated[bool, typer.Option("--once", help="End when no new table is left, for cron.")] = False,
    as_json: common.Json = False,
) -> None:
    """Test the tables that arrive in a folder for drift, and tune the model again on them.

    Each table is worked on once. Labelled ones that drifted are tuned on, and
    the new version is used if it passes the gate of `retune`. The record is
    watch/watch.html in the folder of versions. With --once the exit code is 3
    if a new table drifted.

    \b
    Examples:
      fusetune watch watch.yaml
      fusetune watch watch.yaml --once --json
    """
    from fusetune.config.watch import WatchConfig
    from fusetune.lifecycle.watch import watch as watch_tables

    alarm = False
    for table in watch_tables(WatchConfig.from_yaml(config), once=once, progress=common.shows_progress(as_json)):
        alarm |= bool(table.alarm)
        if as_json:
            common.print_json(table.to_json())
        else:
            _show(table)
    if alarm:
        raise typer.Exit(DRIFTED)


def _show(table: Watched) -> None:
    to = common.console()
    to.print(f"{table.file}: {table.headline}", style="yellow" if table.alarm else None, soft_wrap=True)
    version = f"version {table.tuned}, {'promoted' if table.promoted else 'not promoted'}: " if table.tuned else ""
    to.print(f"    {version}{table.why}", soft_wrap=True)
