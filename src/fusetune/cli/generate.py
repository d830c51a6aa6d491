"""`fusetune generate`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusetune.cli import common
from fusetune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from fusetune.deploy.fine_tuned import FineTuned

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def generate(
    folder: common.ModelFolder,
    table: Annotated[str | None, typer.Argument(help="Table of rows, in place of --set.", show_default=False)] = None,
    cells: Annotated[
        list[str] | None,
        typer.Option("--set", help="A cell of the row, title=lamp; again for each column.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write: .csv, .jsonl or .parquet.", show_default=False)
    ] = None,
    beams: Annotated[int | None, typer.Option(help="Beams that are searched.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 0, tokens are drawn at random.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest tokens of this share.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among so many of the likeliest tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of draws: same seed, same answers.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text before which an answer ends; again for several.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="Answer to choose from; again for each.")] = None,
    regex: Annotated[
        str | None, typer.Option(help="Regular expression that the answer matches.", show_default=False)
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON schema that the answer follows.", show_default=False)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.")] = None,
    missing_columns: common.MissingColumns = None,
    media: common.Media = None,
    as_json: common.Json = False,
) -> None:
    """Write the answers of rows with a tuned model that writes.

    One row is given as --set COLUMN=VALUE, and its answer printed while it is
    written; a picture or sound is the path of its file. The rows of a table
    go to --out, or are printed as CSV, or with --json as JSON Lines. Settings
    of writing that are not given are those of the run.

    \b
    Examples:
      fusetune generate runs/german --set "en=A dog runs." --beams 4
      fusetune generate runs/captions --set photo=dog.jpg --temperature 0.7 --seed 3
      fusetune generate runs/dates --set text=today --regex "[0-9]{4}-[0-9]{2}-[0-9]{2}"
      fusetune generate runs/german new.csv --out answers.csv --max-tokens 40
    """
    row = _row(table, cells)
    settings: dict[str, Any] = {
        **{"beams": beams, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed},
        **{"stop": stop or None, "choices": choice or None, "max_tokens": max_tokens},
        **{"regex": regex, "json_schema": None if json_schema is None else _schema(json_schema)},
    }
    if table is not None:
        common.check_model_and_table(folder, table)
    if out is not None:
        common.check_out(out, table or "")
    from fusetune import api

    tuned = api.load(folder).with_generation(**{name: value for name, value in settings.items() if value is not None})
    if row is not None:
        _check_columns(tuned, row)
    rows: Any = row if table is None else tuned.read(table, media=media or [])
    if row is not None and out is None and not as_json:
        _stream(tuned, row, missing_columns or [])
        return
    shown = table is not None and common.shows_progress(as_json)
    _write(tuned, rows, out, as_json=as_json, missing=missing_columns or [], shown=shown)


def _write(tuned: FineTuned, rows: Any, out: Path | None, *, as_json: bool, missing: list[str], shown: bool) -> None:
    """Write the answers of rows to a file, or print them; `shown` tells whether progress is."""
    with tempfile.TemporaryDirectory() as spare:
        file = out or Path(spare) / ("rows.jsonl" if as_json else "rows.csv")
        num, failed = tuned.predict_to(rows, file, missing_columns=missing, progress=shown)
        if out is None:
            with file.open(encoding="utf-8", newline="") as lines:
                shutil.copyfileobj(lines, sys.stdout)
        elif as_json:
            common.print_json({"out": str(out), "rows": num, "errors": failed})
        else:
            common.console().print(f"{num} rows, {failed} of them with an error: {out}", soft_wrap=True)


def _row(table: str | None, cells: list[str] | None) -> dict[str, str] | None:
    """Return the row of the command line; None if rows come from a table.

    Raises:
        ConfigError: both are given, or neither; or a cell has no column, or comes twice.
    """
    if (table is None) == (not cells):
        raise ConfigError(
            "it is not clear what is answered",
            expected="--set COLUMN=VALUE, or a table",
            came="both" if cells else "neither",
        )
    row: dict[str, str] = {}
    for cell in cells or []:
        column, equals, value = cell.partition("=")
        if not equals or not column:
            raise ConfigError(f"{cell!r} names no column", expected="--set COLUMN=VALUE")
        if column in row:
            raise ConfigError(f"{column!r} is set twice", expected="a value for each column")
        row[column] = value
    return row if cells else None


def _schema(path: Path) -> dict[str, Any]:
    """Return the JSON schema in a file.

    Raises:
        ConfigError: it is none.
    """
    from fusetune.security.untrusted import read_json

    try:
        schema: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError("the JSON schema cannot be read", came=str(error), do="check --json-schema") from None
    if not isinstance(schema, dict):
        raise ConfigError("the file has no JSON schema", expected="an object in braces", came=type(schema).__name__)
    return schema


def _check_columns(tuned: FineTuned, row: dict[str, str]) -> None:
    """Refuse cells of columns that the model does not read.

    Raises:
        ConfigError: there are such cells.
    """
    from fusetune.deploy.rows import needed_columns

    known = needed_columns(tuned.bundle)
    if unknown := [name for name in row if name not in known]:
        raise ConfigError(
            f"the model reads no column {unknown[0]!r}", expected=", ".join(known), do=nearest(unknown[0], known)
        )


def _stream(tuned: FineTuned, row: dict[str, str], missing: list[str]) -> None:
    """Print a row's answers as they are written, with the targets' names if there are several."""
    targets = [task.target for task in tuned.bundle.targets.values()]
    for target in targets:
        pieces = tuned.stream(row, target=target, missing_columns=missing)
        if not common.leads():
            continue
        if len(targets) > 1:
            sys.stdout.write(f"{target}: ")
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
