"""What a training is given: rows, what is minimised, where the model starts, where it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusetune.data.examples import Examples
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.objectives.base import Objective
from fusetune.tasks.base import TargetTask
from fusetune.training.alignment import Alignment
from fusetune.training.checkpoint_manager import CheckpointManager
from fusetune.training.deadline import Deadline
from fusetune.training.probe import Probe
from fusetune.training.score_error import ScoreError
from fusetune.types import Tokens

Evaluate = Callable[[Examples], tuple[float, float, dict[str, dict[str, float]]]]
"""From validation rows to (loss, score, metrics by task) of the model as it is."""


@dataclass(frozen=True)
class TrainingRows:
    """The rows of a training, with what frozen encoders make of them.

    Attributes:
        train: prepared rows to learn from.
        val: prepared rows that choose the best step.
        train_features: `fill_features` of train.
        val_features: `fill_features` of val.
    """

    train: Examples
    val: Examples
    train_features: Mapping[str, Tokens]
    val_features: Mapping[str, Tokens]

    def for_objectives(self, objectives: Sequence[Objective]) -> TrainingRows:
        """Return these rows without train rows that have no target, unless an objective learns from such rows."""
        if all(objective.needs_target for objective in objectives):
            return replace(self, train=self.train.with_target())
        return self

    def given(self, columns: Collection[str], *, augmented: bool) -> tuple[Examples, Examples]:
        """Return train and validation rows with the features of some columns; their other cells are encoded anew.

        Args:
            columns: whose features still hold.
            augmented: whether augmented train cells have the features of the cells as they are.
        """
        seen = columns if augmented else [name for name in columns if name not in self.train.augmentation.augmenters]
        return (
            self.train.given(
                features={name: self.train_features[name] for name in seen if name in self.train_features}
            ),
            self.val.given(features={name: self.val_features[name] for name in columns if name in self.val_features}),
        )


@dataclass(frozen=True)
class Goal:
    """What is minimised and measured.

    Attributes:
        tasks: fitted, by name.
        objectives: what is minimised besides the task losses: per name, its options.
        evaluator: from the objectives and the score's standard error, which the first evaluation measures, to what
            evaluates the model; None: the tasks' losses and metrics.
    """

    tasks: Mapping[str, TargetTask]
    objectives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evaluator: Callable[[Sequence[Objective], ScoreError], Evaluate] | None = None


@dataclass(frozen=True)
class Start:
    """What a model starts from.

    Attributes:
        probes: per task, the linear model on the frozen features; without one, its head starts as the task made it.
        alignment: the linear maps that projections start from, in a family without heads.
    """

    probes: Mapping[str, Probe] = field(default_factory=dict)
    alignment: Alignment | None = None


@dataclass(frozen=True)
class RunContext:
    """Where a training runs.

    Attributes:
        seed: of shuffling and dropout.
        cache: keeps what the first trained layer of a partly frozen encoder reads; None: frozen layers run every time.
        manager: writes checkpoints, and may have one to resume from.
        log_dir: where trackers write; None for no trackers.
        bar: whether to show progress.
        deadline: when the training stops, though updates are left; it is finished at its best step so far.
    """

    seed: int = 0
    cache: FeatureCache | None = None
    manager: CheckpointManager = field(default_factory=CheckpointManager)
    log_dir: Path | None = None
    bar: bool = False
    deadline: Deadline = field(default_factory=Deadline)
