"""`fusetune label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def label(
    first: Annotated[str, typer.Argument(metavar="[RUN] POOL", help="A model's folder, then the pool; or the pool.")],
    second: Annotated[str | None, typer.Argument(metavar="", show_default=False)] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, without a model: image=FOLDER.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the labelling.")] = Path("labelling"),
    target: Annotated[str | None, typer.Option("--target", "-t", help="Column of labels; needed without RUN.")] = None,
    labels: Annotated[str | None, typer.Option(help="Labels that are accepted, by commas; else those of RUN.")] = None,
    imports: Annotated[
        list[Path] | None, typer.Option("--import", "-i", help="Export of Label Studio, or a table; again for several.")
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="auto, entropy, margin, badge, diverse-margin, coreset, typical or random.")
    ] = "auto",
    count: Annotated[int, typer.Option(help="Rows a round.")] = 50,
    random_share: Annotated[float, typer.Option(help="Share of them drawn at random, for measuring.")] = 0.2,
    rounds: Annotated[int | None, typer.Option(help="Most rounds; else until the stopping rule.")] = None,
    agreement: Annotated[float, typer.Option(help="Mean κ between rounds' predictions that stops.")] = 0.99,
    partial: Annotated[bool, typer.Option("--partial", help="Choose rows although some have no label yet.")] = False,
    new_labels: Annotated[bool, typer.Option("--new-labels", help="Accept labels that are not known.")] = False,
    go_on: Annotated[bool, typer.Option("--go-on", help="Choose rows although labelling can stop.")] = False,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    as_json: common.Json = False,
) -> None:
    """Choose the rows of a pool that a person labels next.

    Run the same command again after each round: it reads what was filled in,
    measures it on rows drawn at random, says whether that is better than
    random labelling and whether to stop, and writes the next rows.

    \b
    Examples:
      fusetune label runs/tickets pool.csv --out labelling
      fusetune label pool.csv --target kind --out labelling --count 30
      fusetune label runs/tickets pool.csv --out labelling --import export.json
    """
    from fusetune.lifecycle.labelling.label import label as choose_next

    model, pool, own = _arguments(first, second, settings or [])
    state = choose_next(
        pool,
        model,
        out=out,
        target=target,
        labels=[name.strip() for name in (labels or "").split(",") if name.strip()],
        imports=imports or [],
        strategy=strategy,
        count=count,
        random_share=random_share,
        rounds=rounds,
        agreement=agreement,
        partial=partial,
        new_labels=new_labels,
        go_on=go_on,
        seed=seed,
        overrides=own,
        progress=common.shows_progress(as_json),
    )
    if as_json:
        common.print_json(state.to_json())
        return
    to = common.console()
    for note in state.notes:
        to.print(f"note: {note}", style="yellow", soft_wrap=True)
    if state.gain is not None:
        to.print(state.gain.sentence, soft_wrap=True)
    to.print(state.headline, style="bold", soft_wrap=True)
    for name, path in state.files.items():
        to.print(f"{name}: {path}", soft_wrap=True)


def _arguments(first: str, second: str | None, settings: list[str]) -> tuple[str | None, str, list[str]]:
    """Return the model's folder, the pool and the settings."""
    if common.is_model(Path(first)):
        if second is None:
            raise typer.BadParameter("name the pool after the model's folder")
        common.check_model_and_table(Path(first), second)
        return first, second, settings
    if second is not None and "=" not in second:
        common.check_model_and_table(Path(first), second)
        raise typer.BadParameter(f"{first} is no model folder")
    return None, first, [*([second] if second is not None else []), *settings]
