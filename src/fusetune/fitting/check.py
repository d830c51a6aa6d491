"""Check a run's settings before any table is read, and report all problems at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fusetune._private import imports_main
from fusetune.config.config import Config
from fusetune.config.fusion import AutoConfig, StackConfig, neural
from fusetune.errors import ConfigError, all_at_once, nearest
from fusetune.fitting.negatives import check_mined
from fusetune.models.build import NO_FUSION, check_fusion, check_task
from fusetune.objectives.total import check_objective
from fusetune.registry import FUSIONS, OBJECTIVES, TASKS
from fusetune.tasks.infer import registered_target_tasks
from fusetune.tasks.pairs import PairTask
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
    if neural(fusion).name == NO_FUSION or "tied" in neural(fusion).options:
        yield partial(_check_unfused, config)
    for target, task in config.tasks.items():
        if config.target and config.schema_file is None:
            yield partial(_check_target, target, config)
        if task.name is not None:
            yield partial(check_task, target, task.name, task.options)
            yield partial(_check_task_of_pairs, target, task.name, config)
    if config.user is not None or config.item is not None:
        yield partial(_check_users, config)
    elif config.query or config.document:
        yield partial(_check_sides, config)
    if config.negative:
        yield partial(_check_negatives, config)
    if config.objectives.get("contrastive", {}).get("mine"):
        yield partial(check_mined, config)
    if config.rerank is not None:
        yield partial(_check_rerank, config)
    for name, options in config.objectives.items():
        yield partial(check_objective, name, options)
        yield partial(_check_family, name, config)
    if config.trainer.trackers != type(config.trainer)().trackers:
        yield partial(check_trackers, config.trainer.trackers)


def _check_sides(config: Config) -> None:
    """Refuse pairs that lack a side, whose sides share a column, or that have several targets.

    Raises:
        ConfigError: the pairs are such.
    """
    if not config.query or not config.document:
        lost = "document" if config.query else "query"
        raise ConfigError(f"pairs have two sides, and {lost} is not given", do=f"name its columns: --{lost} COLUMN")
    sides = [*config.query, *config.document]
    if twice := sorted({name for name in sides if sides.count(name) > 1}):
        raise ConfigError(f"{twice[0]!r} is named twice in query and document", expected="each column on one side")
    if len(config.targets) > 1:
        raise ConfigError(
            "pairs have several targets",
            expected="one column that says how alike both sides are, or none",
            came=", ".join(config.targets),
            do="name one of them, or fit several models",
        )
    if shared := sorted({*config.targets} & {*sides}):
        raise ConfigError(f"{shared[0]!r} is the target and a column of a side", do="leave it out of one of them")
    _check_fused(config)


def _check_fused(config: Config) -> None:
    """Refuse fusions that models of two sides do not have.

    Raises:
        ConfigError: the fusion is such.
    """
    if isinstance(config.fusion, AutoConfig | StackConfig):
        raise ConfigError(
            f"fusion={config.fusion.name} is not for pairs",
            expected=", ".join([*FUSIONS, NO_FUSION]),
            do="name one of these for both sides, or leave fusion out",
        )


def _check_users(config: Config) -> None:
    """Refuse users without items, one column for both, and settings of other tasks beside them.

    Raises:
        ConfigError: the settings are such.
    """
    if config.user is None or config.item is None:
        lost = "item" if config.item is None else "user"
        do = f"name its column: --{lost} COLUMN"
        raise ConfigError(f"a recommendation has users and items, and {lost} is not given", do=do)
    if config.user == config.item:
        raise ConfigError(f"{config.user!r} is both user and item", expected="a column of each")
    for name, given in (
        ("target", config.targets),
        ("query", config.query),
        ("negative", config.negative),
        ("catalogue.relevance", config.catalogue.relevance),
    ):
        if given:
            raise ConfigError(
                f"user and item do not go with {name}",
                came=given if isinstance(given, str) else ", ".join(given),
                do="take interactions.rating for ratings" if "relevance" in name else "leave one of them out",
            )
    if twice := [name for name in (config.user, config.item) if name in config.document]:
        raise ConfigError(
            f"{twice[0]!r} is named in document, too",
            expected="columns of the catalogue that describe items, besides their key",
            do="leave it out of document",
        )
    _check_fused(config)


def _check_negatives(config: Config) -> None:
    """Refuse negatives without pairs, beside a target or a document of several columns, and those that are a side.

    Raises:
        ConfigError: the negatives are such.
    """
    came = f"negative {', '.join(config.negative)}"
    if not config.query or not config.document:
        do = "name the columns of both sides, or leave it out"
        raise ConfigError("negatives are for pairs", expected="--query and --document", came=came, do=do)
    if config.targets:
        raise ConfigError(
            "there are negatives and a target",
            expected="negatives for pairs that are all matches, or a target that says which are",
            came=came,
            do="leave one of them out; as rows of their own, with a target of 0, negatives are learned beside scores",
        )
    if len(config.document) > 1:
        raise ConfigError(
            "negatives need a document of one column",
            expected="negatives of the kind of that column",
            came=f"document {', '.join(config.document)}",
            do="leave the negatives out, or take one column as the document",
        )
    columns = [*config.query, *config.document, *config.negative]
    if twice := sorted({name for name in columns if columns.count(name) > 1} & {*config.negative}):
        raise ConfigError(f"{twice[0]!r} is named twice in query, document and negative", do="name it once")


def check_catalogue(config: Config, source: Any) -> None:
    """Refuse a catalogue without pairs, and its settings without a catalogue.

    Args:
        config: the settings.
        source: the table of documents, or None.

    Raises:
        ConfigError: the settings contradict each other.
    """
    if source is not None and not config.query and config.user is None:
        raise ConfigError(
            "a catalogue holds the documents of pairs, and there are no pairs",
            expected="--query with columns of the query table, and --document with columns of the catalogue",
            do="name them, or leave the catalogue out",
        )
    if source is not None and config.targets:
        raise ConfigError(
            "a catalogue and a target do not go together",
            expected="pairs whose both sides are in one table beside a target",
            came=f"target {', '.join(config.targets)}",
            do="leave the target out, or name a column of relevance in the settings of the catalogue",
        )
    if source is not None and config.negative:
        raise ConfigError(
            "a catalogue and negatives do not go together",
            came=f"negative {', '.join(config.negative)}",
            do="give the negatives as rows of the catalogue, and leave negative out",
        )
    if source is None and config.catalogue != type(config.catalogue)():
        raise ConfigError("catalogue has settings and no table", do="name it: catalogue.path=items.csv")
    if source is None and config.user is not None and config.document:
        raise ConfigError(
            "document names columns of a catalogue, and there is none",
            came=", ".join(config.document),
            do="name it: catalogue=items.csv",
        )


def check_interactions(config: Config, users: Any) -> None:
    """Refuse settings of users and their rows where rows are not of users.

    Args:
        config: the settings.
        users: the table of users, or None.

    Raises:
        ConfigError: there are such settings.
    """
    if config.user is not None:
        return
    if users is not None or config.interactions != type(config.interactions)():
        name = "users" if users is not None else "interactions"
        raise ConfigError(
            f"{name} is for recommendations, and there are no users",
            expected="--user and --item with columns of the table",
            do="name them, or leave it out",
        )


def _check_rerank(config: Config) -> None:
    """Refuse a re-ranker without pairs of two columns, or beside a target.

    Raises:
        ConfigError: the settings are such.
    """
    if len(config.query) == 1 and len(config.document) == 1 and not config.targets:
        return
    raise ConfigError(
        "rerank reads a query and a document together, each of which is one text",
        expected="--query and --document with one column each, and no target",
        came=f"query {', '.join(config.query) or 'not given'}; document {', '.join(config.document) or 'not given'}"
        + (f"; target {', '.join(config.targets)}" if config.targets else ""),
        do="name one column of texts for each, or leave rerank out",
    )


def _check_unfused(config: Config) -> None:
    """Refuse sides that are not fused, or share projections, where there are no sides.

    Raises:
        ConfigError: there are none.
    """
    if not config.query and config.user is None:
        fusion = neural(config.fusion)
        raise ConfigError(
            "fusion=none is for the sides of pairs" if fusion.name == NO_FUSION else "fusion.tied is for pairs",
            expected="--query and --document",
            do="name the columns of both sides, or another fusion" if fusion.name == NO_FUSION else "leave it out",
        )


def _check_task_of_pairs(target: str, name: str, config: Config) -> None:
    """Refuse a task about pairs without pairs, and another task for the target of pairs.

    Raises:
        ConfigError: the task is such.
    """
    if name not in TASKS:
        return
    if issubclass(TASKS.get(name), PairTask) != bool(config.query):
        pairs = ", ".join(registered_target_tasks(PairTask.family))
        raise ConfigError(
            f"tasks.{target}={name} " + ("is no task about pairs" if config.query else "is about pairs"),
            expected=pairs if config.query else "--query and --document",
            do=f"take one of these, or leave query and document out to predict {target!r} from all columns"
            if config.query
            else "name the columns of both sides, or another task",
        )


def _check_family(name: str, config: Config) -> None:
    """Refuse an objective that cannot train the model of these settings.

    Raises:
        ConfigError: it trains models of pairs with a target only, and there are no such pairs.
    """
    if name in OBJECTIVES and OBJECTIVES.get(name).family == PairTask.family and not (config.query and config.targets):
        raise ConfigError(
            f"objectives.{name} learns pairs with a target",
            expected="--query, --document and --target",
            do="name the missing ones, or leave it out",
        )


def _check_target(name: str, config: Config) -> None:
    targets = config.targets
    if name not in targets:
        raise ConfigError(
            f"tasks.{name} is the task of no target",
            expected=", ".join(targets),
            do=nearest(name, targets) or f"add --target {name}, or leave it out",
        )
