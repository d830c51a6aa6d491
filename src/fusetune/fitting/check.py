"""Check a run's settings before any table is read, and report all problems at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fusetune._private import imports_main
from fusetune.config.config import Config
from fusetune.config.fusion import AutoConfig, StackConfig, neural
from fusetune.errors import ConfigError, all_at_once, nearest
from fusetune.models.build import check_fusion, check_task
from fusetune.objectives.total import check_objective
from fusetune.registry import FUSIONS
from fusetune.training.hardware.devices import check_trackers


def check_process() -> None:
    """Refuse to fit in a worker process that only imports the main script.

    Raises:
        ConfigError: the script has no main guard.
    """
    if imports_main():
        raise ConfigError(
            "fit was called by a worker process, which runs the main script to import it",
            expected='a script whose code stands under `if __name__ == "__main__":`',
            do="put it there, or take trainer.workers=0",
        )


def check_settings(config: Config) -> None:
    """Refuse parts, options and trackers that do not exist, and values out of range.

    Raises:
        ConfigError: something is invalid; the message lists all problems.
    """
    all_at_once(_checks(config))


def _checks(config: Config) -> Iterator[Callable[[], object]]:
    fusion = neural(config.fusion)
    if not isinstance(fusion, AutoConfig):
        yield partial(check_fusion, fusion)
    for target, task in config.tasks.items():
        if config.target and config.schema_file is None:
            yield partial(_check_target, target, config)
        if task.name is not None:
            yield partial(check_task, target, task.name, task.options)
    if config.query or config.document:
        yield partial(_check_sides, config)
    for name, options in config.objectives.items():
        yield partial(check_objective, name, options)
    if config.trainer.trackers != type(config.trainer)().trackers:
        yield partial(check_trackers, config.trainer.trackers)


def _check_sides(config: Config) -> None:
    """Refuse pairs of which a side is missing, shares a column with the other, or is beside a target.

    Raises:
        ConfigError: so it is.
    """
    if not config.query or not config.document:
        lost = "document" if config.query else "query"
        raise ConfigError(f"pairs have two sides, and {lost} is not given", do=f"name its columns: --{lost} COLUMN")
    sides = [*config.query, *config.document]
    if twice := sorted({name for name in sides if sides.count(name) > 1}):
        raise ConfigError(f"{twice[0]!r} is named twice in query and document", expected="each column on one side")
    if config.target:
        raise ConfigError(
            "there are a target and pairs",
            expected="--target, or --query and --document",
            came=f"target {', '.join(config.target)}",
            do="leave the target out, or fit two models",
        )
    if isinstance(config.fusion, AutoConfig | StackConfig):
        raise ConfigError(
            f"fusion={config.fusion.name} needs a target",
            expected=", ".join(name for name in FUSIONS),
            do="name one of these for both sides, or leave fusion out",
        )


def check_catalogue(config: Config, source: Any) -> None:
    """Refuse a catalogue without pairs, and its settings without a catalogue.

    Args:
        config: the settings.
        source: the table of documents, or None.

    Raises:
        ConfigError: the settings contradict each other.
    """
    if source is not None and not config.query:
        raise ConfigError(
            "a catalogue holds the documents of pairs, and there are no pairs",
            expected="--query with columns of the query table, and --document with columns of the catalogue",
            do="name them, or leave the catalogue out",
        )
    if source is None and config.catalogue != type(config.catalogue)():
        raise ConfigError("catalogue has settings and no table", do="name it: catalogue.path=items.csv")


def _check_target(name: str, config: Config) -> None:
    targets = [*config.target, *(column for column, spec in config.columns.items() if spec.role == "target")]
    if name not in targets:
        raise ConfigError(
            f"tasks.{name} is the task of no target",
            expected=", ".join(targets),
            do=nearest(name, targets) or f"add --target {name}, or leave it out",
        )
