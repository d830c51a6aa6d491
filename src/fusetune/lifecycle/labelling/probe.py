"""A linear model on frozen features of the labels so far: fitted in seconds after each round of labelling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusetune.data.folds import fold_of
from fusetune.registry import TASKS
from fusetune.tasks.base import LinearModel
from fusetune.training.probes.cross_validation import out_of_fold
from fusetune.training.probes.extra_blocks import Key
from fusetune.training.probes.probe import side_by_side
from fusetune.training.probes.selection import column_weights

FOLDS = 5

Blocks = Mapping[Key, np.ndarray]


@dataclass(frozen=True)
class LabelProbe:
    """A linear model of labels.

    Attributes:
        labels: in the order of the probabilities' columns.
        features: (rows, features), what it reads of all rows.
        model: fitted.
    """

    labels: list[str]
    features: np.ndarray
    model: LinearModel

    @classmethod
    def fit(cls, blocks: Blocks, given: Mapping[int, str], *, labels: list[str], seed: int) -> LabelProbe:
        """Fit a softmax regression, with its penalty chosen by cross-validation over the labelled rows.

        Args:
            blocks: by key, (rows, features) of all rows; see `FrozenRows.blocks`.
            given: labels by position.
            labels: all that may be predicted, two or more; one that no row has stays improbable.
            seed: of the folds.
        """
        rows = np.asarray(list(given), dtype=np.int64)
        index = {label: number for number, label in enumerate(labels)}
        truth = np.asarray([index[label] for label in given.values()], dtype=np.int64)
        counts = np.bincount(truth, minlength=len(labels)).tolist()
        task = TASKS.get("multiclass").from_state("label", {"classes": labels, "counts": counts})
        some = {key: values[rows] for key, values in blocks.items()}
        features = side_by_side(blocks, column_weights(some, truth, len(labels)))
        learned, weights = features[rows], np.ones(len(rows))
        folds = fold_of(np.full(len(rows), -1, dtype=np.int64), FOLDS, seed=seed)
        best = out_of_fold(task, lambda _: learned, truth, weights, folds).index
        return cls(labels, features, task.linear_path(learned, truth, weights).at(best))

    def probabilities(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return (rows, labels) of the rows at some positions; of all where None."""
        return self.model.scores(self.features if rows is None else self.features[rows])
