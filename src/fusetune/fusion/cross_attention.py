"""Fusion by cross-attention: every column attends to the others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fusetune.fusion._attention import AttentionBlock
from fusetune.fusion.attention import AttentionFusion
from fusetune.fusion.base import Fused
from fusetune.types import Tokens


class CrossAttentionFusion(AttentionFusion):
    """Let the tokens of each column attend to the tokens of all other columns.

    In each block a column's tokens are the queries, and the other columns' tokens the keys and values. All columns are
    updated at once, by attention, a perceptron and residual connections. In a final block a learned query attends to
    all tokens; its output, normalised, is `pooled`. Column embeddings and null tokens are as in `attention`. A single
    column attends to itself.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector, divisible by `num_heads`.
        num_heads: attention heads, at least 1.
        depth: cross-attention blocks, at least 1, not counting the final block of the query.
        dropout: rate in [0, 1) inside the blocks.
        modality_dropout: probability in [0, 1) that a row's present column is treated as absent in training.

    Raises:
        ConfigError: a setting is out of range or `dim` cannot be split among the heads.

    Inputs: (batch, tokens, dim) a column.

    Requires: `dim` divisible by `num_heads`. It is useful with two or more columns.

    Relations: in `attention`, columns attend to themselves too. The papers have weights for each pair of modalities;
    here all columns share a block's weights and differ by their embeddings and projections, so the size does not grow
    with the number of columns.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> fusion = CrossAttentionFusion(["question", "picture"], 16, num_heads=2, depth=1)
        >>> columns = {name: Tokens(torch.randn(4, 5, 16), torch.ones(4, 5).bool()) for name in fusion.columns}
        >>> fusion(columns, dict.fromkeys(columns, torch.ones(4).bool())).pooled.shape
        torch.Size([4, 16])

    Reference: Lu et al. 2019, "ViLBERT" (co-attention, arXiv 1908.02265); Tsai et al. 2019, "Multimodal Transformer"
    (arXiv 1906.00295).
    """

    def __init__(
        self,
        columns: Sequence[str],
        dim: int,
        *,
        num_heads: int = 4,
        depth: int = 2,
        dropout: float = 0.1,
        modality_dropout: float = 0.1,
    ) -> None:
        super().__init__(
            columns, dim, num_heads=num_heads, depth=depth, dropout=dropout, modality_dropout=modality_dropout
        )
        self.reader = AttentionBlock(dim, num_heads=num_heads, dropout=dropout)

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`."""
        tokens, mask, owner, counted = self.sequence(columns, present)
        others = owner.unsqueeze(1) != owner  # (tokens, tokens)
        allowed = mask.unsqueeze(1) & others if len(self.columns) > 1 else mask
        for block in self.blocks:
            tokens = block(tokens, allowed)
        pooled = self.norm(self.reader(self.start(tokens), mask, tokens))[:, 0]
        return Fused(lambda: self.split(self.norm(tokens), mask, counted, columns), pooled)
