"""The transformer block that the attention fusions share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class AttentionBlock(nn.Module):
    """A pre-norm transformer block: attention, then a two-layer perceptron, each added to its input.

    Queries, keys and values have no bias: a bias on keys cancels in the softmax and would never be trained.

    Args:
        dim: features of a token, divisible by `num_heads`.
        num_heads: attention heads.
        dropout: rate in [0, 1) on the attention weights and on both residual branches.
        widen: hidden features of the perceptron, in multiples of `dim`.

    Reference: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture" (arXiv 2002.04745).
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float, widen: int = 4) -> None:
        super().__init__()
        self.num_heads, self.rate = num_heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, widen * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(widen * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """Update the tokens by attention and the perceptron.

        Args:
            tokens: (batch, tokens, dim), the queries.
            mask: (batch, keys) bool, True where a key may be attended to; (batch, tokens, keys) if that depends on the
                query. Every query has at least one key.
            context: (batch, keys, dim), the keys and values. None: the tokens themselves.

        Returns:
            (batch, tokens, dim).
        """
        batch, num, dim = tokens.shape
        queries = self.norm_attention(tokens)
        source = queries if context is None else self.norm_attention(context)
        query_weight, key_value_weight = self.qkv.weight.tensor_split((dim,))
        query = F.linear(queries, query_weight).view(batch, num, self.num_heads, -1).transpose(1, 2)
        keys_values = F.linear(source, key_value_weight).view(batch, source.shape[1], 2, self.num_heads, -1)
        key, value = keys_values.permute(2, 0, 3, 1, 4)  # each (batch, heads, keys, dim / heads)
        mask = mask.unsqueeze(1) if mask.ndim == 2 else mask  # (batch, tokens or 1, keys)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask.unsqueeze(1), dropout_p=self.rate if self.training else 0.0
        )
        tokens = tokens + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, num, dim)))
        added: Tensor = self.dropout(self.mlp(self.norm_mlp(tokens)))
        return tokens + added
