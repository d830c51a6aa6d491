"""What only some tasks can do. A part that needs an ability asks `isinstance(task, Probed)`, never for a task's class.

| ability | a task that has it | who asks |
| --- | --- | --- |
| `Probed` | can be learned by a linear model on fixed features | the frozen probe, modalities alone |
| `Divergent` | tells how far two predictions are apart | R-Drop, VAT |
| `Labelled` | has rows that are alike by their labels | supervised contrastive loss |
| `Boosted` | can be learned by gradient-boosted trees | `fusion: stack` |
| `Thresholded` | chooses on validation rows how answers become decisions | the fit, once its model is tuned |
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch import Tensor

from fusetune.errors import ConfigError
from fusetune.tasks.base import LinearModel, Task


class Ability(Task):
    """A task with something that not every task has.

    Attributes:
        ability: what that is, for error messages: "a divergence between two predictions".
    """

    ability: ClassVar[str]


A = TypeVar("A", bound=Ability)


class Probed(Ability):
    """A task that a linear model on fixed features can learn."""

    ability = "a linear model on fixed features"

    @abc.abstractmethod
    def linear(
        self,
        features: np.ndarray,
        truth: np.ndarray,
        val_features: np.ndarray,
        val_truth: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> LinearModel:
        """Fit a regularised linear model on fixed features, its strength chosen on the validation rows.

        Args:
            features: (rows, features) of the train rows, on scales that the penalty may compare.
            truth: (rows, ...) as `Task.truth` gives it.
            val_features, val_truth: the validation rows'; may have no rows.
            weights: (rows,) of the train rows, 0 or more.
        """


class Divergent(Ability):
    """A task that tells how far two predictions are apart."""

    ability = "a divergence between two predictions"

    @abc.abstractmethod
    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """Return how far two predictions for the same rows are apart, (batch,): 0 for equal ones, else above 0.

        Where logits give probabilities it is KL(logits || other) in nats, the mean over a row's labels or thresholds
        where it has several, as in the loss; for numbers it is the squared difference on the learned scale. Gradients
        flow into both.

        Args:
            logits, other: (batch, ...) each.
        """


class Labelled(Ability):
    """A task whose rows are alike where they share a label.

    Its encoded target is a class index a row, (batch,) int64, or a 0/1 vector over labels, (batch, labels).
    """

    ability = "labels that rows can share"


class Thresholded(Ability):
    """A task that chooses on validation rows how answers become decisions."""

    ability = "thresholds"

    @abc.abstractmethod
    def tune(self, answers: np.ndarray, truth: np.ndarray) -> None:
        """Choose the thresholds on validation rows, where the task's options ask for it.

        Args:
            answers: (rows, ...) as `Task.answers` gives them.
            truth: (rows, ...) as `Task.truth` gives it.
        """


class Boosted(Ability):
    """A task that gradient-boosted trees can learn: one booster, or several that each learn a part of the answer."""

    ability = "boosted trees"

    @property
    @abc.abstractmethod
    def num_boosters(self) -> int:
        """How many boosters the task needs, at least 1."""

    @property
    def trees_per_round(self) -> int:
        """How many trees a booster grows a round: one, or one a class."""
        return 1

    @abc.abstractmethod
    def boosting(self, truth: np.ndarray, booster: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return LightGBM's parameters for what a booster minimises, and the (rows,) labels that it learns.

        Args:
            truth: (rows, ...) as `Task.truth` gives it; may have no rows.
            booster: 0 to `num_boosters` - 1.
        """

    @abc.abstractmethod
    def boosted_logits(self, raw: Sequence[np.ndarray]) -> np.ndarray:
        """Turn the boosters' raw scores into logits in the form that the task's head gives.

        Args:
            raw: per booster (rows,), or (rows, trees_per_round) where it grows several trees a round.
        """

    @abc.abstractmethod
    def row_losses(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return a proper score a row, (rows,), lower is better: log loss in nats of probabilities, squared error of
        numbers.

        Args:
            answers: (rows, ...) as `Task.answers` gives them.
            truth: (rows, ...) as `Task.truth` gives it.
        """


def require(tasks: Mapping[str, Task], ability: type[A], *, where: str) -> dict[str, A]:
    """Return the tasks by target, refusing those that lack an ability.

    Args:
        tasks: by target.
        ability: what is needed.
        where: the setting that needs it: "objectives.rdrop".

    Raises:
        ConfigError: a task lacks it.
    """
    able = {name: task for name, task in tasks.items() if isinstance(task, ability)}
    lacking = [name for name in tasks if name not in able]
    if lacking:
        raise ConfigError(
            f"{where} needs {ability.ability}, which the task {tasks[lacking[0]].name} has not",
            expected=f"a target with {ability.ability}" + (f", as {', '.join(map(repr, able))}" if able else ""),
            came=", ".join(f"{name!r}, {tasks[name].name}" for name in lacking),
            do=f"leave {where} out, or choose another task for the target",
        )
    return able
