"""What trees see of a row: numbers as they are, categories as categories, and what a frozen encoder says, shortened.

A column of numbers is one feature, nan where the row lacks it; a column of categories is one feature, its place in the
vocabulary. Any other column that has features before training gives its vector's first principal components (Hotelling
1933), learned on train rows. Last come the logits of a linear model on all columns' features, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fusetune.data.column import Column
from fusetune.data.examples import Examples
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.training.probe import Features, Probe, SplitRows, block, side_by_side, vectors

MIN_MISSING = 0.01
"""Trees know what to do without a column that at least this share of the train rows lacks."""
MIN_GAIN = 0.05
"""Trees lean on a column that has at least this share of what all their splits gain."""
MAX_ROWS = 10_000
"""Principal components are learned on at most so many evenly spaced train rows."""


@dataclass
class Axes:
    """A column's principal components: `mean` is (dim,), `axes` is (dim, components), both float32."""

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, components: int) -> Axes:
        """The directions in which (rows, dim) vectors vary most; each one's largest part is positive."""
        chosen = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), MAX_ROWS)).astype(np.int64))
        rows = vectors[chosen].astype(np.float64)
        mean = rows.mean(0)
        _, sizes, axes = np.linalg.svd(rows - mean, full_matrices=False)
        axes = axes[: min(components, int((sizes > 1e-6 * max(sizes[0], 1e-30)).sum()))]
        signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1))
        return cls(mean.astype(np.float32), (axes * signs).T.astype(np.float32))


@dataclass
class Line:
    """A linear model on columns' features: what a `Probe` is once it is fitted.

    Attributes:
        scales: per column, the shift and scale of its features, each (dim,).
        weight: (features of all columns and their absence, logits) float32.
        bias: (logits,) float32.
    """

    scales: dict[str, tuple[Tensor, Tensor]]
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(cls, probe: Probe) -> Line:
        """The probe's coefficients on standardised features."""
        weight, bias = probe.linear.coefficients()
        repeats = [len(shift) + 1 for shift, _ in probe.scales.values()]
        weight = weight * np.repeat([probe.weights[name] for name in probe.scales], repeats)[:, None]
        return cls(dict(probe.scales), weight.astype(np.float32), np.asarray(bias, dtype=np.float32))

    def logits(self, examples: Examples, indices: np.ndarray, features: Features) -> np.ndarray:
        """(rows, logits) float32."""
        rows = SplitRows(examples, features, indices, np.empty(0))
        blocks = {
            name: block(rows, name, scale) if name in examples.columns else _absent(len(indices), len(scale[0]))
            for name, scale in self.scales.items()
        }
        return np.asarray(side_by_side(blocks, dict.fromkeys(blocks, 1.0)) @ self.weight + self.bias)


def _absent(rows: int, dim: int) -> np.ndarray:
    """A column's block where every row lacks it."""
    values = np.zeros((rows, dim + 1), dtype=np.float32)
    values[:, -1] = 1
    return values


