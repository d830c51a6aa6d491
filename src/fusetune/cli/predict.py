"""`fusetune predict`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fusetune.cli import common
from fusetune.errors import ConfigError

if TYPE_CHECKING:
    from fusetune.api import Predictions

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

WRITERS = {".csv": "to_csv", ".jsonl": "to_jsonl", ".parquet": "to_parquet"}
"""The method of `Predictions` that writes a file of each suffix."""


@app.command()
def predict(
    folder: common.ModelFolder,
    table: Annotated[str, typer.Argument(help="Table to predict.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write: .csv, .jsonl or .parquet; else printed.", show_default=False),
    ] = None,
    on_bad_cell: Annotated[
        Literal["mask", "reject"],
        typer.Option(help="A cell that cannot be read: go on without the cell, or without the row."),
    ] = "mask",
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
    """
    writer = _writer(out, table)
    from fusetune import api

    predictions = api.load(folder).predict(table, on_bad_cell=on_bad_cell, progress=common.shows_progress(as_json))
    if out is None:
        _print(predictions, ".jsonl" if as_json else ".csv")
        return
    getattr(predictions, writer)(out)
    rows, failed = len(predictions), predictions.num_errors
    if as_json:
        common.print_json({"out": str(out), "rows": rows, "errors": failed})
    else:
        note = f", {failed} of them with an error" if failed else ""
        common.console().print(f"{rows} rows{note}: {out}")


def _writer(out: Path | None, table: str) -> str:
    if out is None:
        return ""
    if out.suffix.lower() not in WRITERS:
        raise ConfigError(
            f"no table can be written as {out.name!r}",
            expected=f"a name that ends in {', '.join(WRITERS)}",
            do=f"--out {out.with_suffix('.csv')}",
        )
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"{out} cannot be written", came="its folder is not there", do=f"make it: mkdir {out.parent}")
    if out.resolve() == Path(table).resolve():
        raise ConfigError("the predictions would overwrite the table", came=str(out), do="give --out another name")
    return WRITERS[out.suffix.lower()]


def _print(predictions: Predictions, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"predictions{suffix}"
        getattr(predictions, WRITERS[suffix])(file)
        with file.open(encoding="utf-8", newline="") as lines:
            shutil.copyfileobj(lines, sys.stdout)
