"""Blocks of a linear probe beside the columns' own: n-grams of texts, and comparisons of columns of one encoder."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from fusetune.data.examples import Examples
from fusetune.data.storage.mapped import mapped_take, mapped_zeros, pieces
from fusetune.models.extras import compared

if TYPE_CHECKING:
    from collections.abc import Callable

COMPONENTS = 512
"""Directions in which the n-grams' weights may lie."""
SVD_ROWS = 10_000
"""Evenly spaced train rows that these are learned on."""
MAX_COMPARED = 4
"""Columns of one encoder beyond which they are not compared: the pairs grow with the square."""

Key = str | tuple[str, ...]
"""A column's block is under its name, others under tuples."""


@dataclass(frozen=True)
class NgramBlock:
    """A text column's n-grams along their first singular vectors (latent semantic analysis: Deerwester et al. 1990).

    The truncated SVD makes the block dense and its size independent of the vocabulary; a weight found on it is a
    weight of the n-grams again.

    Attributes:
        column: the column's name.
        basis: (ngrams, components) float32, orthonormal columns.
    """

    column: str
    basis: np.ndarray

    @property
    def key(self) -> Key:
        """Its key among the blocks."""
        return ("n-grams", self.column)

    @classmethod
    def fit(cls, column: str, examples: Examples, indices: np.ndarray) -> NgramBlock | None:
        """Learn from train rows, by their places in the table; None where the column has no n-grams or too few rows."""
        codes = mapped_take(examples.columns[column].codes, indices)
        codes = codes[codes >= 0]
        vocabulary = examples.columns[column].modality.ngrams
        if vocabulary is None or len(codes) < 3:
            return None
        chosen = codes[np.unique(np.linspace(0, len(codes) - 1, min(len(codes), SVD_ROWS)).astype(np.int64))]
        matrix = vocabulary.matrix(examples.columns[column].examples(chosen))
        components = min(COMPONENTS, *(side - 1 for side in matrix.shape))
        if components < 1:
            return None
        _, sizes, right = randomized_svd(matrix, components, n_iter=2, random_state=0)
        return cls(column, np.ascontiguousarray(right[sizes > 1e-6 * sizes[0]].T, dtype=np.float32))

    def values(self, examples: Examples, indices: np.ndarray) -> np.ndarray:
        """The block of some rows, (rows, components) float32, zeros where the column is absent."""
        column = examples.columns[self.column]
        vocabulary, codes = column.modality.ngrams, mapped_take(column.codes, indices)
        assert vocabulary is not None
        made = mapped_zeros((len(codes), self.basis.shape[1]))
        for piece in pieces(len(codes)):
            there = np.flatnonzero(codes[piece] >= 0)
            if len(there):
                distinct, inverse = np.unique(codes[piece][there], return_inverse=True)
                made[piece][there] = (vocabulary.matrix(column.examples(distinct)) @ self.basis)[inverse]
        return made

    def of_ngrams(self, weight: np.ndarray) -> np.ndarray:
        """A weight of the block, (components, logits), as a weight of the n-grams, (ngrams, logits)."""
        return np.asarray(self.basis @ weight)


@dataclass(frozen=True)
class PairBlock:
    """|u − v| and u ∘ v of two columns' standardised vectors; see `fusetune.models.extras.PairLinear`.

    Attributes:
        first, second: the columns.
        shift, scale: (2 · dim,), which standardise the block over the train rows that have both.
    """

    first: str
    second: str
    shift: Tensor
    scale: Tensor

    @property
    def key(self) -> Key:
        """Its key among the blocks."""
        return ("pair", self.first, self.second)

    @classmethod
    def fit(
        cls,
        first: str,
        second: str,
        blocks: Mapping[str, np.ndarray],
        learn_scale: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> PairBlock:
        """Learn from the train rows' blocks of the columns, (rows, dim + 1)."""
        left, right, both = _vectors(blocks[first], blocks[second])
        return cls(first, second, *learn_scale(compared(left[both], right[both])))

    def values(self, blocks: Mapping[str, np.ndarray]) -> np.ndarray:
        """The block of some rows, (rows, 2 · dim) float32, zeros where either column is absent."""
        left, right, both = _vectors(blocks[self.first], blocks[self.second])
        values = (compared(left, right) - self.shift) * self.scale / len(self.shift) ** 0.5
        return np.asarray(values.masked_fill(~both.unsqueeze(1), 0).numpy())


def _vectors(first: np.ndarray, second: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """The standardised vectors of two columns' blocks, (rows, dim), and which rows have both."""
    left, right = torch.from_numpy(np.asarray(first)), torch.from_numpy(np.asarray(second))
    root = (left.shape[1] - 1) ** 0.5
    return left[:, :-1] * root, right[:, :-1] * root, (left[:, -1] == 0) & (right[:, -1] == 0)


def compared_columns(examples: Examples, columns: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of columns that are compared: two to four that one pretrained encoder reads."""
    by_encoder: dict[str, list[str]] = {}
    for name in columns:
        modality = examples.columns[name].modality
        if modality.needs_backbone:
            by_encoder.setdefault(modality.encoder_key, []).append(name)
    return [
        pair
        for names in by_encoder.values()
        if 2 <= len(names) <= MAX_COMPARED
        for pair in itertools.combinations(names, 2)
    ]
