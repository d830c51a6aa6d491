"""`fusetune export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class Format(StrEnum):
    """The formats that a model can be written in."""

    SENTENCE_TRANSFORMERS = "sentence-transformers"
    TRANSFORMERS = "transformers"
    MLFLOW = "mlflow"


@app.command()
def export(
    folder: common.ModelFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    to: Annotated[Format, typer.Option(help="The format.")] = Format.SENTENCE_TRANSFORMERS,
    side: Annotated[
        str | None, typer.Option(help="Which side of pairs: query or document, if they give a text different vectors.")
    ] = None,
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """Write a model in the format of another library.

    sentence-transformers for a side of a model of pairs; transformers for a
    model that writes; mlflow for any.

    \b
    Examples:
      fusetune export runs/pairs --to sentence-transformers --out runs/pairs-st
      fusetune export runs/german --to transformers --out german
      fusetune export runs/tickets --to mlflow --out tickets-mlflow
    """
    from fusetune import api

    common.check_empty(out, overwrite=overwrite)
    tuned, notes = api.load(folder), list[str]()
    if to is Format.TRANSFORMERS:
        notes = tuned.save_transformers(out)
    elif to is Format.MLFLOW:
        tuned.save_mlflow(out)
    else:
        tuned.save_sentence_transformer(out, side=side)
    if as_json:
        common.print_json({"folder": str(out), "format": to.value, "notes": notes})
        return
    common.console().print(f"{to.value}  {out}", soft_wrap=True)
    for note in notes:
        common.console().print(f"note: {note}", soft_wrap=True)
