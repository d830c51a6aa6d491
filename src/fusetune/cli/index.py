"""`fusetune index`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from fusetune.cli import common
from fusetune.errors import ConfigError

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def index(
    folder: common.ModelFolder,
    catalogue: Annotated[str | None, typer.Argument(help="Table of what is found.", show_default=False)] = None,
    find: Annotated[
        str | None,
        typer.Option(help="What is found: document or query, or a column.", show_default="document"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="How vectors are stored; float16 and int8 take a half and a quarter of the memory."),
    ] = "float32",
    dim: Annotated[
        int | None, typer.Option(help="How many of a vector's first numbers are compared.", show_default="all")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add the rows to the index that there is.")] = False,
    remove: Annotated[
        str | None, typer.Option(help="Remove the rows that a filter keeps: \"sku == 'a1'\".", show_default=False)
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Build a model's search index of a catalogue, add to it or remove from it.

    The index is kept in the model's folder. Above 100,000 rows it finds
    nearly the same rows by a graph (extra ann).

    \b
    Examples:
      fusetune index runs/photos items.csv
      fusetune index runs/photos new.csv --add
      fusetune index runs/photos --remove "price > 100"
    """
    if catalogue is None and remove is None:
        raise ConfigError("there is nothing to index", do="give the catalogue's table, or --remove FILTER")
    if catalogue is not None:
        common.check_model_and_table(folder, catalogue)
    from fusetune import api

    tuned, shown = api.load(folder), common.shows_progress(as_json)
    answer: dict[str, Any] = {}
    if add or catalogue is None:
        built = tuned.index()
    else:
        built = tuned.index(catalogue, find=find, dtype=dtype, dim=dim, progress=shown)
    if remove is not None:
        answer["removed"] = built.remove(remove)
    if add and catalogue is not None:
        answer["added"] = built.add(catalogue)
    answer |= {"index": str(tuned.save_index(built)), "find": built.find, "rows": len(built)}
    answer |= {"not_found": len(built.refused), "recall": built.vectors.recall}
    if as_json:
        common.print_json(answer)
        return
    said = common.console()
    for what in ("removed", "added"):
        if what in answer:
            said.print(f"{answer[what]} rows {what}")
    said.print(f"{len(built)} rows to find by {built.find}: {answer['index']}")
    if built.vectors.graph is not None:
        said.print(f"its graph finds {built.vectors.recall:.1%} of the exact top 10")
    for row, why in list(built.refused.items())[:5]:
        said.print(f"row {row} cannot be found: {why}")
    if len(built.refused) > 5:
        said.print(f"and {len(built.refused) - 5} rows more")
