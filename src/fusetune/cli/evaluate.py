"""`fusetune evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def evaluate(
    folder: common.ModelFolder,
    table: Annotated[str, typer.Argument(help="Table with the true values.", show_default=False)],
    slices: common.Slices = None,
    as_json: common.Json = False,
) -> None:
    """Measure a tuned model on labelled rows.

    \b
    Example:
      fusetune evaluate runs/rating test.csv --slices country
    """
    from fusetune import api

    evaluation = api.evaluate(folder, table, slices=slices or [], progress=common.shows_progress(as_json))
    if as_json:
        common.print_json(evaluation.to_json())
    else:
        common.console().print(str(evaluation))
