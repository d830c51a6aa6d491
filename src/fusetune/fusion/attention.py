"""Late fusion by attention: a small transformer over the columns' tokens, read by a learned query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.errors import ConfigError
from fusetune.fusion._columns import check_rate, kept_columns
from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens


class AttentionBlock(nn.Module):
    """A pre-norm transformer block: self-attention, then a two-layer perceptron, each added to its input.

    Queries, keys and values have no bias: a bias on keys cancels in the softmax and would never be trained.
    Reference: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture" (arXiv 2002.04745).
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float, widen: int = 4) -> None:
        """
        Args:
            dim: features of a token, divisible by `num_heads`.
            num_heads: attention heads.
            dropout: rate in [0, 1) on attention weights and on what each half adds.
            widen: hidden features of the perceptron, in multiples of `dim`.
        """
        super().__init__()
        self.num_heads, self.rate = num_heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, widen * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(widen * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            tokens: (batch, tokens, dim).
            mask: (batch, tokens) bool, True where a token may be attended to; at least one a row.

        Returns:
            (batch, tokens, dim).
        """
        batch, num, dim = tokens.shape
        qkv = self.qkv(self.norm_attention(tokens)).view(batch, num, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, dim / heads)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask[:, None, None, :], dropout_p=self.rate if self.training else 0.0
        )
        tokens = tokens + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, num, dim)))
        added: Tensor = self.dropout(self.mlp(self.norm_mlp(tokens)))
        return tokens + added


class AttentionFusion(Fusion):
    """A transformer over [query; tokens of column 1; tokens of column 2; ...].

    Every token gets its column's learned embedding. Where a column is absent, one learned null token stands in its
    place and its own tokens are masked, so that "absent" is itself a signal. The pooled vector is what the query
    has become after the last block.
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
            depth: transformer blocks, at least 1.
            dropout: rate in [0, 1) inside the blocks.
            modality_dropout: probability in [0, 1) that a present column is hidden from a row in training.

        Raises:
            ConfigError: a setting is out of range or `dim` cannot be split among the heads.
        """
        super().__init__(columns, dim)
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(
                "the fusion's dim cannot be split among its heads",
                expected="dim divisible by num_heads",
                came=f"dim={dim}, num_heads={num_heads}",
                do="choose num_heads among the divisors of dim",
            )
        if depth < 1:
            raise ConfigError("depth is out of range", expected="1 or more blocks", came=str(depth))
        self.modality_dropout = check_rate("modality_dropout", modality_dropout)
        self.query = nn.Parameter(torch.randn(dim) * 0.02)
        self.column = nn.Parameter(torch.randn(len(self.columns), dim) * 0.02)
        self.null = nn.Parameter(torch.randn(len(self.columns), dim) * 0.02)
        self.blocks = nn.ModuleList(
            AttentionBlock(dim, num_heads=num_heads, dropout=check_rate("dropout", dropout)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`; the fused tokens are all but the query's, null tokens counted as real."""
        kept = kept_columns(self.columns, columns, present, drop=self.modality_dropout, training=self.training)
        pieces, masks = [], []
        for place, name in enumerate(self.columns):
            values, mask = self._with_null(columns[name], kept[:, place], self.null[place])
            pieces.append(values + self.column[place].to(values.dtype))
            masks.append(mask)
        query = self.query.to(pieces[0].dtype).expand(len(kept), 1, -1)  # (batch, 1, dim)
        tokens = torch.cat([query, *pieces], dim=1)  # (batch, 1 + tokens, dim)
        mask = torch.cat([torch.ones_like(kept[:, :1]), *masks], dim=1)
        for block in self.blocks:
            tokens = block(tokens, mask)
        tokens = self.norm(tokens)
        return Fused(tokens=Tokens(tokens[:, 1:], mask[:, 1:]), pooled=tokens[:, 0])

    @staticmethod
    def _with_null(tokens: Tokens, kept: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
        """A column's tokens with the null token in the first place of rows that lack the column."""
        values, mask = tokens.values, tokens.mask & kept.unsqueeze(1)
        if values.shape[1] == 0:
            values, mask = values.new_zeros(len(kept), 1, values.shape[2]), kept.unsqueeze(1)
        values = values.masked_fill(~mask.unsqueeze(-1), 0.0)
        first = torch.zeros_like(mask)
        first[:, 0] = ~kept
        return torch.where(first.unsqueeze(-1), null.to(values.dtype), values), mask | first
