"""`fusetune label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusetune.cli import common
from fusetune.errors import ConfigError

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def label(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] POOL [KEY=VALUE]...",
            help="A model's folder, if there is one; rows without labels; settings, without a model: image=FOLDER.",
        ),
    ],
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

    model, pool, settings = _parts(arguments)
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
        overrides=settings,
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


def _parts(arguments: list[str]) -> tuple[str | None, str, list[str]]:
    """Return the model's folder, the pool and the settings.

    Raises:
        ConfigError: there is no pool, more than one, or the model's folder comes after it.
    """
    tables = [name for name in arguments if "=" not in name or Path(name).exists()]
    settings = [name for name in arguments if name not in tables]
    if len(tables) == 2:
        common.check_model_and_table(Path(tables[0]), tables[1])
    models = [name for name in tables if common.is_model(Path(name))]
    if len(tables) - len(models) != 1 or len(tables) > 2:
        raise ConfigError(
            "the arguments are not a model's folder and a pool",
            expected="[RUN] POOL [KEY=VALUE]...: a model's folder, or none, and one table",
            came=" ".join(arguments),
        )
    return (models[0] if models else None), tables[-1], settings
