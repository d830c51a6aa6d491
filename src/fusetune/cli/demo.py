"""`fusetune demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusetune.cli import common
from fusetune.cli.fit import show

if TYPE_CHECKING:
    from fusetune.evaluation.results import TaskResult
    from fusetune.samples.tickets import Tickets

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

SPLITS = {"train": 0.7, "test": 0.3}


@app.command()
def demo(
    rows: Annotated[int, typer.Option(min=100, help="Rows of the sample table.")] = 1200,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the table, the model and the report.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same table and same weights.")] = 0,
    as_json: common.Json = False,
) -> None:
    """Make a sample table, tune on it and show what tuning bought.

    The table has support tickets: a message, a screenshot, a voice note, a
    number and a category. The best reachable accuracy is known for every column
    and is shown beside what was reached.

    \b
    Example:
      fusetune demo --rows 600 --out runs/demo
    """
    from fusetune import api
    from fusetune.samples.tickets import TARGET, make_tickets

    speaks = common.leads() and not as_json
    if speaks:
        common.console().print(f"making {rows} support tickets in {out / 'table'}")
    tickets = make_tickets(rows, seed, out / "table", splits=SPLITS)
    tuned = api.fit(
        tickets.tables["train"],
        target=TARGET,
        test=tickets.tables["test"],
        out=out / "model",
        overrides=[f"seed={seed}", "trainer.epochs=2"],
        overwrite=True,
        progress=common.shows_progress(as_json),
    )
    show(tuned, as_json=as_json)
    if speaks and tuned.results is not None:
        _show_ceilings(tuned.results.tasks[0], tickets)


def _show_ceilings(task: TaskResult, tickets: Tickets) -> None:
    """Print the accuracy of every system that sees some columns only, beside the best reachable with these columns."""
    from rich.table import Table

    table = Table("accuracy", "reached", "best reachable", title="How near to the ceiling, on the same test rows")
    for system in [*task.all("alone"), *task.all("after")]:
        best = tickets.best_accuracy(system.columns, split="test")
        table.add_row(system.name, f"{system.metrics['accuracy'].value:.3f}", f"{best:.3f}")
    common.console().print(table)
