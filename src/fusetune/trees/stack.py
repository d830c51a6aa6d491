"""Blend the predictions of a network and of boosted trees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fusetune import _private
from fusetune.data.examples import Examples
from fusetune.inference.features import fill_features
from fusetune.models.family import Family
from fusetune.tasks.abilities import Boosted
from fusetune.tasks.base import TargetTask
from fusetune.training.probes.probe import Features
from fusetune.trees.boost import tree_scores
from fusetune.trees.view import LinearLogits, TreeFeatures, rows_with_columns
from fusetune.types import Tokens


@dataclass
class Blend:
    """The trees of one task.

    Attributes:
        weight: the weight of the trees' answers, in (0, 1]; the network's is 1 - weight.
        boosters: LightGBM boosters from `fusetune.trees.boost`.
        line: the linear model whose logits are features of the trees, or None.
        needed: columns that a row must have for its trees to be used; see `TreeFeatures.needed`.
    """

    weight: float
    boosters: list[Any]
    line: LinearLogits | None
    needed: list[str]


class Stack:
    """Boosted trees beside a network.

    answers = (1 - weight) * network's answers + weight * trees' answers: probabilities, or numbers in the target's
    unit. The trees read the outputs of untuned encoders, because tuned ones were trained on the train rows' targets.
    So the stack holds an untuned copy of every encoder that tuning changed.

    Args:
        view: computes the trees' features of a row.
        blends: by task, its trees.
        frozen: by key, untuned copies of the encoders that tuning changed.
    """

    def __init__(self, view: TreeFeatures, blends: Mapping[str, Blend], frozen: Mapping[str, nn.Module]) -> None:
        self.view, self.blends, self.frozen = view, dict(blends), dict(frozen)

    def features(self, model: Family, examples: Examples) -> dict[str, Tokens]:
        """Return the untuned encoders' outputs for every distinct cell, by column.

        Args:
            model: the tuned model; encoders that tuning did not change are taken from it.
            examples: prepared rows.
        """
        untuned = _private.shallow_copy(model)  # shares all modules with the model, except these encoders
        device = next(model.parameters()).device
        frozen = {key: encoder.to(device) for key, encoder in self.frozen.items()}
        untuned.encoders = nn.ModuleDict({**dict(model.encoders.items()), **frozen})
        return fill_features(untuned, examples.given(features={}))

    def unmoved(self, model: Family, features: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Return the features of the columns whose encoders tuning did not change."""
        return {name: tokens for name, tokens in features.items() if model.routes[name] not in self.frozen}

    def trees(
        self, name: str, task: TargetTask, examples: Examples, indices: np.ndarray, features: Features
    ) -> np.ndarray:
        """Return the trees' answers for rows, in the form of `TargetTask.answers`.

        Args:
            name: the task's name, a key of `blends`.
            task: fitted.
            examples: prepared rows.
            indices: (rows,) positions in the table.
            features: from `features`.
        """
        blend = self.blends[name]
        logits = blend.line.logits(examples, indices, features) if blend.line is not None else None
        assert isinstance(task, Boosted), "only such tasks have trees"
        return tree_scores(task, blend.boosters, self.view.matrix(examples, indices, features, logits))

    def scores(
        self,
        name: str,
        task: TargetTask,
        network: np.ndarray,
        examples: Examples,
        indices: np.ndarray,
        features: Features,
    ) -> np.ndarray:
        """Return the blended answers; a row that lacks a needed column, or a task without trees, has the network's.

        Args:
            name, task, examples, indices, features: see `trees`.
            network: (rows, ...) the network's answers.
        """
        if name not in self.blends:
            return network
        complete = rows_with_columns(examples, indices, self.blends[name].needed)
        if not complete.any():
            return network
        scores = network.copy()
        trees = self.trees(name, task, examples, indices[complete], features)
        scores[complete] = mix(network[complete], trees, self.blends[name].weight)
        return scores


def mix(network: np.ndarray, trees: np.ndarray, weight: float) -> np.ndarray:
    """Return (1 - weight) * network + weight * trees."""
    return (1 - weight) * network + weight * trees
