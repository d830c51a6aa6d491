"""Linear models on fixed features: what tuning starts from and is measured against.

Each column's features are standardised on the train rows and divided by the square root of their number, so that a
column with a thousand features weighs as much as one with ten. An absent cell is the mean (zeros), and each column has
a 0/1 feature more that says whether it is absent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusetune.data.examples import Examples
from fusetune.models.understand import Understand
from fusetune.tasks.base import LinearModel, Task

Features = Mapping[str, Tensor]


@dataclass
class SplitRows:
    """The rows of one split that are labelled for a task.

    Attributes:
        examples: prepared rows.
        features: per column whose encoder is of use untrained, its output, (cells, tokens, dim).
        indices: the labelled rows' places in the table.
        truth: their targets as the task's metrics want them.
    """

    examples: Examples
    features: Features
    indices: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(cls, task: str, examples: Examples, features: Features) -> SplitRows:
        """The labelled rows of some examples."""
        indices = examples.labelled(task)
        truth = examples.tasks[task].truth([examples.targets[task][index] for index in indices])
        return cls(examples, features, indices, truth)


def learn_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale that standardise (rows, dim) features; one that never varies gets the scale 0: it is dropped."""
    if not len(values):
        return torch.zeros(values.shape[1]), torch.zeros(values.shape[1])
    mean, std = values.mean(0), values.std(0, unbiased=False)
    return mean, torch.where(std > 1e-6 * values.abs().amax(0).clamp(min=1e-6), 1 / std, torch.zeros_like(std))


def column_scales(examples: Examples, features: Features) -> dict[str, tuple[Tensor, Tensor]]:
    """`learn_scale` of every column's features over the used rows that have the column."""
    scales = {}
    for name, table in features.items():
        codes = examples.columns[name].codes[examples.used]
        scales[name] = learn_scale(table.mean(1)[torch.from_numpy(codes[codes >= 0])])
    return scales


class Probe:
    """A linear model on fixed features of some columns."""

    def __init__(self, scales: Mapping[str, tuple[Tensor, Tensor]], linear: LinearModel) -> None:
        self.scales, self.linear = dict(scales), linear

    @classmethod
    def fit(cls, task: Task, train: SplitRows, val: SplitRows, columns: Collection[str]) -> Probe:
        """Learn from train rows; the strength of the penalty is chosen on validation rows."""
        scales = column_scales(train.examples, {name: train.features[name] for name in columns})
        linear = task.linear(design(train, scales), train.truth, design(val, scales), val.truth)
        return cls(scales, linear)

    def scores(self, split: SplitRows) -> np.ndarray:
        """Scores of the split's rows, as `Task.scores` gives them."""
        return self.linear.scores(design(split, self.scales))

    def install(self, model: Understand, task: str) -> None:
        """Make a model's output for a task this linear model, to be tuned from there."""
        assert list(self.scales) == model.linear_columns, "the probe and the model's linear part see the same columns"
        weight, bias = self.linear.coefficients()
        model.start_from(task, torch.from_numpy(weight).float(), torch.from_numpy(bias).float())


def design(split: SplitRows, scales: Mapping[str, tuple[Tensor, Tensor]]) -> np.ndarray:
    """(rows, features) float32: for each column its scaled features, then whether it is absent."""
    blocks = []
    for name, (shift, scale) in scales.items():
        codes = torch.from_numpy(split.examples.columns[name].codes[split.indices])
        table = (split.features[name].mean(1) - shift) * scale / len(shift) ** 0.5
        present = (codes >= 0).unsqueeze(1)
        if len(table):
            blocks.append(torch.where(present, table[codes.clamp(min=0)], 0))
        else:
            blocks.append(torch.zeros(len(codes), len(shift)))
        blocks.append((~present).float())
    return np.asarray(torch.cat(blocks, dim=1).numpy())
