"""`fusetune rank`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusetune.cli import common

if TYPE_CHECKING:
    from fusetune.lifecycle.rank_report import Ranking

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def rank(
    table: Annotated[str, typer.Argument(help="Table with the target.", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, as of `fit`.", show_default=False)
    ] = None,
    target: common.Target = None,
    backbones: Annotated[
        list[str] | None,
        typer.Option("--backbones", "-b", help="Folder or hub id, or folder of such folders; commas or again."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for rank.html, rank.json and what is finished.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Most train rows, drawn at random.")] = 2000,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    as_json: common.Json = False,
) -> None:
    """List pretrained models by what their frozen features are worth for a table.

    Measures cross-validated linear probes, LogME and the H-score on train
    rows, with size and speed. Says which is likely best, and which are as
    good and faster. Validation and test rows are not looked at. With --out,
    a call that was stopped goes on with the candidates that are left.

    \b
    Examples:
      fusetune rank train.csv --target label --backbones minilm,../models
      fusetune rank train.csv -t label -b minilm -b ../models/e5-small --out ranked
      fusetune rank photos.csv -t kind -b ../models columns.note=ignore --json
    """
    common.check_table(table)
    from fusetune.lifecycle.rank import rank as rank_backbones

    names = [part for option in backbones or [] for part in option.split(",") if part]
    ranking = rank_backbones(
        table,
        target,
        backbones=names,
        out=out,
        rows=rows,
        folds=folds,
        overrides=settings or [],
        progress=common.shows_progress(as_json),
    )
    if as_json:
        common.print_json(ranking.to_json())
    else:
        _show(ranking, out)


def _show(ranking: Ranking, out: Path | None) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    from fusetune.evaluation.report.svg import figure
    from fusetune.lifecycle.rank_report import cells_of

    to = common.console()
    for ranked in ranking.kinds:
        short = _short_names([candidate.name for candidate in ranked.backbones])
        heads = [f"probe's {ranked.metric}", "", "behind", "LogME", "H-score", "parameters", "MB", "rows/s", ""]
        shown = Table(Column("backbone", overflow="fold"), *heads)
        for candidate in ranked.backbones:
            name, *figures, verdict = cells_of(ranked, candidate)
            cells = [f"{cell:,}" if isinstance(cell, int) else cell for cell in figures]
            texts = [figure(cell) if isinstance(cell, float) else str(cell) for cell in cells]
            style = "bold" if candidate is ranked.best else ""
            shown.add_row(*(Text(str(cell), style=style) for cell in (short[str(name)], *texts, verdict)))
        to.print(shown)
    for note in ranking.notes:
        to.print(f"note: {note}", style="yellow", soft_wrap=True)
    for ranked in ranking.kinds:
        to.print(Text(ranked.headline, style="bold"), soft_wrap=True)
    if out is not None:
        to.print(f"report: {out / 'rank.html'}", soft_wrap=True)


def _short_names(names: list[str]) -> dict[str, str]:
    """Return the last part of each path, or the whole path where several end alike."""
    last = {name: Path(name).name for name in names}
    return {name: part if list(last.values()).count(part) == 1 else name for name, part in last.items()}
