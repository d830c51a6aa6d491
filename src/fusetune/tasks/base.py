"""The contract of a task: one target column, from cells to a loss, predictions and metrics."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.modalities.base import Detection
from fusetune.types import Target


@dataclass(frozen=True)
class Metric:
    """A metric's name and whether more of it is better."""

    name: str
    greater_is_better: bool = True


class Task(abc.ABC):
    """One target column: encodes it, owns head, loss, decoding, metrics, and the trivial and linear comparisons.

    Scores are what `scores(logits)` gives: numpy, on the scale people read (probabilities, or the target's unit).
    Everything after the model works on scores, so that a baseline, a probe and the tuned model are judged alike.
    """

    name: ClassVar[str]
    main: ClassVar[Metric]

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
    def scores(self, logits: Tensor) -> np.ndarray:
        """Logits on the scale people read: (rows, classes) probabilities, or (rows,) in the target's unit."""

    @abc.abstractmethod
    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Cells (none missing) as the metrics want them: class indices, a 0/1 matrix, or numbers."""

    @abc.abstractmethod
    def metrics(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """The field's metrics under the field's names; a metric that is undefined here is nan."""

    def main_value(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
        """The main metric alone; a task for which that is much quicker than all of `metrics` overrides it."""
        return self.metrics(scores, truth, weights)[self.main.name]

    @abc.abstractmethod
    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """The scores of the best constant guess learned from `truth`, for so many rows: majority, rates or mean."""

    @abc.abstractmethod
    def columns(self, scores: np.ndarray) -> dict[str, list[Any]]:
        """The output table's columns for these scores: the prediction under the target's name, then details."""

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Scores as decisions, in the form of `truth`: class indices, a 0/1 matrix, or the numbers themselves."""
        return scores

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the scores' columns; empty for numbers."""
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
        """Scores as `Task.scores` gives them, for (rows, features)."""

    @abc.abstractmethod
    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight (features, logits) and bias (logits,): `Task.scores(features @ weight + bias)` are the scores."""
