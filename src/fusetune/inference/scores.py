"""Scores of a table's rows, by the network alone or with what predicts beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.inference.features import encoded
from fusetune.inference.predict import predict_logits
from fusetune.models.family import Family
from fusetune.tasks.base import Task
from fusetune.types import Tokens


class Ensemble(Protocol):
    """What predicts beside a network, from features of its own, such as boosted trees."""

    def features(self, model: Family, examples: Examples) -> dict[str, Tokens]:
        """Return the features of every distinct cell, by column."""
        ...

    def unmoved(self, model: Family, features: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Return those of the features that are the tuned encoders' too."""
        ...

    def scores(
        self,
        name: str,
        task: Task,
        network: np.ndarray,
        examples: Examples,
        indices: np.ndarray,
        features: Mapping[str, Tokens],
    ) -> np.ndarray:
        """Return the scores of both together, (rows, ...), from the network's."""
        ...


def predict_scores(
    model: Family,
    tasks: Mapping[str, Task],
    examples: Examples,
    *,
    stack: Ensemble | None = None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Return per task the scores of the used rows, in their order.

    Args:
        model: tuned.
        tasks: by name.
        examples: prepared rows, at least one of them used.
        stack: what predicts beside the model, if anything does.
        progress: wraps iterators.
    """
    if stack is None:
        logits = predict_logits(model, examples, examples.used, progress=progress)
        return {name: task.answers(logits[name]) for name, task in tasks.items()}
    features = stack.features(model, examples)
    rows = encoded(model, examples, stack.unmoved(model, features))
    logits = predict_logits(model, rows, rows.used, progress=progress)
    return {
        name: stack.scores(name, task, task.answers(logits[name]), rows, rows.used, features)
        for name, task in tasks.items()
    }
