"""Fusion by cross-attention: every column asks the others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fusetune.fusion._attention import AttentionBlock
from fusetune.fusion.attention import AttentionFusion
from fusetune.fusion.base import Fused
from fusetune.types import Tokens


class CrossAttentionFusion(AttentionFusion):
    """Let the tokens of each column attend to the tokens of all other columns.

    In each block a column's tokens are the queries, the other columns' tokens keys and values. All columns are updated
    at once, by attention, perceptron and residuals. Then one block lets a learned query attend to all tokens; `pooled`
    is what it becomes, normalised. Column embeddings and null tokens are those of `attention`. A single column attends
    to itself.

    Inputs: (batch, tokens, dim) a column.

    Requires: `dim` divisible by `num_heads`; two or more columns to be of use.

    Relations: `attention` lets a column attend to itself too. The papers have weights for each pair of modalities; here
    the columns share a block's weights and differ by their embeddings and projections, so that the size does not grow
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
        """
        Args:
            columns: the columns, in a fixed order.
            dim: features of every token, divisible by `num_heads`.
            num_heads: attention heads, at least 1.
            depth: cross-attention blocks, at least 1; the query's own block comes on top.
            dropout: rate in [0, 1) inside the blocks.
            modality_dropout: probability in [0, 1) that a present column is hidden from a row in training.

        Raises:
            ConfigError: a setting is out of range or `dim` cannot be split among the heads.
        """
        super().__init__(
            columns, dim, num_heads=num_heads, depth=depth, dropout=dropout, modality_dropout=modality_dropout
        )
        self.reader = AttentionBlock(dim, num_heads=num_heads, dropout=dropout)

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`."""
        tokens, mask, owner, kept = self.sequence(columns, present)
        others = owner.unsqueeze(1) != owner  # (tokens, tokens)
        seen = mask.unsqueeze(1) & others if len(self.columns) > 1 else mask
        for block in self.blocks:
            tokens = block(tokens, seen)
        pooled = self.norm(self.reader(self.start(tokens), mask, tokens))[:, 0]
        return Fused(lambda: self.split(self.norm(tokens), mask, kept, columns), pooled)
