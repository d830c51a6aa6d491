"""Fusion by a mixture of experts: a router weighs several perceptrons, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusetune.fusion._columns import VectorFusion, check_count, perceptron


class MixtureFusion(VectorFusion):
    """Weigh several perceptrons, the experts, by a router that sees the whole row.

    pooled = LayerNorm(Σ_e g_e MLP_e(x)), g = softmax(G x + b), x = [v_1; ...; v_k], v_c the mean of column c's real
    tokens, or its learned null vector where the column is absent, so that the router sees what is missing. With
    `top_k`, all but the `top_k` largest of G x + b are left out of the softmax; an expert that no row chooses then
    learns nothing, and no loss balances the experts' loads.

    Inputs: (batch, tokens, dim) a column, averaged over its real tokens.

    Requires: nothing. All experts are computed, with `top_k` too.

    Relations: with one expert it is `concat` without the linear path; `gated` weighs features instead of perceptrons.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> fusion = MixtureFusion(["text", "image"], 8, num_experts=4, top_k=2)
        >>> columns = {name: Tokens(torch.randn(4, 1, 8), torch.ones(4, 1).bool()) for name in fusion.columns}
        >>> fusion(columns, dict.fromkeys(columns, torch.ones(4).bool())).pooled.shape
        torch.Size([4, 8])

    Reference: Jacobs et al. 1991, "Adaptive Mixtures of Local Experts", for the dense form; Shazeer et al. 2017 (arXiv
    1701.06538), without its noise, for `top_k`.
    """

    def __init__(
        self,
        columns: Sequence[str],
        dim: int,
        *,
        num_experts: int = 4,
        top_k: int | None = None,
        depth: int = 1,
        dropout: float = 0.1,
        modality_dropout: float = 0.1,
    ) -> None:
        """
        Args:
            columns: the columns, in a fixed order.
            dim: features of every token and of the pooled vector.
            num_experts: perceptrons, at least 1.
            top_k: how many of them answer for a row, 1 to `num_experts`. None: all.
            depth: hidden layers of each, at least 1, each of 2 x dim features.
            dropout: rate in [0, 1) after every hidden layer.
            modality_dropout: probability in [0, 1) that a present column is hidden from a row in training.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__init__(columns, dim, modality_dropout=modality_dropout)
        wide, num_experts = len(self.columns) * dim, check_count("num_experts", num_experts)
        self.top_k = None if top_k is None else check_count("top_k", top_k, most=num_experts)
        self.router = nn.Linear(wide, num_experts)
        self.experts = nn.ModuleList(perceptron(wide, dim, depth=depth, dropout=dropout) for _ in range(num_experts))

    def mix(self, vectors: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """See `VectorFusion.mix`. Fused vectors are the columns' own."""
        joint = vectors.flatten(1)  # (batch, columns * dim)
        votes: Tensor = self.router(joint)  # (batch, experts)
        if self.top_k is not None:
            chosen = torch.zeros_like(votes, dtype=torch.bool).scatter(1, votes.topk(self.top_k).indices, True)
            votes = votes.masked_fill(~chosen, -torch.inf)
        answers = torch.stack([expert(joint) for expert in self.experts], dim=1)  # (batch, experts, dim)
        return vectors, (votes.softmax(1).unsqueeze(2) * answers).sum(1)
