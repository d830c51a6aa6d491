"""`fusetune recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def recommend(
    folder: common.ModelFolder,
    users: Annotated[
        Path | None, typer.Option(help="Table of users: ids, attributes, or a column `liked`.", show_default=False)
    ] = None,
    user_id: Annotated[
        list[str] | None, typer.Option("--user-id", help="Id of a user; again for several.", show_default=False)
    ] = None,
    liked: Annotated[
        list[str] | None,
        typer.Option(help="Items that a new user likes, a,b,c; again for another user.", show_default=False),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Items a user.")] = 10,
    catalogue: Annotated[
        str | None, typer.Option(help="Rank the items of this table and show its columns.", show_default=False)
    ] = None,
    known: Annotated[bool, typer.Option("--known", help="Recommend items, too, that the user knows.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write: .csv, .jsonl or .parquet.", show_default=False)
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Recommend items to users, without those that they know.

    \b
    Examples:
      fusetune recommend runs/films --user-id 17 -k 5 --catalogue films.csv
      fusetune recommend runs/films --liked tt0133093,tt0234215
      fusetune recommend runs/films --users new.csv --out found.csv
    """
    from fusetune import api

    tuned = api.load(folder)
    lists = None if liked is None else [[key.strip() for key in keys.split(",") if key.strip()] for keys in liked]
    answers = tuned.recommend(users, user_id=user_id, liked=lists, k=k, catalogue=catalogue, known=known)
    if not common.written(answers, out, as_json=as_json):
        _print(answers.table.to_pylist())


def _print(rows: list[dict[str, Any]]) -> None:
    """Print a table for each user."""
    from rich.table import Table

    names = [name for name in (rows[0] if rows else {}) if name not in ("row", "user", "error")]
    for number in dict.fromkeys(row["row"] for row in rows):
        mine = [row for row in rows if row["row"] == number]
        title = f"user {mine[0]['user'] or number}"
        if mine[0]["error"]:
            common.console().print(f"{title}: {mine[0]['error']}", markup=False)
        if mine[0]["rank"] is None:
            continue
        table = Table(*names, title=title, title_justify="left")
        for row in mine:
            cells = [f"{row[name]:.3f}" if name == "score" else row[name] for name in names]
            table.add_row(*("" if cell is None else str(cell)[:80] for cell in cells))
        common.console().print(table)
