"""What a search of settings is about: the rows, split once; the settings as they are; the space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.api import fit
from fusetune.config.config import Config, merge, parse_override
from fusetune.config.space import Choice, Space, label_of, read_space, settings_of
from fusetune.data.table import Table
from fusetune.deploy.bundle import write_text
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.errors import ConfigError
from fusetune.fitting.arguments import read_settings, resolve_arguments
from fusetune.fitting.run_folder import RESUMABLE
from fusetune.fitting.run_folder import settings_of as run_settings
from fusetune.fitting.tables import Tables
from fusetune.fitting.tasks import make_tasks
from fusetune.lifecycle.searching.space import default_space, with_current
from fusetune.models.match import Match
from fusetune.security.untrusted import read_json, reading
from fusetune.tasks.base import family_of
from fusetune.training.callbacks import Callback

ASKED = "asked.json"
"""The file that says what the search in a folder was begun with."""
TRIAL: dict[str, Any] = {
    "report": {"alone": "none", "single": False, "zero_shot": False, "few_shot": 0, "attack": "none", "slices": []},
    "trainer": {"trackers": []},
}
TRIAL["report"] |= {"bootstrap": 0, "errors": 0}
"""Settings of every trial: its report is not read, so it compares nothing."""


@dataclass(frozen=True)
class Job:
    """What is searched, on what.

    Attributes:
        config: the settings as the user gave them: a file, a mapping, a `Config`; functions among them stay.
        overrides: nested settings on top.
        target: the column or columns, None if the settings name them.
        settings: both, resolved.
        rows: the tables under "train", "val" and perhaps "test".
        kinds: overrides that keep the columns' kinds what they are on the whole table.
        space: what is searched.
        current: the parameters of the settings as they are; None if they do not lie in the space.
        notes: sentences for the user.
    """

    config: Any
    overrides: Mapping[str, Any]
    target: str | Sequence[str] | None
    settings: Config
    rows: Mapping[str, Table]
    kinds: Mapping[str, Any]
    space: Space
    current: dict[str, Any] | None
    notes: list[str]

    def fit(
        self, folder: Path, params: Mapping[str, Any] | None, *, seed: int, callbacks: Sequence[Callback] = ()
    ) -> FineTuned:
        """Tune with a trial's parameters, or with the settings as they are for None; go on if it was stopped.

        Test rows are not read: the validation rows stand in their place.
        """
        overrides: dict[str, Any] = {}
        for part in (self.kinds, self.overrides, {} if params is None else settings_of(params, self.space), TRIAL):
            merge(overrides, part)
        merge(overrides, {"seed": seed})
        val = self.rows["val"]
        where: dict[str, Any] = {"out": folder, "resume": True, "overwrite": True, "progress": False}
        return fit(
            self.rows["train"],
            self.target,
            val=val,
            test=val,
            config=self.config,
            overrides=overrides,
            callbacks=callbacks,
            **where,
        )

    def best_settings(self, params: Mapping[str, Any] | None) -> Config:
        """Return the settings with a trial's parameters, or as they are, without a folder to write to."""
        settings = self.settings if params is None else self.settings.with_overrides(settings_of(params, self.space))
        return settings.with_absolute_paths().model_copy(update={"out": None})


