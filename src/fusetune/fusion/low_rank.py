"""Low-rank tensor fusion: products of features across all columns, with a low-rank weight tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.fusion._columns import check_count, check_rate, column_vectors, present_columns, single_tokens
from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens


class LowRankFusion(Fusion):
    """Map the products of features of all columns to the pooled vector, with a weight tensor of low rank.

    pooled = LayerNorm(Σ_r Π_c W_rc [v_c; 1]), where the product over columns is elementwise and v_c is the mean of
    column c's real tokens. It equals a linear map of the outer product [v_1; 1] ⊗ ... ⊗ [v_k; 1], which holds the
    products of features of every subset of columns, with weights that are a sum of `rank` outer products. The cost
    grows linearly with the number of columns. An absent column is the factor 1, so the products of the others remain.
    Factors are initialised near 1, the closer the more columns there are, so that products of many columns neither
    vanish nor explode; they are computed in float32 or wider.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector.
        rank: number of outer products in the sum, at least 1.
        dropout: rate in [0, 1) on the columns' vectors.
        modality_dropout: probability in [0, 1) that a row's present column is treated as absent in training.

    Raises:
        ConfigError: a setting is out of range.

    Inputs: (batch, tokens, dim) a column, averaged over its real tokens.

    Requires: nothing.

    Relations: in `film`, one column multiplies the others; `concat` has to learn products with its perceptron.

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
        super().__init__(columns, dim)
        self.modality_dropout = check_rate("modality_dropout", modality_dropout)
        num = len(self.columns)
        factors = torch.randn(num, check_count("rank", rank), dim + 1, dim) / (dim * num) ** 0.5
        factors[:, :, -1] = 1  # the weights of the appended 1
        self.factors = nn.Parameter(factors)
        self.dropout = nn.Dropout(check_rate("dropout", dropout))
        self.norm = nn.LayerNorm(dim)

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`. Each column has a single fused token."""
        counted = present_columns(self.columns, columns, present, drop=self.modality_dropout, training=self.training)
        null = self.factors.new_zeros(len(self.columns), self.dim)
        vectors = column_vectors(self.columns, columns, counted, null)  # (batch, columns, dim)
        extended = F.pad(self.dropout(vectors), (0, 1), value=1.0)  # (batch, columns, dim + 1)
        terms = torch.einsum("bci,crio->bcro", extended, self.factors)  # (batch, columns, rank, dim)
        terms = terms.to(torch.promote_types(terms.dtype, torch.float32))
        pooled = terms.masked_fill(~counted[:, :, None, None], 1.0).prod(1).sum(1)
        return Fused(single_tokens(self.columns, vectors, counted), self.norm(pooled))
