"""A network's predictions and trees' predictions of the same rows, as one."""

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
from fusetune.training.probe import Features
from fusetune.trees.boost import tree_scores
from fusetune.trees.view import Line, View, has_all
from fusetune.types import Tokens


@dataclass
class Blend:
    """One task's trees.

    Attributes:
        weight: of the trees' scores, above 0 and at most 1; the network's has the rest.
        boosters: LightGBM's, as `fusetune.trees.boost` grows them.
        line: the linear model whose logits the trees see, or None.
        needed: columns without which a row is the network's alone; see `View.needed`.
    """

    weight: float
    boosters: list[Any]
    line: Line | None
    needed: list[str]


class Stack:
    """Trees beside a network.

    scores = (1 - weight) * network's scores + weight * trees' scores, on the scale people read: probabilities, or the
    target's unit. The trees see what encoders say that were never tuned, as those that were have seen the train rows'
    targets: where tuning moved an encoder, the stack keeps it as it was.
    """

    def __init__(self, view: View, blends: Mapping[str, Blend], frozen: Mapping[str, nn.Module]) -> None:
        """
        Args:
            view: what the trees see of a row.
            blends: per task that has trees.
            frozen: by key, encoders as they were before tuning moved them.
        """
        self.view, self.blends, self.frozen = view, dict(blends), dict(frozen)

    def features(self, model: Family, examples: Examples) -> dict[str, Tokens]:
        """What the untuned encoders say of every distinct cell.

        Args:
            model: tuned; its encoders that were not moved serve as they are.
            examples: prepared rows.
        """
        untuned = _private.shallow_copy(model)  # the model's own parts, but for these encoders
        device = next(model.parameters()).device
        kept = {key: encoder.to(device) for key, encoder in self.frozen.items()}
        untuned.encoders = nn.ModuleDict({**dict(model.encoders.items()), **kept})
        return fill_features(untuned, examples.given(features={}))

    def unmoved(self, model: Family, features: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Those of the features that are the tuned model's too."""
        return {name: tokens for name, tokens in features.items() if model.routes[name] not in self.frozen}

    def trees(
        self, name: str, task: TargetTask, examples: Examples, indices: np.ndarray, features: Features
    ) -> np.ndarray:
        """The trees' own scores of rows, as `TargetTask.answers` gives them.

        Args:
            name: the task's name, one of `blends`.
            task: fitted.
            examples: prepared rows.
            indices: places in the table.
            features: see `features`.
        """
        blend = self.blends[name]
        logits = blend.line.logits(examples, indices, features) if blend.line is not None else None
        assert isinstance(task, Boosted), "trees are kept for tasks that they can learn"
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
        """The scores of both together; the network's where the task has no trees, or the row lacks a column that they
        need. For the arguments see `trees`."""
        if name not in self.blends:
            return network
        whole = has_all(examples, indices, self.blends[name].needed)
        if not whole.any():
            return network
        scores = network.copy()
        trees = self.trees(name, task, examples, indices[whole], features)
        scores[whole] = mix(network[whole], trees, self.blends[name].weight)
        return scores


def mix(network: np.ndarray, trees: np.ndarray, weight: float) -> np.ndarray:
    """(1 - weight) * network + weight * trees."""
    return (1 - weight) * network + weight * trees
