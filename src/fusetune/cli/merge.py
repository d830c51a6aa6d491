"""`fusetune merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def merge(
    folder: common.ModelFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    to: Annotated[
        Literal["fusetune", "transformers"] | None,
        typer.Option(help="The format.", show_default="transformers for a model that writes, else fusetune"),
    ] = None,
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """Work a model's adapters into its weights, for a folder that needs no other.

    A model that writes becomes a plain folder of transformers, which needs no
    fusetune; it says what such a folder lacks.

    \b
    Examples:
      fusetune merge runs/rating --out runs/rating-merged
      fusetune merge runs/german --out german
      fusetune merge runs/german --out runs/german-merged --to fusetune
    """
    from fusetune import api
    from fusetune.fitting.run_folder import refuse_overwrite
    from fusetune.models.generate import Generate
    from fusetune.security.model_folder import WEIGHTS

    if not overwrite:
        refuse_overwrite(out)
    tuned, notes = api.load(folder), list[str]()
    to = to or ("transformers" if isinstance(tuned.bundle.model, Generate) else "fusetune")
    if to == "transformers":
        common.check_empty(out, overwrite=overwrite)
        notes = tuned.save_transformers(out)
    else:
        tuned.merge().save(out)
    if as_json:
        size = sum(file.stat().st_size for file in out.glob(WEIGHTS if to == "fusetune" else "*.safetensors"))
        common.print_json({"folder": str(out), "format": to, "bytes": size, "notes": notes})
        return
    common.console().print(f"model   {out}", soft_wrap=True)
    for note in notes:
        common.console().print(f"note: {note}", soft_wrap=True)
