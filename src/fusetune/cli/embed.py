"""`fusetune embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def embed(
    folder: common.ModelFolder,
    table: Annotated[str, typer.Argument(help="Table of rows.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .csv, .jsonl or .parquet.")],
    dim: Annotated[
        int | None,
        typer.Option(help="How many of a vector's first numbers to write, for a model of pairs.", show_default="all"),
    ] = None,
    precision: common.Precision = "float32",
    missing_columns: common.MissingColumns = None,
    media: common.Media = None,
    as_json: common.Json = False,
) -> None:
    """Write a vector for every row of a table.

    It is what the heads read; for a model of pairs, a vector for each side.

    \b
    Example:
      fusetune embed runs/rating new.csv --out vectors.parquet
    """
    common.check_model_and_table(folder, table)
    common.check_out(out, table)
    from fusetune import api

    tuned = api.load(folder)
    rows, failed = tuned.embed_to(
        tuned.read(table, media=media) if media else table,
        out,
        dim=dim,
        precision=precision,
        missing_columns=missing_columns or [],
        progress=common.shows_progress(as_json),
    )
    if as_json:
        common.print_json({"out": str(out), "rows": rows, "errors": failed})
    else:
        common.console().print(f"{rows} rows{f', {failed} of them with an error' if failed else ''}: {out}")
