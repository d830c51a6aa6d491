"""`fusetune search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fusetune.cli import common
from fusetune.errors import ConfigError

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def search(
    folder: common.ModelFolder,
    query: Annotated[
        list[str] | None,
        typer.Option("--query", "-q", help="Text, or path of media; again for several.", show_default=False),
    ] = None,
    cells: Annotated[
        list[str] | None,
        typer.Option("--set", help="A cell of a query, title=lamp; again for each column.", show_default=False),
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="Table of queries.", show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", help="Rows a query.")] = 10,
    where: Annotated[
        str | None, typer.Option("--filter", "-f", help='Rows to search: "price < 50".', show_default=False)
    ] = None,
    catalogue: Annotated[
        str | None,
        typer.Option(help="Search this table instead of the saved index; nothing is kept.", show_default=False),
    ] = None,
    find: Annotated[str | None, typer.Option(help="With --catalogue: what is found.", show_default="document")] = None,
    rerank: Annotated[
        bool | None,
        typer.Option(
            "--rerank/--no-rerank",
            help="Read the nearest documents together with the query, by the model of rerank=true.",
            show_default="if validation rows preferred it",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write: .csv, .jsonl or .parquet.", show_default=False)
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Find the rows of a catalogue that are nearest to a query.

    It searches the index that `fusetune index` keeps in the model's folder.

    \b
    Examples:
      fusetune search runs/photos --query "red shoes" -k 5 --filter "price < 50"
      fusetune search runs/photos --query shoe.jpg
      fusetune search runs/photos --set title=lamp --set "description=a small one"
      fusetune search runs/photos --queries new.csv --out found.csv
    """
    asked = _queries(query, cells, queries)
    from fusetune import api

    tuned, shown = api.load(folder), common.shows_progress(as_json)
    index = tuned.index() if catalogue is None else tuned.index(catalogue, find=find, progress=shown)
    answers = index.search(asked, k=k, where=where, rerank=rerank)
    if common.written(answers, out, as_json=as_json):
        return
    hits: list[dict[str, Any]] = answers.table.to_pylist()
    _print(hits, index.find)
    if index.reranker is not None and "relevance" in answers.table.column_names:
        num = len({row["row"] for row in hits})
        each = f"{1000 * index.reranker.seconds / max(num, 1):,.0f} ms"
        common.console().print(f"the nearest {index.reranker.depth} were read together with the query: {each} a query")
    if k > len(index):
        common.console().print(f"the catalogue has {len(index):,} rows to find: -k {k:,} gives all of them")


def _queries(query: list[str] | None, cells: list[str] | None, queries: Path | None) -> Any:
    """Return what is asked for.

    Raises:
        ConfigError: not exactly one of the three ways is used, or a cell has no column.
    """
    if sum(bool(way) for way in (query, cells, queries)) != 1:
        raise ConfigError(
            "a search has one kind of query",
            expected="--query TEXT, --set COLUMN=VALUE or --queries TABLE",
            came="several" if query or cells or queries else "none",
        )
    if query:
        return query
    if queries is not None:
        return queries
    return [common.named_cells(cells or [])]


def _print(rows: list[dict[str, Any]], find: str) -> None:
    """Print answers as a table for people, one for each query."""
    from rich.table import Table

    fixed = ("row", "rank", "score", "relevance", f"{find}_row", "error")
    names = [name for name in (rows[0] if rows else {}) if name not in fixed]
    for number in dict.fromkeys(row["row"] for row in rows):
        mine = [row for row in rows if row["row"] == number]
        if mine[0]["rank"] is None:
            common.console().print(f"query {number}: {mine[0]['error']}")
            continue
        table = Table("rank", "score", "row", *names, title=f"query {number}", title_justify="left")
        for row in mine:
            cells = [str(row["rank"]), f"{row['score']:.3f}", str(row[f"{find}_row"])]
            table.add_row(*cells, *("" if row[name] is None else str(row[name])[:80] for name in names))
        common.console().print(table)
