"""The features that boosted trees read: numbers, categories, and principal components of untuned encoders' outputs.

A number column is one feature, NaN for a missing cell. A category column is one categorical feature, the index in the
vocabulary. Any other column with a pretrained encoder gives the first principal components (Hotelling 1933) of its
vectors, fitted on train rows. The logits of a linear model on all columns' features, if there is one, come last.
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
from fusetune.training.probes.probe import Features, Probe, SplitRows, block, side_by_side, vectors

MIN_MISSING = 0.01
"""Trees have learned to do without a column if at least this share of the train rows lacks it."""
MIN_GAIN = 0.05
"""Trees depend on a column if it has at least this share of the gain of all splits."""
MAX_ROWS = 10_000
"""Maximum number of train rows, evenly spaced, on which principal components are fitted."""


@dataclass
class PrincipalComponents:
    """A column's principal components.

    Attributes:
        mean: (dim,) float32.
        axes: (dim, components) float32.
    """

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, components: int) -> PrincipalComponents:
        """Compute the first principal components of (rows, dim) vectors; each one's largest element is positive."""
        chosen = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), MAX_ROWS)).astype(np.int64))
        rows = vectors[chosen].astype(np.float64)
        mean = rows.mean(0)
        _, sizes, axes = np.linalg.svd(rows - mean, full_matrices=False)
        axes = axes[: min(components, int((sizes > 1e-6 * max(sizes[0], 1e-30)).sum()))]
        signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1))
        return cls(mean.astype(np.float32), (axes * signs).T.astype(np.float32))


@dataclass
class LinearLogits:
    """A fitted linear model on columns' features, taken from a `Probe`.

    Attributes:
        scales: by column, the mean and scale of its features, each (dim,).
        weight: (features, logits) float32, over the features of all columns and one indicator of absence per column.
        bias: (logits,) float32.
    """

    scales: dict[str, tuple[Tensor, Tensor]]
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(cls, probe: Probe) -> LinearLogits:
        """Return a probe's coefficients on standardised features."""
        weight, bias = probe.linear.coefficients()
        repeats = [len(mean) + 1 for mean, _ in probe.scales.values()]
        weight = weight * np.repeat([probe.weights[name] for name in probe.scales], repeats)[:, None]
        return cls(dict(probe.scales), weight.astype(np.float32), np.asarray(bias, dtype=np.float32))

    def logits(self, examples: Examples, indices: np.ndarray, features: Features) -> np.ndarray:
        """Return the logits, (rows, logits) float32.

        Args:
            examples: prepared rows.
            indices: (rows,) positions in the table.
            features: by column, the untuned encoders' outputs for its distinct cells.
        """
        rows = SplitRows(examples, features, indices, np.empty(0))
        blocks = {
            name: block(rows, name, scale) if name in examples.columns else _absent(len(indices), len(scale[0]))
            for name, scale in self.scales.items()
        }
        return np.asarray(side_by_side(blocks, dict.fromkeys(blocks, 1.0)) @ self.weight + self.bias)


def _absent(rows: int, dim: int) -> np.ndarray:
    """Return a column's block of features for rows that all lack it, (rows, dim + 1)."""
    values = np.zeros((rows, dim + 1), dtype=np.float32)
    values[:, -1] = 1
    return values


