"""Fusion by gates that weight each column's features row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusetune.fusion._columns import VectorFusion, check_rate


class GatedFusion(VectorFusion):
    """Weight every feature of every column by a gate that is computed from all columns of the row.

    h_c = tanh(W_c v_c + b_c), z_c = sigmoid(G_c [v_1; ...; v_k] + g_c), pooled = LayerNorm(Σ z_c * h_c over the present
    columns c), with v_c the mean of column c's real tokens. An absent column adds nothing; the gates see its learned
    null vector.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector.
        dropout: rate in [0, 1) on the transformed vectors h_c.
        modality_dropout: probability in [0, 1) that a row's present column is treated as absent in training.

    Raises:
        ConfigError: a setting is out of range.

    Inputs: (batch, tokens, dim) a column, averaged over its real tokens.

    Requires: nothing. The gates' weights grow with the square of the number of columns.

    Relations: `mixture` weights the outputs of perceptrons; here the gates weight single features of single columns.
    The paper's tied gates z and 1 - z are for two modalities; this is its form with one sigmoid gate a modality.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> fusion = GatedFusion(["review", "stars"], 8)
        >>> columns = {name: Tokens(torch.randn(4, 1, 8), torch.ones(4, 1).bool()) for name in fusion.columns}
        >>> fusion(columns, dict.fromkeys(columns, torch.ones(4).bool())).pooled.shape
        torch.Size([4, 8])

    Reference: Arevalo et al. 2017, "Gated Multimodal Units for Information Fusion" (arXiv 1702.01992).
    """

    def __init__(
        self, columns: Sequence[str], dim: int, *, dropout: float = 0.1, modality_dropout: float = 0.1
    ) -> None:
        super().__init__(columns, dim, modality_dropout=modality_dropout)
        num = len(self.columns)
        self.transforms = nn.ModuleList(nn.Linear(dim, dim) for _ in self.columns)
        self.gates = nn.Linear(num * dim, num * dim)
        self.dropout = nn.Dropout(check_rate("dropout", dropout))

    def mix(self, vectors: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """See `VectorFusion.mix`. The fused vectors are the gated ones."""
        hidden = torch.stack([layer(vectors[:, index]) for index, layer in enumerate(self.transforms)], dim=1).tanh()
        gates = self.gates(vectors.flatten(1)).sigmoid().view_as(hidden)  # (batch, columns, dim)
        gated = (self.dropout(hidden) * gates).masked_fill(~counted.unsqueeze(-1), 0.0)
        return gated, gated.sum(1)
