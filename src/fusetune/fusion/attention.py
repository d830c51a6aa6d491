"""Fusion by attention: a small transformer over the columns' tokens, pooled by a learned query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.fusion._attention import AttentionBlock
from fusetune.fusion._columns import check_count, check_rate, present_columns
from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens


class AttentionFusion(Fusion):
    """Run a transformer over the tokens of all columns, and pool with a learned query.

    The sequence is [query; tokens of column 1; tokens of column 2; ...]. Pre-norm blocks attend over all of it;
    `pooled` is the query after the last block, normalised. A learned embedding of its column is added to each token. An
    absent column is replaced by one learned null token, so that the model sees its absence.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector, divisible by `num_heads`.
        num_heads: attention heads, at least 1.
        depth: transformer blocks, at least 1.
        dropout: rate in [0, 1) inside the blocks.
        modality_dropout: probability in [0, 1) that a row's present column is treated as absent in training.

    Raises:
        ConfigError: a setting is out of range or `dim` cannot be split among the heads.

    Inputs: (batch, tokens, dim) a column; columns may have different numbers of tokens.

    Requires: `dim` divisible by `num_heads`. Time and memory grow with the square of the total number of tokens.

    Relations: in `cross_attention`, a column's tokens attend only to the other columns; in `bottleneck`, columns
    exchange information only through a few shared tokens, which is cheaper for long columns.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> words, photo = Tokens(torch.randn(4, 9, 16), torch.ones(4, 9).bool()), torch.randn(4, 1, 16)
        >>> columns = {"title": words, "photo": Tokens(photo, torch.tensor([[True], [True], [False], [False]]))}
        >>> present = {"title": torch.ones(4).bool(), "photo": torch.tensor([True, True, False, False])}
        >>> fused = AttentionFusion(["title", "photo"], 16, num_heads=2)(columns, present)
        >>> fused.pooled.shape, fused.tokens["title"].values.shape
        (torch.Size([4, 16]), torch.Size([4, 9, 16]))

    Reference: Vaswani et al. 2017, "Attention Is All You Need" (arXiv 1706.03762); pre-norm: Xiong et al. 2020 (arXiv
    2002.04745).
    """

    interacts = True

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
        super().__init__(columns, dim)
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(
                "the fusion's dim cannot be split among its heads",
                expected="dim divisible by num_heads",
                came=f"dim={dim}, num_heads={num_heads}",
                do="choose num_heads among the divisors of dim",
            )
        self.modality_dropout = check_rate("modality_dropout", modality_dropout)
        self.query = nn.Parameter(torch.randn(dim) * 0.02)
        self.column = nn.Parameter(torch.randn(len(self.columns), dim) * 0.02)
        self.null = nn.Parameter(torch.randn(len(self.columns), dim) * 0.02)
        self.blocks = nn.ModuleList(
            AttentionBlock(dim, num_heads=num_heads, dropout=check_rate("dropout", dropout))
            for _ in range(check_count("depth", depth))
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`."""
        tokens, mask, _, counted = self.sequence(columns, present)
        tokens = torch.cat([self.start(tokens), tokens], dim=1)  # (batch, 1 + tokens, dim)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        *earlier, last = self.blocks
        for block in earlier:
            tokens = block(tokens, mask)
        pooled = self.norm(last(tokens[:, :1], mask, tokens))[:, 0]

        def fused() -> dict[str, Tokens]:
            return self.split(self.norm(last(tokens[:, 1:], mask, tokens)), mask[:, 1:], counted, columns)

        return Fused(fused, pooled)

    def split(self, tokens: Tensor, mask: Tensor, counted: Tensor, columns: dict[str, Tokens]) -> dict[str, Tokens]:
        """Split a sequence into its columns, by column; null tokens are masked.

        Args:
            tokens: (batch, tokens, dim), all columns' tokens, concatenated.
            mask: (batch, tokens) bool, True for real tokens and for null tokens.
            counted: (batch, columns) bool, from `present_columns`.
            columns: the columns that the sequence was made from.
        """
        sizes = [max(columns[name].values.shape[1], 1) for name in self.columns]
        parts = zip(
            torch.split(tokens, sizes, 1), torch.split(mask, sizes, 1), counted.unsqueeze(2).unbind(1), strict=True
        )
        return {
            name: Tokens(values, real & counts)
            for name, (values, real, counts) in zip(self.columns, parts, strict=True)
        }

    def start(self, tokens: Tensor) -> Tensor:
        """Return the learned query for each row, (batch, 1, dim)."""
        return self.query.to(tokens.dtype).expand(tokens.shape[0], 1, -1)

    def sequence(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Concatenate all columns' tokens, with a null token for each absent column.

        Returns:
            The tokens plus their columns' embeddings, (batch, tokens, dim); their mask, (batch, tokens) bool, True for
            at least one token a column; the index of each token's column, (tokens,) int64; and the columns that count
            in each row, (batch, columns) bool.
        """
        counted = present_columns(self.columns, columns, present, drop=self.modality_dropout, training=self.training)
        pieces, masks, owners = [], [], []
        for index, name in enumerate(self.columns):
            values, mask = _with_null(columns[name], counted[:, index], self.null[index])
            pieces.append(values + self.column[index].to(values.dtype))
            masks.append(mask)
            owners.append(torch.full((mask.shape[1],), index, device=mask.device))
        return torch.cat(pieces, dim=1), torch.cat(masks, dim=1), torch.cat(owners), counted


def _with_null(tokens: Tokens, counted: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and mask of a column, its first token replaced by the null token in rows that lack the column."""
    values, mask = tokens.values, tokens.mask & counted.unsqueeze(1)
    if values.shape[1] == 0:
        values, mask = values.new_zeros(counted.shape[0], 1, values.shape[2]), counted.unsqueeze(1)
    values = values.masked_fill(~mask.unsqueeze(-1), 0.0)
    first = torch.zeros_like(mask)
    first[:, 0] = ~counted
    return torch.where(first.unsqueeze(-1), null.to(values.dtype), values), mask | first
