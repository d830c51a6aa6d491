"""The arguments of a training: rows, goal, initialisation, context."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.data.examples import Examples
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.objectives.base import Objective
from fusetune.tasks.base import TargetTask
from fusetune.training.alignment import Alignment, Identity
from fusetune.training.callbacks import Callback
from fusetune.training.checkpoints.checkpoint_manager import CheckpointManager
from fusetune.training.deadline import Deadline
from fusetune.training.probes.probe import StartingPoint
from fusetune.training.score_error import ScoreError
from fusetune.types import Tokens

Evaluate = Callable[[Examples], tuple[float, float, dict[str, dict[str, float]]]]
"""Maps validation rows to (loss, score, metrics by task) of the model in its present state."""


@dataclass(frozen=True)
class TrainingRows:
    """The rows of a training, and the outputs of frozen encoders for them.

    Attributes:
        train: prepared train rows.
        val: prepared validation rows, which choose the best step.
        train_features: the result of `fill_features` for `train`.
        val_features: the result of `fill_features` for `val`.
        probe_only: (rows of the table,) bool, the train rows that the tune stage does not draw; None for none.
    """

    train: Examples
    val: Examples
    train_features: Mapping[str, Tokens]
    val_features: Mapping[str, Tokens]
    probe_only: np.ndarray | None = None

    @property
    def tuned(self) -> Examples:
        """The train rows that the tune stage draws."""
        if self.probe_only is None:
            return self.train
        return self.train.of(np.flatnonzero(~self.probe_only[self.train.used]))

    def for_objectives(self, objectives: Sequence[Objective]) -> TrainingRows:
        """Return these rows without train rows that have no target, unless an objective learns from such rows."""
        if all(objective.needs_target for objective in objectives):
            return replace(self, train=self.train.with_target())
        return self

    def given(self, columns: Collection[str], *, augmented: bool) -> tuple[Examples, Examples]:
        """Return the tune stage's train rows and the validation rows, with the features of some columns.

        Other columns are encoded in every batch.

        Args:
            columns: columns whose features are still valid.
            augmented: whether augmented columns of the train rows use the features of their original cells.
        """
        reusable = (
            columns if augmented else [name for name in columns if name not in self.train.augmentation.augmenters]
        )
        return (
            self.tuned.given(
                features={name: self.train_features[name] for name in reusable if name in self.train_features}
            ),
            self.val.given(features={name: self.val_features[name] for name in columns if name in self.val_features}),
        )


@dataclass(frozen=True)
class Goal:
    """What is minimised and measured.

    Attributes:
        tasks: fitted, by name.
        objectives: the options of each objective that is minimised besides the task losses, by name.
        evaluator: returns the function that evaluates the model, given the objectives and the score's standard error,
            which the first evaluation measures. None: `evaluate_loss` of the tasks.
        also: further objectives, which are built already.
    """

    tasks: Mapping[str, TargetTask]
    objectives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evaluator: Callable[[Sequence[Objective], ScoreError], Evaluate] | None = None
    also: Sequence[Objective] = ()


@dataclass(frozen=True)
class Start:
    """What a model is initialised from.

    Attributes:
        probes: by task, the linear model on the frozen features. Without one, the head starts as the task built it.
        alignment: what the projections start as, in a family without heads.
    """

    probes: Mapping[str, StartingPoint] = field(default_factory=dict)
    alignment: Alignment | Identity | None = None


@dataclass(frozen=True)
class RunContext:
    """The environment of a training.

    Attributes:
        seed: of shuffling and dropout.
        cache: stores the outputs of frozen lower layers. None: they run in every batch.
        manager: writes checkpoints, and may hold one to resume from.
        log_dir: folder that trackers write to; None for no trackers.
        bar: whether to show progress.
        deadline: the time at which training stops early, with its best step so far.
        callbacks: watch the training besides.
    """

    seed: int = 0
    cache: FeatureCache | None = None
    manager: CheckpointManager = field(default_factory=CheckpointManager)
    log_dir: Path | None = None
    bar: bool = False
    deadline: Deadline = field(default_factory=Deadline)
    callbacks: Sequence[Callback] = ()
