"""Functions given as `trainer.metric`: the settings, which are text, hold their names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fusetune.config.config import Config
from fusetune.errors import ConfigError, all_at_once, nearest
from fusetune.tasks.base import Task
from fusetune.tasks.main_metric import CALL, Metric


def take_functions(settings: Any, functions: dict[str, Metric]) -> Any:
    """Return settings in which each function of `trainer.metric` is its name, as "profit()".

    Args:
        settings: nested settings; anything else is returned as it is.
        functions: by name; those of these settings are added.

    Raises:
        ConfigError: two functions have one name.
    """
    trainer = settings.get("trainer") if isinstance(settings, Mapping) else None
    if not isinstance(trainer, Mapping) or trainer.get("metric") is None:
        return settings
    metric = trainer["metric"]
    if isinstance(metric, Mapping):
        named: Any = {target: _name(given, functions) for target, given in metric.items()}
    else:
        named = _name(metric, functions)
    return settings if named is metric else {**settings, "trainer": {**trainer, "metric": named}}


def _name(given: Any, functions: dict[str, Metric]) -> Any:
    if not isinstance(given, Metric) and not callable(given):
        return given
    metric = Metric.of(given)
    if metric.function is None:
        return metric.name
    if functions.setdefault(metric.name + CALL, metric) != metric:
        raise ConfigError(
            f"trainer.metric: two functions are called {metric.name!r}",
            do=f"name them: Metric('{metric.name}_2', function=...)",
        )
    return metric.name + CALL


def check_functions(config: Config, functions: Mapping[str, Metric]) -> None:
    """Refuse settings that name a function which is not there, as those of a saved run do.

    Raises:
        ConfigError: give the function.
    """
    asked = config.trainer.metric
    named = asked.values() if isinstance(asked, Mapping) else [asked]
    lost = [name for name in named if name is not None and name.endswith(CALL) and name not in functions]
    if lost:
        name = lost[0].removesuffix(CALL)
        raise ConfigError(
            f"trainer.metric={lost[0]} is a function, which settings and folders do not hold",
            do=f'give it in Python: ft.fit(..., overrides={{"trainer": {{"metric": {name}}}}}); or name one of the '
            "task's metrics",
        )


def choose_metrics(
    asked: str | Mapping[str, str] | None,
    tasks: Mapping[str, Task],
    truths: Mapping[str, Any],
    functions: Mapping[str, Metric],
) -> None:
    """Make the metrics that the settings name the tasks' main ones.

    Args:
        asked: `trainer.metric`.
        tasks: fitted, by target.
        truths: by target, the truth of some train rows, (rows, ...).
        functions: by the name that the settings have for them.

    Raises:
        ConfigError: a task has no such metric, there is no such target, or a function cannot be used.
    """
    if isinstance(asked, Mapping) and (lost := [name for name in asked if name not in tasks]):
        do = nearest(lost[0], tasks)
        raise ConfigError(f"trainer.metric.{lost[0]} is the metric of no target", expected=", ".join(tasks), do=do)
    chosen = dict.fromkeys(tasks, asked) if isinstance(asked, str) else dict(asked or {})
    all_at_once(
        partial(tasks[name].measure_by, functions.get(metric, metric), truths[name])
        for name, metric in chosen.items()
        if metric is not None
    )


def weightless(tasks: Mapping[str, Task], weight: str | None) -> list[str]:
    """Return a warning for each metric whose function does not take the weights that the rows have.

    Args:
        tasks: by target.
        weight: the column of weights, if any.
    """
    if weight is None:
        return []
    mains = [task.main for task in tasks.values()]
    names = sorted({main.name for main in mains if main.function is not None and not main.takes_weights})
    return [
        f"{name} has no parameter sample_weight: in it all rows count alike, whatever {weight!r} says" for name in names
    ]


def attach(tasks: Mapping[str, Task], given: Any) -> None:
    """Measure loaded tasks by functions.

    Args:
        tasks: by target.
        given: a function or `Metric` for all tasks, or one per target.

    Raises:
        ConfigError: there is no such target, or it is no function.
    """
    by_target: Mapping[str, Any] = given if isinstance(given, Mapping) else dict.fromkeys(tasks, given)
    for target, function in by_target.items():
        if target not in tasks:
            do = nearest(str(target), tasks)
            raise ConfigError(f"metric: the model has no target {target!r}", expected=", ".join(tasks), do=do)
        task = tasks[target]
        if isinstance(function, str):
            raise ConfigError("metric takes a function", came=repr(function), expected="a function or a Metric")
        task.main = Metric.of(function)
