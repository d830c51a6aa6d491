"""`fusetune search-settings`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fusetune.cli import common

if TYPE_CHECKING:
    from fusetune.lifecycle.searching.report import Searched

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def search_settings(
    source: Annotated[
        str, typer.Argument(metavar="CONFIG|TABLE", help="A .yaml of settings, or the table to learn from.")
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings as of `fit`, which are not searched.")
    ] = None,
    target: common.Target = None,
    val: Annotated[str | None, typer.Option(help="Table that trials are compared on; else split off.")] = None,
    test: Annotated[str | None, typer.Option(help="Table that measures the winner; else split off.")] = None,
    space: Annotated[
        str | None, typer.Option(help="A .yaml of settings and the values to try; else a space by default.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Trials in all, those of earlier calls included.")] = 50,
    minutes: Annotated[float | None, typer.Option(help="Time for the trials of this call.")] = None,
    sampler: Annotated[Literal["tpe", "random", "grid"], typer.Option(help="How trials are chosen.")] = "tpe",
    pruner: Annotated[
        Literal["median", "hyperband", "none"], typer.Option(help="Which trials are ended early.")
    ] = "median",
    storage: Annotated[
        str | None, typer.Option(help="Database URL or journal file that machines share; else one in the folder.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds the winner is tuned again with; 0: it is not.")] = 3,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the search.")] = Path("searched"),
    as_json: common.Json = False,
) -> None:
    """Search the settings of a fit by the main metric on validation rows.

    The first trial has the settings as they are. The winner is tuned again
    with --seeds seeds, beside the settings as they are; test rows measure
    both at the end. A search that was stopped goes on, and processes with
    the same --out share its trials. Needs the extra `search`.

    \b
    Examples:
      fusetune search-settings config.yaml --trials 50 --minutes 30
      fusetune search-settings train.csv -t rating --out searched --space space.yaml
      fusetune search-settings train.csv -t rating trainer.batch_size=16 --sampler random
      fusetune fit searched/best.yaml --out runs/rating
    """
    is_config = common.is_config(source)
    if not is_config:
        common.check_table(source)
    from fusetune.lifecycle.searching.search import search_settings as search

    result = search(
        None if is_config else source,
        target,
        val=val,
        test=test,
        config=source if is_config else None,
        overrides=settings or [],
        out=out,
        space=space,
        trials=trials,
        minutes=minutes,
        sampler=sampler,
        pruner=pruner,
        storage=storage,
        seeds=seeds,
        progress=common.shows_progress(as_json),
    )
    if as_json:
        common.print_json(result.to_json())
    else:
        _show(result, out)


def _show(result: Searched, out: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from fusetune.lifecycle.searching.report import BEST, PAGE, best_first, shown

    shown_table = Table("trial", "", result.metric, "seconds", "settings")
    for trial in best_first(result.trials)[:10]:
        value = "" if trial.value is None else f"{trial.value:.4f}"
        seconds = "" if trial.seconds is None else f"{trial.seconds:.0f}"
        params = ", ".join(f"{key}={shown(part)}" for key, part in trial.params.items())
        state = "as they are" if trial.number == result.current else trial.state
        cells = (str(trial.number), state, value, seconds, params)
        shown_table.add_row(*(Text(cell, style="bold" if trial.number == result.best else "") for cell in cells))
    to = common.console()
    to.print(shown_table)
    for note in result.notes:
        to.print(f"note: {note}", style="yellow", soft_wrap=True)
    to.print(Text(result.headline, style="bold"), soft_wrap=True)
    to.print(f"report: {out / PAGE}", soft_wrap=True)
    if result.settings:
        to.print(f"settings: {out / BEST}", soft_wrap=True)
