"""`fusetune samples`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusetune.cli import common
from fusetune.errors import ConfigError, nearest

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def samples(
    name: Annotated[str | None, typer.Argument(help="Sample to write; without it they are listed.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of all tables together.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same files.")] = 0,
    test: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the rows that goes into test.csv.")] = 0.2,
    missing: Annotated[float, typer.Option(min=0, max=0.9, help="Probability that a cell is left out.")] = 0.0,
    label_noise: Annotated[float, typer.Option(min=0, max=0.6, help="Probability that a label is wrong.")] = 0.05,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; the sample's name if not given.")
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Write a generated table whose best reachable score is known.

    The folder's README.md has the best reachable score of every set of columns.

    \b
    Example:
      fusetune samples tickets --rows 2000 --out tickets
    """
    from fusetune.samples.listing import SAMPLES

    if name is None:
        _list({known: line for known, (_, line) in SAMPLES.items()}, as_json=as_json)
        return
    if name not in SAMPLES:
        hint = nearest(name, SAMPLES) or "`fusetune samples` lists them"
        raise ConfigError(f"there is no sample called {name!r}", expected=", ".join(SAMPLES), do=hint)
    make = SAMPLES[name][0]
    splits = {"train": 1 - test, "test": test} if test > 0 else {"train": 1.0}
    made = make(rows, seed, out or Path(name), missing=missing, label_noise=label_noise, splits=splits)
    if as_json:
        common.print_json({split: str(path) for split, path in made.tables.items()})
        return
    to = common.console()
    for split, path in made.tables.items():
        to.print(f"{len(made.splits[split]):>7} rows  {path}")


def _list(lines: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        common.print_json(lines)
        return
    to = common.console()
    for name, line in lines.items():
        to.print(f"{name}  {line}")
