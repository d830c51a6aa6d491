"""`fusetune merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def merge(
    folder: common.ModelFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """Work a model's adapters into its weights, for a folder that needs no other.

    \b
    Example:
      fusetune merge runs/rating --out runs/rating-merged
    """
    from fusetune import api
    from fusetune.fitting.run_folder import refuse_overwrite
    from fusetune.security.model_folder import WEIGHTS

    if not overwrite:
        refuse_overwrite(out)
    api.load(folder).merge().save(out)
    if as_json:
        common.print_json({"folder": str(out), "bytes": (out / WEIGHTS).stat().st_size})
    else:
        common.console().print(f"model   {out}", soft_wrap=True)
