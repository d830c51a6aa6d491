"""Fusion by a mixture of experts: a router weights the outputs of several perceptrons, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusetune.fusion._columns import VectorFusion, check_count, perceptron


class MixtureFusion(VectorFusion):
    """Weight the outputs of several perceptrons, the experts, by a router that reads all columns.

    pooled = LayerNorm(Σ_e g_e MLP_e(x)), g = softmax(G x + b), x = [v_1; ...; v_k], with v_c the mean of column c's
    real tokens, or its learned null vector where the column is absent. With `top_k`, the softmax is over the `top_k`
    largest router logits only. There is no load-balancing loss: an expert that no row selects does not learn.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector.
        num_experts: number of perceptrons, at least 1.
        top_k: number of experts used for a row, 1 to `num_experts`. None: all.
        depth: hidden layers of each perceptron, at least 1, each of 2 x dim features.
        dropout: rate in [0, 1) after every hidden layer.
        modality_dropout: probability in [0, 1) that a row's present column is treated as absent in training.

    Raises:
        ConfigError: a setting is out of range.

    Inputs: (batch, tokens, dim) a column, averaged over its real tokens.

    Requires: nothing. All experts are computed, even with `top_k`.

    Relations: with one expert it is `concat` without the skip connection; `gated` weights features instead of
    perceptrons.

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
        super().__init__(columns, dim, modality_dropout=modality_dropout)
        wide, num_experts = len(self.columns) * dim, check_count("num_experts", num_experts)
        self.top_k = None if top_k is None else check_count("top_k", top_k, most=num_experts)
        self.router = nn.Linear(wide, num_experts)
        self.experts = nn.ModuleList(perceptron(wide, dim, depth=depth, dropout=dropout) for _ in range(num_experts))

    def mix(self, vectors: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """See `VectorFusion.mix`. The fused vectors are the columns' own."""
        features = vectors.flatten(1)  # (batch, columns * dim)
        logits: Tensor = self.router(features)  # (batch, experts)
        if self.top_k is not None:
            chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(self.top_k).indices, True)
            logits = logits.masked_fill(~chosen, -torch.inf)
        outputs = torch.stack([expert(features) for expert in self.experts], dim=1)  # (batch, experts, dim)
        return vectors, (logits.softmax(1).unsqueeze(2) * outputs).sum(1)
