"""Linear models on fixed features, as tasks fit them for the probe."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np


class LinearModel(abc.ABC):
    """A fitted linear model, as `Probed.linear` returns it."""

    @abc.abstractmethod
    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return answers, in the form of `TargetTask.answers`, for features of shape (rows, features)."""

    @abc.abstractmethod
    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Return weight (features, logits) and bias (logits,), for `TargetTask.answers(features @ weight + bias)`."""


@dataclass(frozen=True)
class LinearPath:
    """Linear models of the same rows under penalties from strong to weak (a regularisation path).

    Attributes:
        models: fitted as they are asked for; can be iterated once.
        default: the index of the model to use without validation rows.
    """

    models: Iterator[LinearModel]
    default: int

    def at(self, index: int) -> LinearModel:
        """Return the model of the penalty at an index, 0 for the strongest."""
        return next(islice(self.models, index, None))

    def best(self, score: Callable[[LinearModel], tuple[float, float]]) -> LinearModel:
        """Return the model with the largest score; of equal ones that with the strongest penalty."""
        scored = ((*score(model), -index, model) for index, model in enumerate(self.models))
        return max(scored, key=lambda one: one[:3])[3]
