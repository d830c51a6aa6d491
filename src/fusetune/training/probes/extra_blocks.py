"""Further blocks of a linear probe: n-grams of texts, and comparisons of columns that share an encoder."""

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
from fusetune.models.extras import NgramSource, compared

if TYPE_CHECKING:
    from collections.abc import Callable

COMPONENTS = 512
"""Maximum number of singular vectors."""
SVD_ROWS = 10_000
"""Maximum number of train rows, evenly spaced, on which they are computed."""
MAX_COMPARED = 4
"""Maximum number of columns of one encoder to compare, because the number of pairs grows with the square."""

Key = str | tuple[str, ...]
"""The key of a block: the column's name for a column's own block, a tuple for others."""


@dataclass(frozen=True)
class NgramBlock:
    """A text column's n-grams, projected onto their first singular vectors.

    The truncated SVD (latent semantic analysis, Deerwester et al. 1990) makes the block dense and its size independent
    of the vocabulary. A linear model's weight of the block is converted to a weight of the n-grams by `of_ngrams`.

    Attributes:
        column: the column's name.
        part: of its n-grams, "tokens" or "characters".
        basis: (ngrams, components) float32, orthonormal columns.
    """

    column: str
    part: str
    basis: np.ndarray

    @property
    def key(self) -> Key:
        """The block's key."""
        return ("n-grams", self.column, self.part)

    @property
    def source(self) -> NgramSource:
        """The column and the part."""
        return (self.column, self.part)

    @classmethod
    def fit(cls, source: NgramSource, examples: Examples, indices: np.ndarray) -> NgramBlock | None:
        """Fit the singular vectors; return None if there are too few rows.

        Args:
            source: the column and the part of its n-grams.
            examples: prepared train rows.
            indices: (rows,) positions in the table.
        """
        column, part = source
        codes = mapped_take(examples.columns[column].codes, indices)
        codes = codes[codes >= 0]
        vocabulary = examples.columns[column].modality.ngrams[part]
        if len(codes) < 3:
            return None
        chosen = codes[np.unique(np.linspace(0, len(codes) - 1, min(len(codes), SVD_ROWS)).astype(np.int64))]
        matrix = vocabulary.matrix(examples.columns[column].token_ids(chosen))
        components = min(COMPONENTS, *(side - 1 for side in matrix.shape))
        if components < 1:
            return None
        _, sizes, right = randomized_svd(matrix, components, n_iter=2, random_state=0)
        return cls(column, part, np.ascontiguousarray(right[sizes > 1e-6 * sizes[0]].T, dtype=np.float32))

    def values(self, examples: Examples, indices: np.ndarray) -> np.ndarray:
        """Return the block of some rows, (rows, components) float32, zeros for missing cells."""
        column = examples.columns[self.column]
        vocabulary, codes = column.modality.ngrams[self.part], mapped_take(column.codes, indices)
        result = mapped_zeros((len(codes), self.basis.shape[1]))
        for piece in pieces(len(codes)):
            present = np.flatnonzero(codes[piece] >= 0)
            if len(present):
                distinct, inverse = np.unique(codes[piece][present], return_inverse=True)
                result[piece][present] = (vocabulary.matrix(column.token_ids(distinct)) @ self.basis)[inverse]
        return result

    def of_ngrams(self, weight: np.ndarray) -> np.ndarray:
        """Convert a weight of the block, (components, logits), to a weight of the n-grams, (ngrams, logits)."""
        return np.asarray(self.basis @ weight)


@dataclass(frozen=True)
class PairBlock:
    """|u − v| and u ∘ v of two columns' standardised vectors; see `fusetune.models.extras.PairLinear`.

    Attributes:
        first, second: the columns.
        shift, scale: (2 · dim,) mean and 1 / standard deviation of the block over the train rows with both columns.
    """

    first: str
    second: str
    shift: Tensor
    scale: Tensor

    @property
    def key(self) -> Key:
        """The block's key."""
        return ("pair", self.first, self.second)

    @classmethod
    def fit(
        cls,
        first: str,
        second: str,
        blocks: Mapping[str, np.ndarray],
        learn_scale: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> PairBlock:
        """Fit shift and scale.

        Args:
            first, second: the columns.
            blocks: by column, the train rows' block, (rows, dim + 1).
            learn_scale: see `fusetune.training.probes.probe.learn_scale`.
        """
        left, right, both = _vectors(blocks[first], blocks[second])
        return cls(first, second, *learn_scale(compared(left[both], right[both])))

    def values(self, blocks: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the block of some rows, (rows, 2 · dim) float32, zeros where either cell is missing."""
        left, right, both = _vectors(blocks[self.first], blocks[self.second])
        values = (compared(left, right) - self.shift) * self.scale / len(self.shift) ** 0.5
        return np.asarray(values.masked_fill(~both.unsqueeze(1), 0).numpy())


def _vectors(first: np.ndarray, second: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Return the standardised vectors of two columns, (rows, dim) each, and the mask of rows that have both."""
    left, right = torch.from_numpy(np.asarray(first)), torch.from_numpy(np.asarray(second))
    root = (left.shape[1] - 1) ** 0.5
    return left[:, :-1] * root, right[:, :-1] * root, (left[:, -1] == 0) & (right[:, -1] == 0)


def compared_columns(examples: Examples, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of columns to compare: those of two to four columns that share a pretrained encoder."""
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
