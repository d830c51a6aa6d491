"""Linear models on fixed features: what tuning starts from and is measured against.

Each column's features are standardised on the train rows and divided by the square root of their number, so that a
column with a thousand features weighs as much as one with ten. Then a column weighs the more, the more it tells by
itself, so that a penalty for all does not have to be as strong as the least telling column needs. An absent cell is the
mean (zeros), and each column has a 0/1 feature more that says whether it is absent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fusetune.data.examples import Examples
from fusetune.data.storage.mapped import mapped_flatnonzero, mapped_take, mapped_zeros, pieces
from fusetune.models.family import Family
from fusetune.models.understand import Understand
from fusetune.tasks.abilities import Probed
from fusetune.tasks.base import LinearModel
from fusetune.types import Tokens

Features = Mapping[str, Tokens]

LEAST_SPREAD = 0.1
MIN_SHARE = 0.05
MAX_ROWS = 4000
"""Evenly spaced train rows that say how much a column tells by itself."""
LOO_PENALTIES = tuple(float(10.0**power) for power in np.arange(0, -6, -1))


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

    def seen(self, examples: Examples) -> SplitRows:
        """Return these rows as another view of their examples gives them."""
        return replace(self, examples=examples)

    @classmethod
    def of(cls, task: str, examples: Examples, features: Features) -> SplitRows:
        """The labelled rows of some examples."""
        indices = examples.labelled(task)
        truth = examples.truth(task, indices)
        return cls(examples, features, indices, truth)


def learn_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale that standardise (rows, dim) features.

    A feature that hardly varies beside the others is scaled as if it varied `LEAST_SPREAD` times as much as they do: at
    unit variance, the noise that dropout makes in it, or a row that differs there, would drown everything else. One
    that does not vary at all gets the scale 0.
    """
    if not len(values):
        return torch.zeros(values.shape[1]), torch.zeros(values.shape[1])
    mean, std = values.mean(0), values.std(0, unbiased=False)
    varies = std > 1e-6 * torch.maximum(values.amax(0), -values.amin(0))
    floor = (LEAST_SPREAD * std.mean()).clamp(min=torch.finfo(std.dtype).tiny)
    return mean, torch.where(varies, 1 / std.clamp(min=floor), torch.zeros_like(std))


def column_scales(examples: Examples, features: Features) -> dict[str, tuple[Tensor, Tensor]]:
    """`learn_scale` of every column's features over the used rows that have the column."""
    scales = {}
    for name, table in features.items():
        codes = mapped_take(examples.columns[name].codes, examples.used)
        scales[name] = learn_scale(vectors(table, mapped_take(codes, mapped_flatnonzero(codes >= 0))))
    return scales


def vectors(table: Tokens, places: np.ndarray) -> Tensor:
    """The mean of the real tokens of some cells, (places, dim), in a file where they are many."""
    found = mapped_zeros((len(places), table.values.shape[2]))
    for piece in pieces(len(places)):
        chosen = torch.from_numpy(places[piece].astype(np.int64))
        found[piece] = Tokens(table.values[chosen], table.mask[chosen]).mean().numpy()
    return torch.from_numpy(found)


class Probe:
    """A linear model on fixed features of some columns."""

    def __init__(
        self, scales: Mapping[str, tuple[Tensor, Tensor]], weights: Mapping[str, float], linear: LinearModel
    ) -> None:
        """
        Args:
            scales: per column, the shift and scale that standardise its features.
            weights: per column, what its block of features is multiplied by.
            linear: fitted on the weighted blocks side by side.
        """
        self.scales, self.weights, self.linear = dict(scales), dict(weights), linear

    @classmethod
    def fit(cls, task: Probed, train: SplitRows, val: SplitRows, columns: Collection[str]) -> Probe:
        """Learn from train rows; the strength of the penalty is chosen on validation rows."""
        scales = column_scales(train.examples, {name: train.features[name] for name in columns})
        blocks = {name: block(train, name, scale) for name, scale in scales.items()}
        weights = column_weights(blocks, train.truth, len(task.labels))
        val_blocks = {name: block(val, name, scale) for name, scale in scales.items()}
        linear = task.linear(
            side_by_side(blocks, weights),
            train.truth,
            side_by_side(val_blocks, weights),
            val.truth,
            mapped_take(train.examples.weights, train.indices),
        )
        return cls(scales, weights, linear)

    def scores(self, split: SplitRows) -> np.ndarray:
        """Scores of the split's rows, as `Task.answers` gives them."""
        blocks = {name: block(split, name, scale) for name, scale in self.scales.items()}
        return self.linear.scores(side_by_side(blocks, self.weights))

    def install(self, model: Family, task: str) -> None:
        """Make a model's output for a task this linear model, to be tuned from there."""
        assert isinstance(model, Understand), "a family with a linear part"
        assert list(self.scales) == model.linear_columns, "the probe and the model's linear part see the same columns"
        weight, bias = self.linear.coefficients()
        repeats = [len(shift) + 1 for shift, _ in self.scales.values()]
        weight = weight * np.repeat([self.weights[name] for name in self.scales], repeats)[:, None]
        model.start_from(task, torch.from_numpy(weight).float(), torch.from_numpy(bias).float())


