"""`fusetune predict`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def predict(
    folder: common.ModelFolder,
    table: Annotated[str, typer.Argument(help="Table to predict.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="File to write: .csv, .jsonl, .parquet or .conll; else printed.", show_default=False
        ),
    ] = None,
    on_bad_cell: Annotated[
        Literal["mask", "reject"],
        typer.Option(help="A cell that cannot be read: go on without the cell, or without the row."),
    ] = "mask",
    precision: common.Precision = "float32",
    missing_columns: common.MissingColumns = None,
    media: common.Media = None,
    as_json: common.Json = False,
) -> None:
    """Predict the rows of a table with a tuned model.

    N rows in give N rows out, in order; a row that cannot be read has the
    reason in its error column. Without --out the rows are printed as CSV, or
    with --json as JSON Lines.

    \b
    Examples:
      fusetune predict runs/rating new.csv --out out.csv
      fusetune predict runs/rating new.csv --json
      fusetune predict runs/rating new.csv --missing-columns photo
      fusetune predict runs/entities new.csv --out out.conll
      fusetune predict runs/rating new.csv --out out.csv --precision int8
    """
    common.check_model_and_table(folder, table)
    if out is not None:
        common.check_out(out, table, also=(".conll",))
    from fusetune import api

    tuned, shown = api.load(folder), common.shows_progress(as_json)
    with tempfile.TemporaryDirectory() as spare:
        file = out or Path(spare) / ("rows.jsonl" if as_json else "rows.csv")
        rows, failed = tuned.predict_to(
            tuned.read(table, media=media) if media else table,
            file,
            on_bad_cell=on_bad_cell,
            precision=precision,
            missing_columns=missing_columns or [],
            progress=shown,
        )
        if out is None:
            with file.open(encoding="utf-8", newline="") as lines:
                shutil.copyfileobj(lines, sys.stdout)
        elif as_json:
            common.print_json({"out": str(out), "rows": rows, "errors": failed})
        else:
            note = f", {failed} of them with an error" if failed else ""
            common.console().print(f"{rows} rows{note}: {out}")
