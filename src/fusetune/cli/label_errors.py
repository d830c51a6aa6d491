"""`fusetune label-errors`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusetune.cli import common

FOUND = 3
"""The exit code where more labels are wrong than is accepted."""

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def label_errors(
    folder: common.ModelFolder,
    table: Annotated[
        str | None, typer.Argument(help="Labelled rows; else the run's train and validation rows.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="The column, if there are several.")] = None,
    count: Annotated[int | None, typer.Option(help="Rows to list; else as many as are estimated to be wrong.")] = None,
    max_share: Annotated[
        float | None, typer.Option(help="Share of wrong labels that is accepted; else there is no alarm.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for label_errors.html, .json and .csv.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the folds and the interval.")] = 0,
    as_json: common.Json = False,
) -> None:
    """List the rows whose label is likely wrong.

    Linear probes on the encoders before tuning predict each row without its
    label; confident learning estimates how many labels are wrong. The exit
    code is 3 if surely more than --max-share are, else 0.

    \b
    Examples:
      fusetune label-errors runs/tickets
      fusetune label-errors runs/tickets --out labels --count 200
      fusetune label-errors runs/tickets march.csv --target priority --json
    """
    if table is not None:
        common.check_model_and_table(folder, table)
    from rich.table import Table
    from rich.text import Text

    from fusetune.lifecycle.label_errors import label_errors as find_label_errors

    found = find_label_errors(
        folder,
        table,
        target=target,
        count=count,
        max_share=max_share,
        seed=seed,
        progress=common.shows_progress(as_json),
    )
    if out is not None:
        found.save(out)
    if as_json:
        common.print_json(found.to_json())
    else:
        shown = Table("row", "given", "suggested", "score", "")
        for row in found.rows[:20]:
            text = " · ".join(cell.text for cell in row.cells)[:60]
            cells = (f"{Path(row.file).name}:{row.row}", row.given, row.suggested, f"{row.score:.4f}", text)
            shown.add_row(*(Text(cell) for cell in cells))
        to = common.console()
        to.print(shown)
        for note in found.notes:
            to.print(f"note: {note}", style="yellow", soft_wrap=True)
        to.print(Text(found.headline, style="bold red" if found.alarm else "bold"), soft_wrap=True)
        if out is not None:
            to.print(f"report: {out / 'label_errors.html'}", soft_wrap=True)
    if found.alarm:
        raise typer.Exit(FOUND)
