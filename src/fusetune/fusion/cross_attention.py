"""Fusion by cross-attention: every column asks the others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fusetune.fusion._attention import AttentionBlock
from fusetune.fusion.attention import AttentionFusion
from fusetune.fusion.base import Fused
from fusetune.types import Tokens


class CrossAttentionFusion(AttentionFusion):
    """In each block, a column's tokens are queries, and the tokens of all other columns are keys and values.

    All columns are updated at once from the same tokens, each by attention, perceptron and residuals. Then one block
    lets a learned query attend to all tokens; what it becomes is the pooled vector. Column embeddings and null tokens
    are those of `attention`. A single column has no others and attends to itself.

    Reference: Lu et al. 2019, "ViLBERT" (co-attention, arXiv 1908.02265), and Tsai et al. 2019, "Multimodal
    Transformer" (arXiv 1906.00295), for any number of columns: where the papers have weights for each pair of
    modalities, the columns here share a block's weights and differ by their embeddings and projections, so the size
    does not grow with the number of columns.
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
