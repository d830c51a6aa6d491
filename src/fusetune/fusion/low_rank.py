"""Low-rank tensor fusion: every product of features across the columns, through factors of a low rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.fusion._columns import check_count, check_rate, column_vectors, kept_columns, one_token_each
from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens


class LowRankFusion(Fusion):
    """Multiply the columns feature by feature: a tensor of all their products, held by factors of a low rank.

    pooled = LayerNorm(Σ_r Π_c W_rc [v_c; 1]), the product feature by feature, v_c the mean of column c's real tokens.
    It equals a linear map of the outer product [v_1; 1] ⊗ ... ⊗ [v_k; 1], which holds every product of features of any
    subset of the columns, when the map's weights are a sum of `rank` outer products. Its cost grows linearly with the
    number of columns. An absent column is the factor 1: the others' products remain. Each factor starts near 1, the
    nearer the more columns there are, so that the product of many neither vanishes nor explodes, and it is computed in
    float32 at least.

    Inputs: (batch, tokens, dim) a column, averaged over its real tokens.

    Requires: nothing.

    Relations: `film` lets one column multiply the others; `concat` has to learn products by its perceptron.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> fusion = LowRankFusion(["text", "audio", "video"], 8, rank=2)
        >>> columns = {name: Tokens(torch.randn(4, 3, 8), torch.ones(4, 3).bool()) for name in fusion.columns}
        >>> fusion(columns, dict.fromkeys(columns, torch.ones(4).bool())).pooled.shape
        torch.Size([4, 8])

    Reference: Liu et al. 2018, "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors" (arXiv
    1806.00064).
    """

    interacts = True

    def __init__(
        self,
        columns: Sequence[str],
        dim: int,
        *,
        rank: int = 4,
        dropout: float = 0.1,
        modality_dropout: float = 0.1,
    ) -> None:
        """
        Args:
            columns: the columns, in a fixed order.
            dim: features of every token and of the pooled vector.
            rank: outer products in the sum, at least 1.
            dropout: rate in [0, 1) on the columns' vectors.
            modality_dropout: probability in [0, 1) that a present column is hidden from a row in training.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__init__(columns, dim)
        self.modality_dropout = check_rate("modality_dropout", modality_dropout)
        num = len(self.columns)
        factors = torch.randn(num, check_count("rank", rank), dim + 1, dim) / (dim * num) ** 0.5
        factors[:, :, -1] = 1  # what the appended 1 is multiplied by
        self.factors = nn.Parameter(factors)
        self.dropout = nn.Dropout(check_rate("dropout", dropout))
        self.norm = nn.LayerNorm(dim)

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`. Fused tokens are one vector a column."""
        kept = kept_columns(self.columns, columns, present, drop=self.modality_dropout, training=self.training)
        nothing = self.factors.new_zeros(len(self.columns), self.dim)
        vectors = column_vectors(self.columns, columns, kept, nothing)  # (batch, columns, dim)
        extended = F.pad(self.dropout(vectors), (0, 1), value=1.0)  # (batch, columns, dim + 1)
        terms = torch.einsum("bci,crio->bcro", extended, self.factors)  # (batch, columns, rank, dim)
        terms = terms.to(torch.promote_types(terms.dtype, torch.float32))
        pooled = terms.masked_fill(~kept[:, :, None, None], 1.0).prod(1).sum(1)
        return Fused(one_token_each(self.columns, vectors, kept), self.norm(pooled))
