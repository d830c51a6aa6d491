"""Fusion by concatenation of one mean vector a column, mapped by a perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fusetune.fusion._columns import VectorFusion, perceptron


class ConcatFusion(VectorFusion):
    """Concatenate one vector a column and map the result by a perceptron and a linear skip connection.

    pooled = LayerNorm(MLP([v_1; ...; v_k]) + S [v_1; ...; v_k]), with v_c the mean of column c's real tokens, or its
    learned null vector where the column is absent. The skip connection S makes a linear model on all columns easy to
    learn.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector.
        depth: hidden layers of the perceptron, at least 1, each of 2 x dim features.
        dropout: rate in [0, 1) after every hidden layer.
        modality_dropout: probability in [0, 1) that a row's present column is treated as absent in training.
        skip: whether to add the linear skip connection S.

    Raises:
        ConfigError: a setting is out of range.

    Inputs: (batch, tokens, dim) a column, averaged over its real tokens.

    Requires: nothing. Parameters grow with the number of columns.

    Relations: the smallest fusion that learns interactions of columns. `film` modulates the columns first; `mixture`
    has several perceptrons.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> fusion = ConcatFusion(["title", "year"], 8, depth=2)
        >>> columns = {name: Tokens(torch.randn(4, 1, 8), torch.ones(4, 1).bool()) for name in fusion.columns}
        >>> fusion(columns, dict.fromkeys(columns, torch.ones(4).bool())).pooled.shape
        torch.Size([4, 8])

    Reference: Ngiam et al. 2011, "Multimodal Deep Learning" (ICML), for a shared layer over concatenated modalities.
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
        super().__init__(columns, dim, modality_dropout=modality_dropout)
        wide = len(self.columns) * dim
        self.mlp = perceptron(wide, dim, depth=depth, dropout=dropout)
        self.skip = nn.Linear(wide, dim, bias=False) if skip else None

    def mix(self, vectors: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """See `VectorFusion.mix`. The fused vectors are the columns' own."""
        flat = vectors.flatten(1)  # (batch, columns * dim)
        pooled: Tensor = self.mlp(flat)
        return vectors, pooled if self.skip is None else pooled + self.skip(flat)
