"""`fusetune drift`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusetune.cli import common

if TYPE_CHECKING:
    from fusetune.lifecycle.drift_report import DriftReport

DRIFTED = 3
"""The exit code where the new rows differ."""

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def drift(
    folder: common.ModelFolder,
    table: Annotated[str, typer.Argument(help="Table of new rows; it needs no targets.", show_default=False)],
    reference: Annotated[
        str | None, typer.Option(help="Rows that the model did not learn from; else the run's held-out rows.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for drift.html and drift.json.")] = None,
    alpha: Annotated[float, typer.Option(help="Probability of an alarm without drift.")] = 0.01,
    rows: Annotated[int, typer.Option(help="Most rows of either side, drawn at random.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draw and the permutations.")] = 0,
    as_json: common.Json = False,
) -> None:
    """Test whether new rows come from the distribution of a run's held-out rows.

    Compares the model's vectors of rows, its predictions, every column and
    its missing cells; estimates the accuracy without labels; names the rows
    that differ most. The exit code is 0 without an alarm, 3 with one.

    \b
    Examples:
      fusetune drift runs/tickets this_week.csv
      fusetune drift runs/tickets this_week.csv --out drift/week-12
      fusetune drift runs/tickets new.csv --reference old.csv --alpha 0.001 --json
    """
    common.check_model_and_table(folder, table)
    from fusetune.lifecycle.drift import drift as test_drift

    report = test_drift(
        folder,
        table,
        reference=reference,
        alpha=alpha,
        rows=rows,
        seed=seed,
        progress=common.shows_progress(as_json),
    )
    if out is not None:
        report.save(out)
    if as_json:
        common.print_json(report.to_json())
    else:
        _show(report, out)
    if report.alarm:
        raise typer.Exit(DRIFTED)


def _show(report: DriftReport, out: Path | None) -> None:
    import math

    from rich.table import Table
    from rich.text import Text

    shown = Table("compared", "test", "difference", "adjusted p", "held-out → new")
    columns = sorted(report.columns, key=lambda test: (math.isnan(test.adjusted), test.adjusted))
    for test in [*report.tests, *columns]:
        style = "bold red" if test.adjusted <= report.alpha else ""
        cells = (test.name, test.test, f"{test.effect:.3f}", f"{test.adjusted:.4f}", test.detail)
        shown.add_row(*(Text(cell, style=style) for cell in cells))
    to = common.console()
    to.print(shown)
    for estimate in report.estimates:
        measured = "" if math.isnan(estimate.measured) else f"; measured {estimate.measured:.3f}"
        to.print(
            f"{estimate.target}: estimated accuracy {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}], by "
            f"threshold {estimate.thresholded:.3f}, on held-out rows {estimate.held_out:.3f}; such estimates err by "
            f"{estimate.error:.3f}{measured}",
            soft_wrap=True,
        )
    for note in report.notes:
        to.print(f"note: {note}", style="yellow", soft_wrap=True)
    to.print(Text(report.headline, style="bold red" if report.alarm else "bold"), soft_wrap=True)
    if out is not None:
        to.print(f"report: {out / 'drift.html'}", soft_wrap=True)