def block(split: SplitRows, name: str, scale: tuple[Tensor, Tensor]) -> np.ndarray:
    """A column's features for the linear model, (rows, features + 1) float32; the last says whether it is absent."""
    shift, factor = scale
    codes = mapped_take(split.examples.columns[name].codes, split.indices)
    made = mapped_zeros((len(codes), len(shift) + 1))
    made[:, -1] = codes < 0
    for piece in pieces(len(codes)):
        there = np.flatnonzero(codes[piece] >= 0)
        values = vectors(split.features[name], codes[piece][there])
        made[piece][there, :-1] = ((values - shift) * factor / len(shift) ** 0.5).numpy()
    return made


def side_by_side(blocks: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The blocks, each times its weight, as one (rows, features) float32 matrix."""
    widths = [values.shape[1] for values in blocks.values()]
    made = mapped_zeros((len(next(iter(blocks.values()))), sum(widths)))
    for (name, values), end, width in zip(blocks.items(), np.cumsum(widths), widths, strict=True):
        np.multiply(values, np.float32(weights[name]), out=made[:, end - width : end])
    return made


def as_numbers(truth: np.ndarray, num_labels: int) -> np.ndarray:
    """Truth as (rows, outputs) numbers: one-hot classes, 0/1 labels, or the numbers themselves."""
    if truth.ndim == 2:
        return truth.astype(np.float64)
    if num_labels:
        return np.asarray(np.eye(num_labels)[truth])
    return truth.astype(np.float64)[:, None]


def column_weights(blocks: Mapping[str, np.ndarray], truth: np.ndarray, num_labels: int) -> dict[str, float]:
    """How much each column's block weighs: the root of its leave-one-out R² by itself, relative to the best column's.

    The weights' mean square is 1; no column weighs less than `sqrt(MIN_SHARE)` of the best.

    Args:
        blocks: per column, (rows, features).
        truth: of the train rows.
        num_labels: as in `as_numbers`.
    """
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), MAX_ROWS)).astype(np.int64))
    targets = as_numbers(truth[chosen], num_labels)
    telling = {name: loo_r2(values[chosen], targets) for name, values in blocks.items()}
    best = max(telling.values())
    if best <= 0:
        return dict.fromkeys(blocks, 1.0)
    shares = {name: max(value / best, MIN_SHARE) for name, value in telling.items()}
    mean = sum(shares.values()) / len(shares)
    return {name: (share / mean) ** 0.5 for name, share in shares.items()}


def loo_r2(features: np.ndarray, targets: np.ndarray) -> float:
    """The best R² over ridge penalties when each row is predicted from all others, mean over outputs that vary.

    In closed form: the residual of a left-out row is its residual in the fit over (1 - its leverage), so one
    eigendecomposition serves all penalties (Golub, Heath and Wahba 1979, "Generalized Cross-Validation", eq. 1.2).

    Args:
        features: (rows, features).
        targets: (rows, outputs).
    """
    x = features.astype(np.float64)
    y = targets - targets.mean(0)
    x -= x.mean(0)
    varies = (y**2).sum(0) > 0
    if not varies.any() or len(x) < 3:
        return 0.0
    y = y[:, varies]
    left, values, _ = np.linalg.svd(x, full_matrices=False) if x.shape[0] < x.shape[1] else _thin_svd(x)
    projected = left.T @ y  # (components, outputs)
    best = 0.0
    for penalty in LOO_PENALTIES:
        shrink = values**2 / (values**2 + penalty * len(x))
        residual = y - left @ (shrink[:, None] * projected)
        leverage = 1 / len(x) + (left**2) @ shrink  # the mean's share counts too
        loo = residual / np.maximum(1 - leverage, 1e-6)[:, None]
        best = max(best, float(np.mean(1 - (loo**2).sum(0) / (y**2).sum(0))))
    return best


def _thin_svd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    """Left vectors and singular values of a tall matrix, by its small Gram matrix."""
    squares, vectors = np.linalg.eigh(x.T @ x)
    kept = squares > 1e-10 * max(float(squares[-1]), 1e-300)
    values = np.sqrt(squares[kept])
    return x @ vectors[:, kept] / values, values, None
