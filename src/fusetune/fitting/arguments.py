"""Resolve the arguments of `api.fit` to settings and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.config.config import Config
from fusetune.errors import ConfigError, shown
from fusetune.fitting.check import check_catalogue, check_interactions, check_settings
from fusetune.fitting.documents import CATALOGUE
from fusetune.fitting.own_metrics import check_functions, take_functions
from fusetune.fitting.tables import SPLITS
from fusetune.objectives.total import standalone_objective
from fusetune.tasks.main_metric import Metric
from fusetune.tasks.pairs import PairTask

USERS = "users"
"""The name under which a fit's sources have the table of users."""


def resolve_arguments(
    given: Mapping[str, Any], target: str | Sequence[str] | None, settings: Config, out: str | Path | None
) -> tuple[Config, dict[str, Any]]:
    """Return the complete settings, and the tables by split.

    Args:
        given: the tables under "train", "val", "test", "catalogue" and "users", None if not given; they take precedence
            over the settings.
        target: the target column or columns; takes precedence as well.
        settings: the settings.
        out: the folder for the model; takes precedence as well.

    Raises:
        ConfigError: there is no train table, or the settings are invalid.
    """
    explicit: dict[str, Any] = {}
    if target is not None and target != []:
        explicit["target"] = target_names(target, given["train"])
    for name, source in given.items():
        if source is not None and isinstance(source, str | Path):
            explicit[name] = {"path": str(source)} if name == CATALOGUE else str(source)
        elif isinstance(source, list) and all(isinstance(part, str | Path) for part in source):
            explicit[name] = [str(part) for part in source]
    if out is not None:
        explicit["out"] = str(out)
    settings = settings.with_overrides(explicit) if explicit else settings
    named = {name: getattr(settings, name) for name in (*SPLITS, USERS)}
    named |= {CATALOGUE: settings.catalogue.path}
    in_memory = {name: None if isinstance(source, str | Path) else source for name, source in given.items()}
    sources = named | {name: source for name, source in in_memory.items() if source is not None}
    if not names_table(sources["train"]):
        raise ConfigError("there is no table to learn from", do="name one: fusetune fit TABLE --target COLUMN")
    check_settings(settings)
    check_catalogue(settings, sources[CATALOGUE])
    check_interactions(settings, sources[USERS])
    objective = _objective_of_pairs(settings) if settings.query or settings.user is not None else None
    if objective is not None and objective not in settings.objectives:
        settings = settings.with_overrides({"objectives": {**settings.objectives, objective: {}}})
    return settings, sources


def _objective_of_pairs(settings: Config) -> str | None:
    """Return the objective that pairs are learned by; None if the settings name one that needs no target."""
    if settings.targets:
        return PairTask.learned_by
    usual = "contrastive" if settings.user is None else "sampled_softmax"
    return usual if standalone_objective(settings.objectives) is None else None


def names_table(train: Any) -> bool:
    """Return whether a train table is given."""
    return train is not None and not (isinstance(train, list) and not train)


def target_names(target: Any, source: Any) -> list[str]:
    """Return the targets' names as text; columns of a DataFrame may be named by numbers and tuples.

    Args:
        target: a name, or several.
        source: the train table.

    Raises:
        ConfigError: the target is neither a name nor a sequence of names.
    """
    known = getattr(source, "columns", ())
    if isinstance(target, str | int) or (isinstance(target, tuple) and target in list(known)):
        return [str(target)]
    if not isinstance(target, Iterable) or isinstance(target, bytes | Mapping):
        raise ConfigError("the target is no name", came=shown(target), do="give the column's name as text")
    return [str(name) for name in target]


def read_settings(
    config: Config | Mapping[str, Any] | str | Path | None, overrides: Sequence[str] | Mapping[str, Any]
) -> tuple[Config, dict[str, Metric]]:
    """Return the settings of a mapping, file or `Config` with the overrides applied, and the metric functions in them.

    Raises:
        ConfigError: the settings are invalid, or name a function that is not given.
    """
    functions: dict[str, Metric] = {}
    settings = _settings(take_functions(config, functions), take_functions(overrides, functions))
    check_functions(settings, functions)
    return settings, functions


def _settings(
    config: Config | Mapping[str, Any] | str | Path | None, overrides: Sequence[str] | Mapping[str, Any]
) -> Config:
    """Return the settings of a mapping, file or `Config`, with the overrides applied."""
    if config is None:
        settings = Config()
    elif isinstance(config, Config):
        settings = config
    elif isinstance(config, Mapping):
        settings = Config.build(config)
    else:
        settings = Config.from_yaml(config)
    return settings.with_overrides(overrides) if overrides else settings
