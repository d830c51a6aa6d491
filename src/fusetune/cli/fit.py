"""`fusetune fit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusetune.cli import common
from fusetune.data.reading.remote import is_address
from fusetune.errors import ConfigError

if TYPE_CHECKING:
    from fusetune.api import FineTuned
    from fusetune.config.config import Config
    from fusetune.evaluation.results import RunResults
    from fusetune.fitting.estimate import Estimate

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


LISTS = ("query", "document", "negative")
"""Options that name one column or several."""

Source = Annotated[
    str,
    typer.Argument(metavar="TABLE|CONFIG|RUN", help="Table to learn from, .yaml of settings, or a stopped run."),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE|TABLE", help="Settings, as trainer.epochs=5; more tables."),
]
Query = Annotated[
    str | None, typer.Option(help="Columns of one side of pairs: title,description. In place of --target.")
]
Document = Annotated[str | None, typer.Option(help="Columns of the other side, which queries should find: photo.")]
Negative = Annotated[str | None, typer.Option(help="Columns of documents that the row's query should not find.")]
User = Annotated[str | None, typer.Option(help="Column of users, of rows of a user and an item. In place of --target.")]
Item = Annotated[str | None, typer.Option(help="Column of items, which are recommended to users.")]
Val = Annotated[str | None, typer.Option(help="Table to choose the best step on; else split off.")]
Test = Annotated[str | None, typer.Option(help="Table the report is made on; else split off.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; runs/TARGET if not given.")]
ConfigFile = Annotated[str | None, typer.Option("--config", "-c", help="A .yaml file of settings.")]
Objectives = Annotated[
    list[str] | None,
    typer.Option(help="What is minimised besides the task losses, or alone: contrastive. May be given again."),
]
SchemaFile = Annotated[str | None, typer.Option(help="A .yaml file that `fusetune schema` wrote, edited.")]
Resume = Annotated[
    bool | None,
    typer.Option("--resume/--no-resume", help="Go on with a run that was stopped in the folder, or begin anew."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the time and memory it would take; train nothing.")]


@app.command()
def fit(
    source: Source,
    settings: Settings = None,
    target: common.Target = None,
    query: Query = None,
    document: Document = None,
    negative: Negative = None,
    user: User = None,
    item: Item = None,
    val: Val = None,
    test: Test = None,
    out: Out = None,
    config: ConfigFile = None,
    objective: Objectives = None,
    schema: SchemaFile = None,
    resume: Resume = None,
    overwrite: common.Overwrite = False,
    dry_run: DryRun = False,
    as_json: common.Json = False,
) -> None:
    """Tune a model on a table; write the model folder and the report.

    The kinds of the columns, the task and the pretrained models are inferred; settings say otherwise.

    \b
    Examples:
      fusetune fit train.csv --target rating --out runs/rating
      fusetune fit train.csv -t rating trainer.epochs=5 fusion=gated
      fusetune fit config.yaml trainer.epochs=5
      fusetune fit runs/rating/config.yaml trainer.epochs=10 --out runs/longer
      fusetune fit films.csv books.csv -t rating data.mix=0.5
      fusetune fit pairs.csv --objective contrastive --out runs/aligned
      fusetune fit pairs.csv --query title,description --document photo --out runs/photos
      fusetune fit queries.csv --query question --document title,photo catalogue=items.csv
      fusetune fit ratings.csv --user user_id --item film_id catalogue=films.csv
      fusetune fit runs/rating --resume
      fusetune fit train.csv --target rating --dry-run
    """
    from fusetune import api

    progress = common.shows_progress(as_json)
    if resume and Path(source).is_dir() and (out is None or out == Path(source)):
        show(api.resume(source, progress=progress), as_json=as_json)
        return
    _refuse_model(source)
    train, config = _table_and_config(source, config)
    more = [setting for setting in settings or [] if "=" not in setting]
    _check_tables(train, more)
    sides = {"query": query, "document": document, "negative": negative, "user": user, "item": item}
    chosen = _chosen(config, settings, objective, schema, sides)
    tables = train if train is None else [train, *more]
    if dry_run:
        _print_estimate(api.dry_run(tables, target, val=val, test=test, config=chosen, progress=progress), as_json)
        return
    tuned = api.fit(
        tables,
        target=target,
        val=val,
        test=test,
        out=out or chosen.out or _folder_for(target or chosen.target or _names_of_sides(chosen)),
        config=chosen,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )
    show(tuned, as_json=as_json)


def _names_of_sides(config: Config) -> list[str]:
    ids = [name for name in (config.user, config.item) if name is not None]
    return ids or [*config.query, *config.document]


def _names(columns: str) -> list[str]:
    """Return columns that are separated by commas."""
    return [name.strip() for name in columns.split(",") if name.strip()]


def _refuse_model(source: str) -> None:
    """Refuse a model folder as the table to learn from.

    Raises:
        ConfigError: the source is a model folder.
    """
    if common.is_model(Path(source)):
        raise ConfigError(
            f"{source} is a model folder",
            expected="a table to learn from, a .yaml of settings, or a run with --resume",
            do=f"`fusetune fit {Path(source) / 'config.yaml'} --out FOLDER` runs its settings again",
        )


def _chosen(
    file: str | None,
    settings: list[str] | None,
    objectives: list[str] | None,
    schema: str | None,
    sides: Mapping[str, str | None],
) -> Config:
    """Return the settings of a file with those of the command line."""
    from fusetune.config.config import Config

    chosen = Config() if file is None else Config.from_yaml(file)
    chosen = chosen.with_overrides([setting for setting in settings or [] if "=" in setting])
    if objectives:
        chosen = chosen.with_overrides({"objectives": {name: {} for name in objectives}})
    if any(sides.values()):
        lists = {side: _names(names) if side in LISTS else names for side, names in sides.items() if names}
        chosen = chosen.with_overrides(lists)
    return chosen if schema is None else chosen.with_overrides({"schema_file": schema})


def _print_estimate(estimate: Estimate, as_json: bool) -> None:
    if as_json:
        common.print_json(estimate.to_json())
    else:
        common.console().print("\n".join(estimate.lines()), soft_wrap=True)


def _folder_for(targets: list[str]) -> Path:
    return Path("runs") / (re.sub(r"[^\w.-]+", "_", "-".join(targets)).strip("._") or "model")


def _table_and_config(source: str, config: str | None) -> tuple[str | None, str | None]:
    if not common.is_config(source):
        return source, config
    if config is not None:
        raise ConfigError(
            "there are two files of settings",
            expected="a table and --config, or one file of settings",
            came=f"{source} and {config}",
            do="name the table in the file, as `train: table.csv`",
        )
    return None, source


def _check_tables(train: str | None, more: list[str]) -> None:
    """Refuse words that are neither settings nor tables."""
    for word in more:
        if train is None or common.is_config(word):
            raise ConfigError(
                f"{word!r} stands beside a file of settings",
                expected="key=value, as trainer.epochs=5",
                do="name the tables in the file, as `train: [films.csv, books.csv]`",
            )
        if not (is_address(word) or Path(word).exists()):
            raise ConfigError(
                f"{word!r} is no setting, and there is no such table",
                expected="key=value, as trainer.epochs=5, or a further table to learn from",
                do="give tables to be measured on with --val and --test",
            )


def show(tuned: FineTuned, *, as_json: bool) -> None:
    """Print what a run found: the table of the report and where the folder is, or the whole report as JSON."""
    if not common.leads():
        return
    from fusetune.evaluation import results
    from fusetune.evaluation.report import verdict
    from fusetune.evaluation.report import write as report

    assert tuned.results is not None and tuned.folder is not None, "a fit has results and a folder"
    if as_json:
        common.print_json(results.to_json(tuned.results))
        return
    to = common.console()
    to.print(report.terminal_table(tuned.results))
    for warning in verdict.warnings_of(tuned.results):
        to.print(f"note: {warning}", markup=False)
    to.print(_cost(tuned.results), soft_wrap=True)
    to.print(f"model   {tuned.folder}", soft_wrap=True)
    to.print(f"report  {tuned.folder / 'report.html'}", soft_wrap=True)


def _cost(results: RunResults) -> str:
    """What was trained, and what it took."""
    seconds = sum(phase.seconds for phase in results.phases if phase.name == "tune")
    share = results.trained / max(results.parameters, 1)
    return (
        f"changed {results.trained:,} of {results.parameters:,} parameters ({share:.2%}) in {seconds:,.0f} s, "
        f"{results.updating:,.0f} s of them in updates, of which waiting for data took {results.waited:.1%}; "
        f"peak memory {results.peak_mb:,.0f} MB; "
        f"on {results.device} with {results.threads} thread{'' if results.threads == 1 else 's'}"
    )
