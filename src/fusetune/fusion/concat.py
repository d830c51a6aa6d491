"""Fusion by concatenation: one mean vector a column, side by side, through a perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.fusion._columns import check_rate, column_vectors, kept_columns
from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens


class ConcatFusion(Fusion):
    """pooled = LayerNorm(MLP([v_1; ...; v_k]) + S [v_1; ...; v_k]), v_c the mean of column c's tokens.

    Where a column is absent, v_c is its learned null vector. The linear path S lets the fusion be the linear model
    on all columns before it is anything else.
    """

    def __init__(
        self,
        columns: Sequence[str],
        dim: int,
        *,
        depth: int = 1,
        dropout: float = 0.1,
        modality_dropout: float = 0.1,
        skip: bool = True,
    ) -> None:
        """
        Args:
            columns: the columns, in a fixed order.
            dim: features of every token and of the pooled vector.
            depth: hidden layers of the perceptron, at least 1, each of 2 x dim features.
            dropout: rate in [0, 1) after every hidden layer.
            modality_dropout: probability in [0, 1) that a present column is hidden from a row in training.
            skip: whether the linear path S is there.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__init__(columns, dim)
        if depth < 1:
            raise ConfigError("depth is out of range", expected="1 or more hidden layers", came=str(depth))
        check_rate("dropout", dropout)
        self.modality_dropout = check_rate("modality_dropout", modality_dropout)
        wide = len(self.columns) * dim
        self.null = nn.Parameter(torch.randn(len(self.columns), dim) * 0.02)
        layers: list[nn.Module] = []
        for size in [wide] + [2 * dim] * (depth - 1):
            layers += [nn.Linear(size, 2 * dim), nn.GELU(), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*layers, nn.Linear(2 * dim, dim))
        self.skip = nn.Linear(wide, dim, bias=False) if skip else None
        self.norm = nn.LayerNorm(dim)

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`; the fused tokens are one vector a column, real where the column counts."""
        kept = kept_columns(self.columns, columns, present, drop=self.modality_dropout, training=self.training)
        vectors = column_vectors(self.columns, columns, kept, self.null)  # (batch, columns, dim)
        flat = vectors.flatten(1)  # (batch, columns * dim)
        pooled = self.mlp(flat)
        if self.skip is not None:
            pooled = pooled + self.skip(flat)
        return Fused(tokens=Tokens(vectors, kept), pooled=self.norm(pooled))
