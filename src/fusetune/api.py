"""What users call: `fit`, `load`, `evaluate`, `schema_of`. The only place where the parts are put together."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.config.config import Config
from fusetune.data.schema import Schema
from fusetune.data.table import Source, Table
from fusetune.deploy.bundle import write_metrics
from fusetune.deploy.card import write_card
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.predictions import Predictions
from fusetune.deploy.rows import Rows
from fusetune.deploy.tuned import (
    Precision,
)
from fusetune.errors import ConfigError
from fusetune.evaluation.measure.evaluate import Evaluation
from fusetune.evaluation.report.write import write_report
from fusetune.fitting.arguments import names_table, read_settings, resolve_arguments, target_names
from fusetune.fitting.check import check_process
from fusetune.fitting.estimate import Estimate, estimate_fit
from fusetune.fitting.fit import run_fit
from fusetune.fitting.own_metrics import attach
from fusetune.fitting.prepared import RunSettings
from fusetune.fitting.run_folder import RunFolder, interrupted
from fusetune.fitting.saved import reporting
from fusetune.security.model_folder import BUNDLE
from fusetune.tasks.main_metric import Metric
from fusetune.training.callbacks import Callback
from fusetune.training.deadline import Deadline
from fusetune.training.hardware.devices import choose_threads, processes
from fusetune.training.progress import print_line

__all__ = ["FineTuned", "Predictions", "dry_run", "evaluate", "fit", "load", "schema_of"]

OwnMetric = Metric | Callable[..., Any]


def fit(
    train: Source | list[Source] | None = None,
    target: str | Sequence[str] | None = None,
    *,
    val: Source | None = None,
    test: Source | None = None,
    catalogue: Source | None = None,
    user: str | None = None,
    item: str | None = None,
    users: Source | None = None,
    out: str | Path | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    resume: bool | None = None,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> FineTuned:
    """Tune a model on a table, compare it with what it must beat, and save it.

    Args:
        train: rows to learn from, or a list of tables, drawn from as `data.mix` says; None where the config names them.
        target: the column, or columns, to predict.
        val: rows that choose the best step; split off from `train` where None.
        test: rows that the report is made on and that choose nothing; split off from `train` where None.
        catalogue: the documents that rows with a query name by a key, if they have a table of their own; or the items
            that users are recommended.
        user: the column of users, if rows are interactions of a user with an item.
        item: the column of items.
        users: what is known about users, a row for each, with the column `user`.
        out: the folder for the model and its report; a temporary one where None, which `FineTuned.folder` names.
        config: settings, or a YAML file of them. `trainer.metric` may be a function, or a `Metric` with one.
        overrides: settings on top: `["trainer.epochs=5"]` or `{"trainer": {"epochs": 5}}`.
        resume: what of a run that was stopped in the folder: True goes on with it, False begins anew and deletes its
            checkpoints, None refuses. Where there is none, a run begins; True gives a finished one as it is.
        overwrite: whether a finished model in `out` may be replaced.
        progress: whether to show progress on standard error: bars on a terminal, else plain lines.
        callbacks: watch the tuning, its updates and its evaluations on validation rows. What one raises ends the fit.

    Raises:
        UserError: something in the table or the settings has to be put right; see `fusetune.errors`.
        RunError: the run failed. A `ReportError` says that the model is tuned and saved, and its report is not made.
        Interrupted: a signal came while it was training; a checkpoint was written.
    """
    start = time.monotonic()
    check_process()
    given = {"train": train, "val": val, "test": test, "catalogue": catalogue, "users": users}
    asked, functions = read_settings(config, overrides)
    settings, sources = resolve_arguments(given, target, _with_sides(asked, user, item), out)
    folder = Path(settings.out) if settings.out else Path(tempfile.mkdtemp(prefix="fusetune-"))
    settings = settings.with_absolute_paths()  # the saved config.yaml means the same wherever it is read
    choose_threads()
    with RunFolder(folder, settings, resume=resume, overwrite=overwrite) as place:
        if place.finished:
            return load(folder)
        deadline = Deadline(settings.trainer.minutes, start=start)
        bundle, results = run_fit(RunSettings(settings, sources, place, progress, deadline, functions, callbacks))
        tuned = FineTuned(bundle, folder=folder, results=results)
        if processes().is_main_process:
            with reporting(folder):
                write_report(results, folder)
                write_card(bundle, results, folder)
                write_metrics(bundle, folder)
            place.finish()
            if progress and not settings.out:
                print_line(f"the model is in {folder}, a temporary folder; save(FOLDER) keeps it")
    return tuned


def dry_run(
    train: Source | list[Source] | None = None,
    target: str | Sequence[str] | None = None,
    *,
    val: Source | None = None,
    test: Source | None = None,
    catalogue: Source | None = None,
    user: str | None = None,
    item: str | None = None,
    users: Source | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    progress: bool = True,
) -> Estimate:
    """Estimate what `fit` would take, from a few batches of every stage; nothing is trained or kept.

    The arguments are those of `fit`. Cells are read as they would be, and the process takes the memory that it would.

    Raises:
        UserError: something in the table or the settings has to be put right; see `fusetune.errors`.
    """
    given = {"train": train, "val": val, "test": test, "catalogue": catalogue, "users": users}
    asked, functions = read_settings(config, overrides)
    settings, sources = resolve_arguments(given, target, _with_sides(asked, user, item), None)
    settings = settings.with_overrides({"data": {"cache": "none"}}).with_absolute_paths()
    choose_threads()
    with tempfile.TemporaryDirectory(prefix="fusetune-") as folder, RunFolder(Path(folder) / "run", settings) as place:
        estimate = estimate_fit(RunSettings(settings, sources, place, progress, functions=functions))
        (place.folder / "rejected.jsonl").unlink(missing_ok=True)
    return estimate


def _with_sides(settings: Config, user: str | None, item: str | None) -> Config:
    """Return settings with the columns of users and items that are given."""
    sides = {name: column for name, column in (("user", user), ("item", item)) if column is not None}
    return settings.with_overrides(sides) if sides else settings


def resume(folder: str | Path, *, progress: bool = True) -> FineTuned:
    """Go on with the run that was stopped in a folder, or give the model that it came to.

    Raises:
        ConfigError: there is neither.
    """
    folder = Path(folder)
    settings = interrupted(folder)
    if settings is None:
        if not (folder / BUNDLE).is_file():
            raise ConfigError(f"{folder} has no run to go on with", do="give the table again: fusetune fit TABLE ...")
        if progress:
            print_line(f"the run in {folder} was finished before: this is what it came to")
        return load(folder)
    if not names_table(settings.train):
        raise ConfigError(
            f"the run in {folder} learned from a table in memory, which is not in the folder",
            do="give the table again in Python: fit(table, ..., out=folder, resume=True)",
        )
    return fit(config=settings, out=folder, resume=True, overwrite=True, progress=progress)


def load(folder: str | Path, *, metric: OwnMetric | Mapping[str, OwnMetric] | None = None) -> FineTuned:
    """Read a saved model.

    Args:
        folder: as `fit` or `save` wrote it, or a folder of versions, of which the one in use is read.
        metric: a function that the model is measured by, or one per target, as in `trainer.metric`; a folder holds its
            name alone.

    Raises:
        FolderError: it is no model folder, or a broken or altered one.
        ConfigError: there is no such target, or it is no function.
    """
    tuned = FineTuned.from_folder(Path(folder))
    if metric is not None:
        attach(tuned.bundle.tasks, metric)
    return tuned


def evaluate(
    model: FineTuned | str | Path,
    source: Rows,
    *,
    catalogue: Source | None = None,
    slices: Sequence[str] = (),
    precision: Precision = "float32",
    missing_columns: Sequence[str] = (),
    progress: bool = False,
) -> Evaluation:
    """Measure a tuned model, or the one in a folder, on labelled rows; see `FineTuned.evaluate`."""
    tuned = model if isinstance(model, FineTuned) else load(model)
    options: dict[str, Any] = {"precision": precision, "missing_columns": missing_columns, "progress": progress}
    return tuned.evaluate(source, catalogue=catalogue, slices=slices, **options)


def schema_of(
    source: Source,
    *,
    target: str | Sequence[str] = (),
    columns: Mapping[str, Any] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> Schema:
    """Return what a table's columns are taken for, and why.

    Args:
        source: the table.
        target: the column, or columns, to predict.
        columns: what is known better: `{"year": {"kind": "number"}}`.
        overrides: settings, as `["data.read.decimal=,"]`; only columns, targets and `data.read` matter.
    """
    settings = Config.build({"target": target_names(target, source), "columns": dict(columns or {})})
    settings = settings.with_overrides(overrides) if overrides else settings
    read = settings.data.read
    table = Table.read(source, read=read)
    return Schema.detect(table, targets=settings.target, overrides=settings.schema_overrides(), read=read)
