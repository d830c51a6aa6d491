"""`fusetune evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fusetune.cli import common
from fusetune.errors import ConfigError

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def evaluate(
    folder: common.ModelFolder,
    table: Annotated[str, typer.Argument(help="Table with the true values.", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="catalogue=TABLE", help="Documents that queries name by a key.")
    ] = None,
    slices: common.Slices = None,
    precision: common.Precision = "float32",
    missing_columns: common.MissingColumns = None,
    media: common.Media = None,
    as_json: common.Json = False,
) -> None:
    """Measure a tuned model on labelled rows.

    With --precision bf16 or int8 it is measured in float32 too, and what is
    lost is said.

    \b
    Example:
      fusetune evaluate runs/rating test.csv --slices country
      fusetune evaluate runs/rating test.csv --precision int8
      fusetune evaluate runs/shop test.csv catalogue=items.csv
    """
    common.check_model_and_table(folder, table)
    from fusetune import api

    tuned = api.load(folder)
    options: dict[str, Any] = {
        "catalogue": _catalogue(settings or []),
        "missing_columns": missing_columns or [],
        "progress": common.shows_progress(as_json),
    }
    source = tuned.read(table, media=media) if media else table
    evaluation = tuned.evaluate(source, slices=slices or [], precision=precision, **options)
    if as_json:
        common.print_json(evaluation.to_json())
        return
    common.console().print(str(evaluation))
    if precision != "float32":
        whole = tuned.evaluate(source, **options)
        for low, full in zip(evaluation.tasks, whole.tasks, strict=True):
            values = [task.systems[0].metrics[task.metric].value for task in (full, low)]
            common.console().print(
                f"{full.target}: {full.metric} {values[0]:.4f} in float32, {values[1]:.4f} in {precision}"
            )


def _catalogue(settings: list[str]) -> str | None:
    """Return the table of documents that the settings name.

    Raises:
        ConfigError: there is another setting.
    """
    named = dict(setting.partition("=")[::2] for setting in settings)
    if others := [setting for setting in settings if setting.partition("=")[0] != "catalogue"]:
        raise ConfigError(f"{others[0]!r} is no setting of evaluate", expected="catalogue=TABLE")
    return named.get("catalogue") or None