class View:
    """The columns as trees' features."""

    def __init__(self, numbers: list[str], categories: list[str], axes: Mapping[str, Axes]) -> None:
        """
        Args:
            numbers: columns of numbers.
            categories: columns of categories.
            axes: columns seen through a frozen encoder.
        """
        self.numbers, self.categories, self.axes = list(numbers), list(categories), dict(axes)

    @classmethod
    def fit(cls, train: Examples, features: Features, *, components: int) -> View:
        """Learn from train rows.

        Args:
            train: prepared rows.
            features: per column whose encoder is of use untrained, its output for each distinct cell.
            components: most principal components of a column, 1 or more.
        """
        sorts = {name: column.modality for name, column in train.columns.items()}
        numbers = [name for name, modality in sorts.items() if isinstance(modality, NumberModality)]
        categories = [name for name, modality in sorts.items() if isinstance(modality, CategoryModality)]
        axes = {}
        for name in train.columns:
            codes = train.columns[name].codes[train.used]
            codes = codes[codes >= 0]
            if name in features and name not in [*numbers, *categories] and len(codes) > 1:
                axes[name] = Axes.fit(vectors(features[name], codes).numpy(), components)
        return cls(numbers, categories, axes)

    @property
    def width(self) -> int:
        """Features before the linear model's logits."""
        return len(self.numbers) + len(self.categories) + sum(int(one.axes.shape[1]) for one in self.axes.values())

    @property
    def categorical(self) -> list[int]:
        """The places of the features that are categories."""
        return list(range(len(self.numbers), len(self.numbers) + len(self.categories)))

    def needed(self, train: Examples, gains: np.ndarray) -> list[str]:
        """The columns that trees lean on and hardly ever missed: the branch that such a missing one takes was learned
        from nothing.

        Args:
            train: the rows that the trees learned from.
            gains: (features,) how much splits on each feature lowered the loss.
        """
        owners = [*self.numbers, *self.categories]
        owners += [name for name, one in self.axes.items() for _ in range(one.axes.shape[1])]
        total = float(gains.sum()) or 1.0
        shares = {name: 0.0 for name in owners}
        for name, gain in zip(owners, gains[: len(owners)], strict=True):  # what is left are the linear model's logits
            shares[name] += float(gain) / total
        return [
            name
            for name, share in shares.items()
            if share >= MIN_GAIN and np.mean(train.columns[name].codes[train.used] < 0) < MIN_MISSING
        ]

    def matrix(
        self, examples: Examples, indices: np.ndarray, features: Features, logits: np.ndarray | None = None
    ) -> np.ndarray:
        """(rows, features) float64; nan where a row lacks a column, or the examples do.

        Args:
            examples: prepared rows.
            indices: places in the table.
            features: encoders' outputs, untrained.
            logits: (rows, logits) of the linear model.
        """
        parts = [_tabular(examples.columns.get(name), indices, _numbers) for name in self.numbers]
        parts += [_tabular(examples.columns.get(name), indices, _places) for name in self.categories]
        for name, one in self.axes.items():
            values = np.full((len(indices), one.axes.shape[1]), np.nan)
            if name in examples.columns:
                codes = examples.columns[name].codes[indices]
                seen = vectors(features[name], codes[codes >= 0]).numpy()
                values[codes >= 0] = (seen - one.mean) @ one.axes
            parts.append(values)
        if logits is not None:
            parts.append(logits.astype(np.float64))
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(indices), 0))


def has_all(examples: Examples, indices: np.ndarray, needed: Collection[str]) -> np.ndarray:
    """(rows,) bool: whether a row has each of these columns."""
    here = np.ones(len(indices), dtype=bool)
    for name in needed:
        here &= examples.columns[name].codes[indices] >= 0 if name in examples.columns else False
    return here


def _tabular(
    column: Column | None, indices: np.ndarray, read: Callable[[Column, np.ndarray], np.ndarray]
) -> np.ndarray:
    """(rows, 1): what `read` gives for the rows' distinct cells, nan where there is none."""
    values = np.full((len(indices), 1), np.nan)
    if column is not None:
        codes = column.codes[indices]
        distinct, inverse = np.unique(codes[codes >= 0], return_inverse=True)
        values[codes >= 0, 0] = read(column, distinct)[inverse]
    return values


def _numbers(column: Column, cells: np.ndarray) -> np.ndarray:
    return np.asarray(column.examples(cells), dtype=np.float64)


def _places(column: Column, cells: np.ndarray) -> np.ndarray:
    """Places in the vocabulary; 0 is any value that is not in it."""
    if not len(cells):
        return np.zeros(0)
    one_hot: Tensor = column.modality.collate(column.examples(cells))["values"]
    return np.asarray(one_hot.argmax(1).numpy(), dtype=np.float64)
