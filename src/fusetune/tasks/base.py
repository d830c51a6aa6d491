"""The contract of tasks: answers, truth and metrics; of a target column also its encoding, head and loss."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError, nearest
from fusetune.modalities.base import Detection
from fusetune.tasks.metrics import LOWER_IS_BETTER, MEANINGS
from fusetune.tasks.panels.kinds import Evidence, Panel, Section, WorstRows
from fusetune.types import Target


@dataclass(frozen=True)
class Metric:
    """A metric's name, and whether greater values are better."""

    name: str
    greater_is_better: bool = True


class Task(abc.ABC):
    """What a model is measured by: answers, metrics, report panels and constant guess.

    Answers are numpy arrays whose first axis is the rows. Everything after the model works on answers, so that a
    baseline, a probe and the tuned model are measured in the same way. A task that predicts a column is a
    `TargetTask`.

    Attributes:
        target: the name that results are reported under; the column, in a `TargetTask`.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    """The family of models that has the task's answers."""
    main: Metric
    """The main metric: it selects the best step and is in the report's headline. `measure_by` changes it."""

    def __init__(self, target: str) -> None:
        self.target = target

    def measured(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return each row's input to the metrics, (rows, k): a score, or counts that are summed over rows.

        Expensive comparisons of an answer with the truth belong here: they run once per row, and the bootstrap draws
        from the result. The default returns the answers, which must be numeric.

        Args:
            answers: (rows, ...).
            truth: (rows, ...) of the same rows.
        """
        return answers[:, None] if answers.ndim == 1 else answers

    @abc.abstractmethod
    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the metrics under their usual names; an undefined metric is nan.

        Args:
            measured: (rows, k) as `measured` returns it, for any selection of rows.
            truth: (rows, ...) of the same rows.
            weights: (rows,) or None.
        """

    @abc.abstractmethod
    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return the best constant guess (majority, rates or mean of `truth`) as answers for `rows` rows."""

    def measure_by(self, name: str, truth: np.ndarray) -> None:
        """Make another of the task's metrics the main one. Call it after `fit`.

        Args:
            name: the metric's name.
            truth: (rows, ...) of some rows.

        Raises:
            ConfigError: the task has no such metric.
        """
        names = list(self.evaluate(self.constant(truth, len(truth)), truth))
        if name not in names:
            raise ConfigError(
                f"trainer.metric: {self.name} has no metric called {name!r}",
                expected=", ".join(names),
                do=nearest(name, names) or f"trainer.metric.{self.target}=NAME chooses one for this target alone",
                column=self.target,
            )
        self.main = Metric(name, name not in LOWER_IS_BETTER)

    def main_value(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
        """Return the main metric only. Override it if this is much faster than `metrics`."""
        return self.metrics(measured, truth, weights)[self.main.name]

    def evaluate(self, answers: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the metrics of answers: `measured`, then `metrics`."""
        return self.metrics(self.measured(answers, truth), truth, weights)

    @property
    def meanings(self) -> Mapping[str, str]:
        """Explanations of metrics in plain words, by name."""
        return MEANINGS

    def warnings(self, answers: np.ndarray, truth: np.ndarray) -> list[str]:
        """Return what to know about a model's answers before it is used, one sentence each; none by default.

        Args:
            answers: (rows, ...), at least one row.
            truth: (rows, ...) of the same rows.
        """
        return []

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return the report's sections about a model's answers, beside its metrics; none by default."""
        return []

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return at most `num` of the worst errors; none by default."""
        return WorstRows("", [])

    @property
    def labels(self) -> list[str]:
        """The class names in the order of the answers' columns; empty for numbers."""
        return []

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the fitted state as JSON data."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> Task:
        """Restore a task from its `state()`."""


class TargetTask(Task):
    """A task that predicts one target column: its encoding, head and loss terms, and the output table's columns.

    Abilities that only some of these tasks have are in `fusetune.tasks.abilities`.
    """

    family = "understand"

    @classmethod
    @abc.abstractmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Return how well a sample of the target's cells (none missing) fits this task."""

    @abc.abstractmethod
    def fit(self, values: Sequence[Any]) -> None:
        """Learn labels, scale and similar state from the train rows' cells, skipping missing ones.

        Raises:
            TableError: the cells are not usable, for example because they have one class only.
        """

    @abc.abstractmethod
    def check(self, value: Any, *, row: int) -> None:
        """Refuse a cell that `encode` does not accept. Call it after `fit`.

        Raises:
            BadCell: the cell is not a value of this target, for example a label that no train row has.
        """

    @abc.abstractmethod
    def encode(self, values: Sequence[Any]) -> Target:
        """Encode cells as tensors; missing cells give unlabelled rows."""

    @abc.abstractmethod
    def build_head(self, dim: int) -> nn.Module:
        """Build a module from (batch, dim) to the task's logits, with all parameters that the loss needs."""

    @abc.abstractmethod
    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return each row's loss, (batch,), finite for unlabelled rows too.

        A row's loss is a sum (class weight x cross-entropy, or the sum over its tokens). Its denominator is in
        `target.sizes`, which is known before the forward pass, so that all micro-batches and processes of an update
        share one denominator.

        Args:
            logits: (batch, ...), the head's output, in float32 or wider.
            target: the encoded targets of the same rows.
        """

    def loss(self, logits: Tensor, target: Target, weights: Tensor) -> Tensor:
        """Return the mean loss of the labelled rows, a scalar: sum of weight x loss / sum of weight x size.

        It is 0, with a gradient, if no row is labelled.

        Args:
            logits: (batch, ...).
            target: the encoded targets of the same rows.
            weights: (batch,) row weights, 0 or more.
        """
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        losses, weights = self.terms(logits, target), weights.to(logits.dtype)
        total = target.counts(weights).sum()
        return (losses * weights * target.labelled).sum() / total.clamp(min=torch.finfo(total.dtype).tiny)

    @abc.abstractmethod
    def answers(self, logits: Tensor) -> np.ndarray:
        """Convert logits to answers, one per row.

        Answers are probabilities, (rows, classes); numbers in the target's unit, (rows,); or, for a task that answers
        with a list or a text per row, an array of dtype object, (rows,).
        """

    @abc.abstractmethod
    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Convert cells (none missing) to the form that answers are compared with, one per row.

        The truth is class indices, a 0/1 matrix, numbers, or an array of dtype object with lists or texts.
        """

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return the report's panels about the target, such as its class balance; none by default.

        Args:
            truths: the truth per split, as `truth` returns it.
        """
        return []

    @abc.abstractmethod
    def columns(self, answers: np.ndarray) -> dict[str, list[Any]]:
        """Return the output table's columns: the prediction under the target's name, then details."""

    def decide(self, answers: np.ndarray) -> np.ndarray:
        """Return the decisions, in the form of `truth`: class indices, a 0/1 matrix, or numbers."""
        return answers

    @classmethod
    @abc.abstractmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> TargetTask:
        """Restore a task from its `state()`."""


class LinearModel(abc.ABC):
    """A fitted linear model, as `Probed.linear` returns it."""

    @abc.abstractmethod
    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return answers, in the form of `TargetTask.answers`, for features of shape (rows, features)."""

    @abc.abstractmethod
    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Return weight (features, logits) and bias (logits,), for `TargetTask.answers(features @ weight + bias)`."""


def target_tasks(tasks: Mapping[str, Task]) -> dict[str, TargetTask]:
    """Return those of the tasks that predict a target column."""
    return {name: task for name, task in tasks.items() if isinstance(task, TargetTask)}
