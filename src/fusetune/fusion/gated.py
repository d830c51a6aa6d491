"""Fusion by gates: how much each column counts is decided per row and feature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusetune.fusion._columns import VectorFusion, check_rate


class GatedFusion(VectorFusion):
    """Decide a row and feature at a time how much each column counts.

    h_c = tanh(W_c v_c + b_c), z_c = sigmoid(G_c [v_1; ...; v_k] + g_c), pooled = LayerNorm(Σ z_c * h_c over the present
    columns), v_c the mean of column c's real tokens. An absent column adds nothing; its learned null vector stands for
    it in what the gates see.

    Inputs: (batch, tokens, dim) a column, averaged over its real tokens.

    Requires: nothing. The gates' weights grow with the square of the number of columns.

    Relations: `mixture` weighs whole perceptrons, this single features of single columns. The paper's tied gate z, 1 -
    z covers two modalities; this is its form with one sigmoid gate a modality.

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
        """
        Args:
            columns: the columns, in a fixed order.
            dim: features of every token and of the pooled vector.
            dropout: rate in [0, 1) on what the columns add.
            modality_dropout: probability in [0, 1) that a present column is hidden from a row in training.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__init__(columns, dim, modality_dropout=modality_dropout)
        num = len(self.columns)
        self.transforms = nn.ModuleList(nn.Linear(dim, dim) for _ in self.columns)
        self.gates = nn.Linear(num * dim, num * dim)
        self.dropout = nn.Dropout(check_rate("dropout", dropout))

    def mix(self, vectors: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """See `VectorFusion.mix`. Fused vectors are the gated ones."""
        hidden = torch.stack([layer(vectors[:, place]) for place, layer in enumerate(self.transforms)], dim=1).tanh()
        gates = self.gates(vectors.flatten(1)).sigmoid().view_as(hidden)  # (batch, columns, dim)
        gated = (self.dropout(hidden) * gates).masked_fill(~kept.unsqueeze(-1), 0.0)
        return gated, gated.sum(1)
