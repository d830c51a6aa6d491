"""Scores of a table's rows, by the network alone or by an ensemble with another predictor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.inference.answers import answers_of
from fusetune.inference.features import encoded
from fusetune.inference.predict import predict_logits
from fusetune.models.family import Family
from fusetune.tasks.base import TargetTask
from fusetune.types import Tokens


class Ensemble(Protocol):
    """A predictor that is combined with a network and has its own features, such as boosted trees."""

    def features(self, model: Family, examples: Examples) -> dict[str, Tokens]:
        """Return the predictor's features of every distinct cell, by column."""
        ...

    def unmoved(self, model: Family, features: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Return the features that equal the tuned encoders' outputs, as their encoders were not changed."""
        ...

    def scores(
        self,
        name: str,
        task: TargetTask,
        network: np.ndarray,
        examples: Examples,
        indices: np.ndarray,
        features: Mapping[str, Tokens],
    ) -> np.ndarray:
        """Combine the network's scores with the predictor's: (rows, ...)."""
        ...


def predict_scores(
    model: Family,
    tasks: Mapping[str, TargetTask],
    examples: Examples,
    *,
    stack: Ensemble | None = None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Compute the scores of the used rows, in their order, by task.

    Args:
        model: tuned.
        tasks: by name.
        examples: prepared rows, at least one of them used.
        stack: the predictor combined with the model; None for the model alone.
        progress: wraps iterators.
    """
    if stack is None:
        logits = predict_logits(model, examples, examples.used, progress=progress)
        return {name: answers_of(examples, task, logits[name], examples.used) for name, task in tasks.items()}
    features = stack.features(model, examples)
    rows = encoded(model, examples, stack.unmoved(model, features))
    logits = predict_logits(model, rows, rows.used, progress=progress)
    return {
        name: stack.scores(name, task, answers_of(rows, task, logits[name], rows.used), rows, rows.used, features)
        for name, task in tasks.items()
    }
