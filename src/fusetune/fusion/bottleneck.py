"""Fusion by attention bottlenecks: columns exchange information only through a few shared tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusetune.fusion._attention import AttentionBlock
from fusetune.fusion._columns import check_count
from fusetune.fusion.attention import AttentionFusion
from fusetune.fusion.base import Fused
from fusetune.types import Tokens


class BottleneckFusion(AttentionFusion):
    """Let columns exchange information only through a few shared latent tokens.

    Each block updates x_c ← Block(x_c over [x_c; b]) and b_c ← Block(b over x_c) for every column c, then b ← the mean
    of b_c over the present columns. So the latent tokens b must summarise each column in a few vectors. In a final
    block a learned query attends to all columns' tokens and to b; its output, normalised, is `pooled`. Column
    embeddings and null tokens are as in `attention`.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector, divisible by `num_heads`.
        num_latents: shared latent tokens, at least 1.
        num_heads: attention heads, at least 1.
        depth: blocks, at least 1, not counting the final block of the query. With 1, only the query sees several
            columns.
        dropout: rate in [0, 1) inside the blocks.
        modality_dropout: probability in [0, 1) that a row's present column is treated as absent in training.

    Raises:
        ConfigError: a setting is out of range or `dim` cannot be split among the heads.

    Inputs: (batch, tokens, dim) a column.

    Requires: `dim` divisible by `num_heads`. With `depth=1` only the query sees several columns.

    Relations: cheaper than `attention` for long columns (`text.pool=none`). The paper has weights for each modality;
    here the columns share a block's weights. In the paper the queries b also attend to b itself; not here, as b would
    outnumber a column that is a single token.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> fusion = BottleneckFusion(["report", "scan"], 16, num_latents=2, num_heads=2)
        >>> columns = {name: Tokens(torch.randn(4, 40, 16), torch.ones(4, 40).bool()) for name in fusion.columns}
        >>> fusion(columns, dict.fromkeys(columns, torch.ones(4).bool())).pooled.shape
        torch.Size([4, 16])

    Reference: Nagrani et al. 2021, "Attention Bottlenecks for Multimodal Fusion" (MBT, arXiv 2107.00135).
    """

    def __init__(
        self,
        columns: Sequence[str],
        dim: int,
        *,
        num_latents: int = 4,
        num_heads: int = 4,
        depth: int = 2,
        dropout: float = 0.1,
        modality_dropout: float = 0.1,
    ) -> None:
        super().__init__(
            columns, dim, num_heads=num_heads, depth=depth, dropout=dropout, modality_dropout=modality_dropout
        )
        self.latents = nn.Parameter(torch.randn(check_count("num_latents", num_latents), dim) * 0.02)
        self.reader = AttentionBlock(dim, num_heads=num_heads, dropout=dropout)

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`."""
        tokens, mask, owner, counted = self.sequence(columns, present)
        num, num_columns, num_latents = tokens.shape[1], len(self.columns), len(self.latents)
        latents = self.latents.to(tokens.dtype).expand(tokens.shape[0], -1, -1)  # (batch, latents, dim)
        copy_owner = torch.arange(num_columns, device=owner.device).repeat_interleave(
            num_latents
        )  # the column of each copy of b
        own = mask.unsqueeze(1) & (torch.cat([owner, copy_owner]).unsqueeze(1) == owner)  # (batch, queries, tokens)
        shared = (torch.arange(own.shape[1], device=owner.device) < num).view(1, -1, 1)
        allowed = torch.cat([own, shared.expand(tokens.shape[0], -1, num_latents)], dim=2)
        share = counted.to(tokens.dtype)[:, :, None, None]  # (batch, columns, 1, 1)
        for block in self.blocks:
            queries = torch.cat([tokens, latents.repeat(1, num_columns, 1)], dim=1)
            tokens, copies = block(queries, allowed, torch.cat([tokens, latents], dim=1)).tensor_split((num,), dim=1)
            latents = (copies.unflatten(1, (num_columns, num_latents)) * share).sum(1) / share.sum(1)
        all_tokens = torch.cat([tokens, latents], dim=1)
        real = torch.cat([mask, torch.ones_like(mask[:, :1]).expand(-1, num_latents)], dim=1)
        pooled = self.norm(self.reader(self.start(tokens), real, all_tokens))[:, 0]
        return Fused(lambda: self.split(self.norm(tokens), mask, counted, columns), pooled)
