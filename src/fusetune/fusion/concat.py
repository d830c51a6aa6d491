"""Fusion by concatenation: one mean vector a column, side by side, through a perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fusetune.fusion._columns import VectorFusion, perceptron


class ConcatFusion(VectorFusion):
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
        super().__init__(columns, dim, modality_dropout=modality_dropout)
        wide = len(self.columns) * dim
        self.mlp = perceptron(wide, dim, depth=depth, dropout=dropout)
        self.skip = nn.Linear(wide, dim, bias=False) if skip else None

    def mix(self, vectors: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """See `VectorFusion.mix`; the vectors leave as they came."""
        flat = vectors.flatten(1)  # (batch, columns * dim)
        pooled: Tensor = self.mlp(flat)
        return vectors, pooled if self.skip is None else pooled + self.skip(flat)
