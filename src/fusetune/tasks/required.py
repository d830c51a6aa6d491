"""What objectives require of tasks, and what they compute of several tasks at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from fusetune.errors import ConfigError
from fusetune.tasks.abilities import Ability, Divergent
from fusetune.tasks.base import TargetTask
from fusetune.types import Tokens

A = TypeVar("A", bound=Ability)


def divergence_of(
    tasks: Mapping[str, Divergent],
    logits: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    columns: Mapping[str, Tokens],
) -> Tensor:
    """Return the divergence of two predictions for the same rows, summed over tasks, (batch,).

    Args:
        tasks: by target; one or more.
        logits, other: by target, the predictions, as `Outputs.logits`.
        columns: the projected tokens, as `Outputs.columns`: which tokens of a text are real.
    """
    parts = []
    for name, task in tasks.items():
        real = () if task.reads is None else (columns[task.reads].mask,)
        parts.append(task.divergence(logits[name], other[name], *real))
    return torch.stack(parts).sum(0)


def require(tasks: Mapping[str, TargetTask], ability: type[A], *, where: str) -> dict[str, A]:
    """Return the tasks by target, after checking that all have an ability.

    Args:
        tasks: the tasks by target.
        ability: the required ability.
        where: the setting that needs it: "objectives.rdrop".

    Raises:
        ConfigError: a task lacks it.
    """
    able = {name: task for name, task in tasks.items() if isinstance(task, ability)}
    lacking = [name for name in tasks if name not in able]
    if lacking:
        raise ConfigError(
            f"{where} needs {ability.ability}, which the task {tasks[lacking[0]].name} does not have",
            expected=f"a target with {ability.ability}" + (f", as {', '.join(map(repr, able))}" if able else ""),
            came=", ".join(f"{name!r}, {tasks[name].name}" for name in lacking),
            do=f"leave {where} out, or choose another task for the target",
        )
    return able


def require_row_answers(tasks: Mapping[str, TargetTask], *, where: str) -> None:
    """Check that every task answers once a row.

    Args:
        tasks: the tasks by target.
        where: the setting that needs it: "objectives.mixup".

    Raises:
        ConfigError: a task answers token by token.
    """
    by_token = [f"{name!r}, {task.name}" for name, task in tasks.items() if task.reads is not None]
    if by_token:
        raise ConfigError(
            f"{where} needs targets with one answer a row",
            came=f"{', '.join(by_token)}, answered token by token",
            do=f"leave {where} out",
        )