class TreeFeatures:
    """Compute the trees' features of rows.

    Args:
        numbers: the number columns.
        categories: the category columns.
        axes: by column with a pretrained encoder, its principal components.
    """

    def __init__(self, numbers: list[str], categories: list[str], axes: Mapping[str, PrincipalComponents]) -> None:
        self.numbers, self.categories, self.axes = list(numbers), list(categories), dict(axes)

    @classmethod
    def fit(cls, train: Examples, features: Features, *, components: int) -> TreeFeatures:
        """Fit the principal components on train rows.

        Args:
            train: prepared train rows.
            features: by column with a pretrained encoder, its untuned output for each distinct cell.
            components: maximum number of principal components of a column, at least 1.
        """
        modalities = {name: column.modality for name, column in train.columns.items()}
        numbers = [name for name, modality in modalities.items() if isinstance(modality, NumberModality)]
        categories = [name for name, modality in modalities.items() if isinstance(modality, CategoryModality)]
        axes = {}
        for name in train.columns:
            codes = train.columns[name].codes[train.used]
            codes = codes[codes >= 0]
            if name in features and name not in [*numbers, *categories] and len(codes) > 1:
                axes[name] = PrincipalComponents.fit(vectors(features[name], codes).numpy(), components)
        return cls(numbers, categories, axes)

    @property
    def width(self) -> int:
        """Number of features, without the linear model's logits."""
        return len(self.numbers) + len(self.categories) + sum(int(pca.axes.shape[1]) for pca in self.axes.values())

    @property
    def categorical(self) -> list[int]:
        """Indices of the features that are categories."""
        return list(range(len(self.numbers), len(self.numbers) + len(self.categories)))

    def needed(self, train: Examples, gains: np.ndarray) -> list[str]:
        """Return the columns that the trees depend on and that train rows hardly ever lack.

        If a new row lacks such a column, it takes branches that no train row has trained.

        Args:
            train: the rows that the trees were trained on.
            gains: (features,) total gain of the splits on each feature.
        """
        owners = [*self.numbers, *self.categories]
        owners += [name for name, pca in self.axes.items() for _ in range(pca.axes.shape[1])]
        total = float(gains.sum()) or 1.0
        shares = {name: 0.0 for name in owners}
        for name, gain in zip(owners, gains[: len(owners)], strict=True):  # the rest are the linear model's logits
            shares[name] += float(gain) / total
        return [
            name
            for name, share in shares.items()
            if share >= MIN_GAIN and np.mean(train.columns[name].codes[train.used] < 0) < MIN_MISSING
        ]

    def matrix(
        self, examples: Examples, indices: np.ndarray, features: Features, logits: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the features, (rows, features) float64; NaN for missing cells and columns.

        Args:
            examples: prepared rows.
            indices: (rows,) positions in the table.
            features: by column, the untuned encoders' outputs for its distinct cells.
            logits: (rows, logits) of the linear model, if there is one.
        """
        parts = [_tabular(examples.columns.get(name), indices, _numbers) for name in self.numbers]
        parts += [_tabular(examples.columns.get(name), indices, _category_indices) for name in self.categories]
        for name, pca in self.axes.items():
            values = np.full((len(indices), pca.axes.shape[1]), np.nan)
            if name in examples.columns:
                codes = examples.columns[name].codes[indices]
                seen = vectors(features[name], codes[codes >= 0]).numpy()
                values[codes >= 0] = (seen - pca.mean) @ pca.axes
            parts.append(values)
        if logits is not None:
            parts.append(logits.astype(np.float64))
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(indices), 0))


def rows_with_columns(examples: Examples, indices: np.ndarray, needed: Collection[str]) -> np.ndarray:
    """Return which rows have all of these columns, (rows,) bool."""
    has_columns = np.ones(len(indices), dtype=bool)
    for name in needed:
        has_columns &= examples.columns[name].codes[indices] >= 0 if name in examples.columns else False
    return has_columns


def _tabular(
    column: Column | None, indices: np.ndarray, read: Callable[[Column, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return a column as one feature, (rows, 1), NaN for missing cells; `read` converts distinct cells."""
    values = np.full((len(indices), 1), np.nan)
    if column is not None:
        codes = column.codes[indices]
        distinct, inverse = np.unique(codes[codes >= 0], return_inverse=True)
        values[codes >= 0, 0] = read(column, distinct)[inverse]
    return values


def _numbers(column: Column, cells: np.ndarray) -> np.ndarray:
    return np.asarray(column.examples(cells), dtype=np.float64)


def _category_indices(column: Column, cells: np.ndarray) -> np.ndarray:
    """Return the cells' indices in the vocabulary; 0 stands for every unknown value."""
    if not len(cells):
        return np.zeros(0)
    one_hot: Tensor = column.modality.collate(column.examples(cells))["values"]
    return np.asarray(one_hot.argmax(1).numpy(), dtype=np.float64)