def read_job(
    given: Mapping[str, Any],
    target: str | Sequence[str] | None,
    config: Config | Mapping[str, Any] | str | Path | None,
    overrides: Sequence[str] | Mapping[str, Any],
    space: str | Path | Mapping[str, Any] | None,
) -> Job:
    """Read the settings, the rows and the space; see `search_settings`.

    Raises:
        ConfigError: they are wrong, or the table is none that settings are searched on.
        TableError, SchemaError: a table cannot be read, or lacks a column.
    """
    laid: dict[str, Any] = dict(overrides) if isinstance(overrides, Mapping) else {}
    for override in () if isinstance(overrides, Mapping) else overrides:
        merge(laid, parse_override(override))
    asked, _ = read_settings(config, laid)
    settings, sources = resolve_arguments(given, target, asked, None)
    if settings.catalogue.path is not None or settings.user is not None or settings.negative:
        raise ConfigError(
            "settings are searched for tables whose rows have all that belongs to them",
            came="a catalogue, users and items, or columns of negatives",
            do="search on a table of pairs without these, and fit with the settings found",
        )
    tables = Tables(settings, sources)
    if "val" not in tables.splits:
        raise ConfigError("there are no validation rows", do="give some: --val TABLE, or a share in data.split")
    tasks = make_tasks(settings, tables.schema, tables.splits["train"])
    family = family_of(tasks) if tasks else Match.name
    kinds = {
        name: {"kind": spec.kind}
        for name, spec in tables.schema.columns.items()
        if spec.role == "input" and not spec.options.get("join")
    }
    asked_for = default_space(settings, tables.schema, family) if space is None else read_space(space, settings)
    wide, current, unknown = with_current(asked_for, settings)
    notes = []
    if unknown:
        notes.append(f"The settings as they are are no trial: {', '.join(unknown)} has no number now.")
    if "test" not in tables.splits:
        notes.append("There are no test rows: only validation rows, which chose the winner, measure it.")
    columns: dict[str, Any] = {"columns": kinds}
    return Job(config, laid, target, settings, tables.splits, columns, wide, None if unknown else current, notes)


def check_folder(folder: Path, job: Job, sampler: str) -> str:
    """Refuse a folder with a search of other settings, rows or space; return the name of the study.

    Raises:
        ConfigError: so it is.
    """
    settings = _without(run_settings(job.settings), {"train", "val", "test", *RESUMABLE} - {"trainer.minutes"})
    now = {"settings": settings, "space": _plain(job.space), "sampler": sampler}
    now["rows"] = {split: table_digest(table) for split, table in job.rows.items()}
    now = json.loads(json.dumps(now))
    path = folder / ASKED
    if path.is_file():
        with reading("what the search was begun with cannot be read", file=path, do="give another folder as --out"):
            before = dict(read_json(path))
        changed = [name for name in now if before.get(name) != now[name]]
        if "settings" in changed:
            parts = [name for name in settings if before.get("settings", {}).get(name) != now["settings"][name]]
            changed[changed.index("settings")] = f"settings ({', '.join(parts)})"
        if changed:
            raise ConfigError(
                f"the search in {folder} was begun with other {', '.join(changed)}",
                expected="what it was begun with: trials that differ in more than the space do not compare",
                do="give another folder as --out, or delete this one",
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(now, indent=1))
    return "fusetune-" + hashlib.sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()[:16]


def _without(settings: Mapping[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Return nested settings without those of these dotted names."""
    return {
        key: _without(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if f"{prefix}{key}" not in names
    }


def _plain(space: Space) -> dict[str, Any]:
    return {
        key: [label_of(value) for value in parameter.values]
        if isinstance(parameter, Choice)
        else parameter.model_dump()
        for key, parameter in space.items()
    }


def table_digest(table: Table) -> str:
    """Return the SHA-256 of a table's columns and cells; of a media cell it is the path that counts."""
    sums = hashlib.sha256()
    data = table.arrow
    for name in data.column_names:
        sums.update(json.dumps([name, len(data)]).encode())
        for value in data.column(name).to_pylist():
            sums.update(repr(value).encode("utf-8", "replace") + b"\0")
    return sums.hexdigest()


def metric_of(tuned: FineTuned) -> str:
    """Return the name of the score: the main metric, with a minus where lower is better."""
    assert tuned.results is not None, "a fit has a report"
    names = [("" if task.greater_is_better else "\N{MINUS SIGN}") + task.metric for task in tuned.results.tasks]
    return names[0] if len(names) == 1 else "mean of the main metrics"


def score(tuned: FineTuned) -> float:
    """Return the mean over targets of the main metric on the rows of the fit's report, higher is better."""
    assert tuned.results is not None, "a fit has a report"
    values = []
    for task in tuned.results.tasks:
        after = task.first("after")
        assert after is not None
        values.append(task.main(after).value * (1 if task.greater_is_better else -1))
    return float(sum(values) / len(values))
