"""The total loss: Σ task losses + Σ weight · objective."""

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
"""Settings whose names are reserved words in Python, and their arguments' names."""

RepresentationGradients = Mapping[str, Mapping[str, Tensor]]
"""By batch objective's name, then by the name of one of its vectors or parameters: its loss's gradient there."""


def standalone_objective(settings: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the first objective that can be minimised without a task, or None."""
    return next((name for name in settings if OBJECTIVES.get(name).standalone), None)


def learning_without_target(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the objectives that learn from rows without a target."""
    return [name for name in settings if not OBJECTIVES.get(name).needs_target]


def trained_dims(settings: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """Return the widths below that of whole vectors that the objectives train, the greatest first."""
    return sorted({int(dim) for options in settings.values() for dim in options.get("dims", ())}, reverse=True)


def aligned_columns(settings: Mapping[str, Mapping[str, Any]], inputs: list[str]) -> list[str]:
    """Return the input columns that a fit without a target aligns: all, or those that the objective's options name.

    Args:
        settings: by objective's name, its options.
        inputs: the input columns.

    Raises:
        ConfigError: there are fewer than two columns, or a named one is not an input.
    """
    name = standalone_objective(settings)
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
        model: the model to be trained.
        tasks: fitted, by target.
        settings: by objective's name, its options.

    Raises:
        ConfigError: there is no such objective, or it does not have such an option.
    """
    built: list[Objective] = []
    for name, options in settings.items():
        built.append(OBJECTIVES.get(name)(model, tasks, **check_objective(name, options)))
    return built


def check_objective(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check an objective's options and return them by the constructor's argument names.

    Raises:
        ConfigError: there is no such objective, or it does not have such an option.
    """
    objective = OBJECTIVES.get(name)
    options = {PYTHON_NAMES.get(option, option): value for option, value in options.items()}
    check_options(objective, options, known=options_of(objective), where=f"objectives.{name}")
    return options


class Total(nn.Module):
    """Compute all terms of the total loss: the tasks' losses and the weighted objectives.

    Args:
        tasks: fitted, by target.
        objectives: to be minimised besides the tasks' losses.
        balance: how several tasks' losses are weighted; None adds them up as they are.
    """

    def __init__(
        self, tasks: Mapping[str, TargetTask], objectives: Sequence[Objective] = (), balance: Balance | None = None
    ) -> None:
        super().__init__()
        self.tasks = TaskLosses(tasks)
        self.balance = balance
        self.objectives = nn.ModuleList(objectives)

    def forward(
        self, model: nn.Module, batch: Batch, outputs: Outputs, gradients: RepresentationGradients | None = None
    ) -> dict[str, Tensor]:
        """Return the losses by name, each a scalar.

        Args:
            model: the model that computed the outputs.
            batch: the rows.
            outputs: the model's outputs for these rows.
            gradients: for batch objectives whose loss was computed before (see
                `fusetune.training.updates.grad_cache`). Their loss is replaced by "surrogate/OBJECTIVE", whose gradient
                is that loss's gradient.

        Returns:
            By the task's name, its loss; by "objective/NAME", an objective's loss times its weight.
        """
        losses: dict[str, Tensor] = self.tasks(model, batch, outputs)
        if self.balance is not None:
            losses = self.balance(losses, batch)
        for objective in self.objectives:
            assert isinstance(objective, Objective)
            if gradients is not None and objective.name in gradients:
                assert isinstance(objective, BatchObjective)
                tensors = {**objective.vectors(batch, outputs), **own_parameters(objective)}
                losses[f"surrogate/{objective.name}"] = surrogate_loss(tensors, gradients[objective.name])
                continue
            for name, loss in objective(model, batch, outputs).items():
                losses[f"objective/{name}"] = loss * objective.weight
        return losses

    def batch_objectives(self) -> list[BatchObjective]:
        """Return the objectives that compare rows with one another."""
        return [objective for objective in self.objectives if isinstance(objective, BatchObjective)]

    def start_update(self) -> None:
        """Tell the objectives that an update starts."""
        for objective in self.objectives:
            assert isinstance(objective, Objective)
            objective.start_update()

    def end_update(self) -> None:
        """Tell the objectives that an update was made."""
        for objective in self.objectives:
            assert isinstance(objective, Objective)
            objective.end_update()

    def figures(self) -> dict[str, Tensor]:
        """Return the figures of tasks, objectives and balance for the last batch, by the name to log them under."""
        balance = self.balance.figures if self.balance is not None else {}
        logged = self.tasks.figures | {f"balance/{name}": value for name, value in balance.items()}
        for objective in self.objectives:
            assert isinstance(objective, Objective)
            logged |= {f"objective/{objective.name}/{name}": value for name, value in objective.figures.items()}
        return logged


def own_parameters(objective: BatchObjective) -> dict[str, Tensor]:
    """Return an objective's parameters, their names prefixed so that they differ from those of its vectors."""
    return {f"parameter/{name}": parameter for name, parameter in objective.named_parameters()}


def surrogate_loss(tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """Return Σ tensor · gradient, a scalar whose gradient at each tensor is the given one."""
    return torch.stack([(tensors[name] * gradient).sum() for name, gradient in gradients.items()]).sum()
