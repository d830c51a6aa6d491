"""`fusetune retune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusetune.cli import common

if TYPE_CHECKING:
    from fusetune.lifecycle.retune import Retuned

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def retune(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, or of versions.", show_default=False)],
    table: Annotated[str, typer.Argument(help="Table of labelled new rows.", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value over those of the model.", show_default=False)
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Folder of versions to make from a run.")] = None,
    replay: Annotated[float, typer.Option(help="Share of the old train rows that encoders are tuned on again.")] = 1.0,
    distill: Annotated[float, typer.Option(help="Weight of the loss against what the model in use predicts.")] = 0.0,
    margin: Annotated[float, typer.Option(help="Loss on old test rows that is accepted.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="Share of bootstrap draws that must agree.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of the split and the draws.")] = 0,
    as_json: common.Json = False,
) -> None:
    """Tune a model again on new rows; use the result only if it passes a gate.

    The encoders start from the model in use. Old and new test rows decide:
    the new version is used if it gains on new rows and loses no more than
    the margin on old ones; otherwise the old one stays. Versions are kept
    beside each other; `serve --watch` follows the one in use.

    \b
    Examples:
      fusetune retune runs/tickets march.csv
      fusetune retune runs/tickets-versions april.csv --replay 0.2 --distill 1
      fusetune rollback runs/tickets-versions
    """
    common.check_table(table)
    from fusetune.lifecycle.retune import retune as tune_again

    result = tune_again(
        folder,
        table,
        store=store,
        replay=replay,
        distill=distill,
        margin=margin,
        confidence=confidence,
        seed=seed,
        overrides=settings or [],
        progress=common.shows_progress(as_json),
    )
    if as_json:
        common.print_json(result.to_json())
    else:
        _show(result)


def _show(result: Retuned) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table("test rows", "target", "rows", "metric", "before", "after", "better by", "share of draws", "")
    for check in result.checks:
        interval = check.difference
        shown.add_row(
            check.rows,
            check.target,
            f"{check.num_rows:,}",
            check.metric,
            f"{check.before.value:.3f}",
            f"{check.after.value:.3f}",
            f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]",
            f"{check.probability:.0%} above {check.least:g}",
            "passed" if check.passed else "not passed",
        )
    to = common.console()
    to.print(shown)
    for target, labels in result.labels.items():
        to.print(f"new labels of {target}: {', '.join(labels)}", soft_wrap=True)
    for note in result.notes:
        to.print(f"note: {note}", style="yellow", soft_wrap=True)
    verdict = f"version {result.version} is in use" if result.promoted else f"version {result.parent} stays in use"
    to.print(Text(f"{verdict}: {result.why}", style="bold"), soft_wrap=True)
    to.print(f"report: {Path(result.store) / result.version / 'retune.html'}", soft_wrap=True)
