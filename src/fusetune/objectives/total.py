"""The total loss: sum of the task losses + sum of weight x objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.config.options import check_options
from fusetune.errors import ConfigError
from fusetune.models.build import options_of
from fusetune.models.family import Family
from fusetune.objectives.balance import Balance
from fusetune.objectives.base import BatchObjective, Objective
from fusetune.objectives.tasks import TaskLosses
from fusetune.registry import OBJECTIVES
from fusetune.tasks.base import TargetTask
from fusetune.types import Batch, Outputs

PYTHON_NAMES = {"lambda": "lam"}
"""Settings whose name is none in Python."""

Pulls = Mapping[str, Mapping[str, Tensor]]
"""By batch objective and by name of its vectors, or of its own parameters: the gradient of its loss at them."""


def lone_objective(settings: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first of the objectives that can be minimised without a task, or None."""
    return next((name for name in settings if OBJECTIVES.get(name).alone), None)


def aligned_columns(settings: Mapping[str, Mapping[str, Any]], inputs: list[str]) -> list[str]:
    """The input columns that a fit without a target aligns: all, or those that the objective names.

    Args:
        settings: per objective's name, its options.
        inputs: the input columns.

    Raises:
        ConfigError: fewer than two, or one that is no input.
    """
    name = lone_objective(settings)
    options = settings[name] if name else {}
    named = list(options.get("columns") or inputs)
    if options.get("anchor") and options["anchor"] not in named:
        named.insert(0, options["anchor"])
    unknown = [name for name in named if name not in inputs]
    if unknown or len(named) < 2:
        raise ConfigError(
            f"{unknown[0]!r} is no input column" if unknown else "there is nothing to align",
            expected=f"two or more of {', '.join(inputs)}",
            do="name them: objectives.contrastive.columns=[image,text], or name a target: --target COLUMN",
        )
    return named


def build_objectives(
    model: Family, tasks: Mapping[str, TargetTask], settings: Mapping[str, Mapping[str, Any]]
) -> list[Objective]:
    """Build the objectives that a run's settings name.

    Args:
        model: what will be trained.
        tasks: fitted, by target.
        settings: per objective's name, its options.

    Raises:
        ConfigError: no such objective, or an option that it does not take.
    """
    built: list[Objective] = []
    for name, options in settings.items():
        built.append(OBJECTIVES.get(name)(model, tasks, **check_objective(name, options)))
    return built


def check_objective(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return an objective's options under their names in Python, after checking them.

    Raises:
        ConfigError: no such objective, or an option that it does not take.
    """
    objective = OBJECTIVES.get(name)
    options = {PYTHON_NAMES.get(option, option): value for option, value in options.items()}
    check_options(objective, options, known=options_of(objective), where=f"objectives.{name}")
    return options


class Total(nn.Module):
    """Every task's loss by the task's name, and every objective's, times its weight, by "objective/NAME".

    Attributes:
        balance: what the tasks' losses count where there are several, else None.
    """

    def __init__(
        self, tasks: Mapping[str, TargetTask], objectives: Sequence[Objective] = (), balance: Balance | None = None
    ) -> None:
        super().__init__()
        self.tasks = TaskLosses(tasks)
        self.balance = balance
        self.objectives = nn.ModuleList(objectives)

    def forward(
        self, model: nn.Module, batch: Batch, outputs: Outputs, pulls: Pulls | None = None
    ) -> dict[str, Tensor]:
        """Return the losses by name, each a scalar.

        Args:
            model: what gave the outputs.
            batch: the rows.
            outputs: of the model for these rows.
            pulls: of objectives that compared these rows with others already; instead of their loss there is
                "pull/OBJECTIVE", the sum of vectors and parameters times pulls: its gradient is the loss's by these.
        """
        losses: dict[str, Tensor] = self.tasks(model, batch, outputs)
        if self.balance is not None:
            losses = self.balance(losses, batch)
        for objective in self.objectives:
            assert isinstance(objective, Objective)
            if pulls is not None and objective.name in pulls:
                assert isinstance(objective, BatchObjective)
                own = {**objective.vectors(batch, outputs), **own_parameters(objective)}
                losses[f"pull/{objective.name}"] = pulled(own, pulls[objective.name])
                continue
            for name, loss in objective(model, batch, outputs).items():
                losses[f"objective/{name}"] = loss * objective.weight
        return losses

    def compared(self) -> list[BatchObjective]:
        """Return the objectives that compare rows with one another."""
        return [objective for objective in self.objectives if isinstance(objective, BatchObjective)]

    def figures(self) -> dict[str, Tensor]:
        """Return the figures of the objectives and of the balance, as of the last batch, to be logged."""
        balance = self.balance.figures if self.balance is not None else {}
        found = {f"balance/{name}": value for name, value in balance.items()}
        for objective in self.objectives:
            assert isinstance(objective, Objective)
            found |= {f"objective/{objective.name}/{name}": value for name, value in objective.figures.items()}
        return found


def own_parameters(objective: BatchObjective) -> dict[str, Tensor]:
    """Return an objective's parameters by names that no vectors have."""
    return {f"parameter/{name}": parameter for name, parameter in objective.named_parameters()}


def pulled(vectors: Mapping[str, Tensor], pulls: Mapping[str, Tensor]) -> Tensor:
    """Return Σ of vectors times pulls, a scalar."""
    return torch.stack([(vectors[name] * pull).sum() for name, pull in pulls.items()]).sum()
