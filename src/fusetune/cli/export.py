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

    \b
    Example:
      fusetune export runs/pairs --to sentence-transformers --out runs/pairs-st
    """
    from fusetune import api
    from fusetune.errors import ConfigError

    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty", do="give another folder as --out, or replace its files: --overwrite")
    api.load(folder).save_sentence_transformer(out, side=side)
    if as_json:
        common.print_json({"folder": str(out), "format": to.value})
    else:
        common.console().print(f"{to.value}  {out}", soft_wrap=True)
