"""The contract of a task: one target column, from cells to a loss, predictions and metrics."""

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
    """A metric's name and whether more of it is better."""

    name: str
    greater_is_better: bool = True


class Task(abc.ABC):
    """One target column: encodes it, owns head, loss, answers, metrics, report panels and the trivial comparison.

    Answers are numpy arrays whose first axis is the rows. Everything after the model works on answers, so that a
    baseline, a probe and the tuned model are judged alike. What only some tasks can do is in
    `fusetune.tasks.abilities`.
    """

    name: ClassVar[str]
    main: Metric
    """The metric that decides the best step and is the headline; `measure_by` chooses another of the task's."""

    def __init__(self, target: str) -> None:
        self.target = target

    @classmethod
    @abc.abstractmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """How well a sample of the target's cells (none missing) fits this task."""

    @abc.abstractmethod
    def fit(self, values: Sequence[Any]) -> None:
        """Learn labels, scale and the like from the train rows' cells; missing ones are skipped.

        Raises:
            TableError: nothing can be learned from them, as when there is one class only.
        """

    @abc.abstractmethod
    def check(self, value: Any, *, row: int) -> None:
        """Refuse a cell that `encode` cannot take, after `fit`.

        Raises:
            BadCell: not a value of this target, as a label that no train row has.
        """

    @abc.abstractmethod
    def encode(self, values: Sequence[Any]) -> Target:
        """Cells (missing ones give unlabelled rows) as tensors."""

    @abc.abstractmethod
    def build_head(self, dim: int) -> nn.Module:
        """A module from (batch, dim) to this task's logits; it holds whatever parameters the loss needs."""

    @abc.abstractmethod
    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return each row's loss, (batch,): finite also where a row is unlabelled.

        A row's loss is summed over what it consists of (class weight x cross-entropy, or the sum over its tokens); what
        it is divided by is in `target.sizes`, which is known before the forward pass, so that an update made of several
        micro-batches and processes has one denominator.

        Args:
            logits: (batch, ...), as the head gives them, in float32 or wider.
            target: of the same rows.
        """

    def loss(self, logits: Tensor, target: Target, weights: Tensor) -> Tensor:
        """Return the mean loss of the labelled rows, a scalar: sum of weight x loss / sum of weight x size.

        It is 0, with a gradient, where no row is labelled.

        Args:
            logits: (batch, ...).
            target: of the same rows.
            weights: (batch,) row weights, 0 or more.
        """
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        losses, weights = self.terms(logits, target), weights.to(logits.dtype)
        total = target.counts(weights).sum()
        return (losses * weights * target.labelled).sum() / total.clamp(min=torch.finfo(total.dtype).tiny)

    @abc.abstractmethod
    def answers(self, logits: Tensor) -> np.ndarray:
        """Return what the logits come to on the scale people read, a row each.

        Probabilities, (rows, classes); numbers in the target's unit, (rows,); or, for a task that answers with a list
        or a text a row, an array of dtype object, (rows,).
        """

    @abc.abstractmethod
    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return cells (none missing) as answers are compared with them, a row each: class indices, a 0/1 matrix,
        numbers, or an array of dtype object that holds lists or texts."""

    def measured(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return what the metrics need of each row, (rows, k): a score, or counts that are added up over rows.

        Whatever it costs to compare an answer with the truth is paid here, once a row; the bootstrap draws from its
        rows. By default the answers themselves, which must be figures.

        Args:
            answers: (rows, ...) as `answers` gives them.
            truth: (rows, ...) as `truth` gives it.
        """
        return answers[:, None] if answers.ndim == 1 else answers

    @abc.abstractmethod
    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the field's metrics under the field's names; a metric that is undefined here is nan.

        Args:
            measured: (rows, k) as `measured` gives it, of any choice of rows.
            truth: (rows, ...) of the same rows.
            weights: (rows,) or None.
        """

    def measure_by(self, name: str, truth: np.ndarray) -> None:
        """Make another of the task's metrics the main one, after `fit`.

        Args:
            name: the metric's.
            truth: (rows, ...) of some rows, as `truth` gives it.

        Raises:
            ConfigError: the task has no such metric.
        """
        known = list(self.evaluate(self.constant(truth, len(truth)), truth))
        if name not in known:
            raise ConfigError(
                f"trainer.metric: {self.name} has no metric called {name!r}",
                expected=", ".join(known),
                do=nearest(name, known) or f"trainer.metric.{self.target}=NAME chooses one for this target alone",
                column=self.target,
            )
        self.main = Metric(name, name not in LOWER_IS_BETTER)

    def main_value(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
        """Return the main metric alone; a task for which that is much quicker than `metrics` overrides it."""
        return self.metrics(measured, truth, weights)[self.main.name]

    def evaluate(self, answers: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the metrics of answers: `measured`, then `metrics`."""
        return self.metrics(self.measured(answers, truth), truth, weights)

    @property
    def meanings(self) -> Mapping[str, str]:
        """By metric, what it is in plain words, for those whose name does not say."""
        return MEANINGS

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return what the report draws of a model's answers, besides its metrics: nothing by default."""
        return []

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return what the report draws of the target itself, as its balance of classes: nothing by default.

        Args:
            truths: per split, as `truth` gives it.
        """
        return []

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return at most `num` of the worst errors for people to look at: none by default."""
        return WorstRows("", [])

    @abc.abstractmethod
    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """The answers of the best constant guess learned from `truth`, for so many rows: majority, rates or mean."""

    @abc.abstractmethod
    def columns(self, answers: np.ndarray) -> dict[str, list[Any]]:
        """The output table's columns for these answers: the prediction under the target's name, then details."""

    def decide(self, answers: np.ndarray) -> np.ndarray:
        """Answers as decisions, in the form of `truth`: class indices, a 0/1 matrix, or the numbers themselves."""
        return answers

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the answers' columns; empty for numbers."""
        return []

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything `from_state` needs, as JSON."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> Task:
        """The task that `state()` described."""


class LinearModel(abc.ABC):
    """A fitted linear model: what `Probed.linear` returns."""

    @abc.abstractmethod
    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores as `Task.answers` gives them, for (rows, features)."""

    @abc.abstractmethod
    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight (features, logits) and bias (logits,): `Task.answers(features @ weight + bias)` are the answers."""
