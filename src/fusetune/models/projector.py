"""Projectors: an encoder's vectors of a cell as the few vectors that a language model reads in its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.types import Tokens

HEADS = 8


class Projector(nn.Module):
    """Map a cell's projected tokens to `num` vectors of the size of a language model's embeddings.

    Each vector is scaled to one root mean square, a learned gain that starts at that of the embeddings.

    Args:
        dim: width of the language model's embeddings.
        num: vectors of a cell.
        scale: root mean square of the embeddings.
    """

    def __init__(self, dim: int, num: int, *, scale: float) -> None:
        super().__init__()
        self.num = num
        self.slots = nn.Parameter(torch.randn(num, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.gain = nn.Parameter(torch.tensor(scale))

    def gather(self, tokens: Tokens) -> Tensor:
        """Return (batch, num, dim) from a cell's tokens: the mean of each of `num` stretches of them.

        A cell with fewer tokens than `num` has some of them in several stretches.
        """
        count = tokens.mask.sum(1, keepdim=True).clamp(min=1)  # (batch, 1)
        slot = torch.arange(self.num, device=count.device)
        first = slot * count // self.num  # (batch, num)
        last = ((slot + 1) * count + self.num - 1) // self.num
        at = torch.arange(tokens.mask.shape[1], device=count.device)
        inside = (at >= first.unsqueeze(-1)) & (at < last.unsqueeze(-1))  # (batch, num, tokens)
        weight = inside.to(tokens.values.dtype)
        mean: Tensor = torch.bmm(weight, tokens.values) / weight.sum(-1, keepdim=True).clamp(min=1)
        return mean

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (batch, num, dim); what a row without tokens has is arbitrary."""
        values = self.norm(self.gather(tokens) + self.slots)
        out: Tensor = values + self.mlp(values)
        scaled: Tensor = F.normalize(out, dim=-1, eps=1e-6) * out.shape[-1] ** 0.5 * self.gain
        return scaled


class QueryProjector(Projector):
    """A projector whose vectors are learned queries that attend to all of a cell's tokens (as BLIP-2, Li et al. 2023,
    arXiv 2301.12597, in one layer)."""

    def __init__(self, dim: int, num: int, *, scale: float) -> None:
        super().__init__(dim, num, scale=scale)
        heads = next(number for number in range(min(HEADS, dim), 0, -1) if dim % number == 0)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def gather(self, tokens: Tokens) -> Tensor:
        """See `Projector.gather`."""
        mask = tokens.mask.clone()
        mask[:, 0] |= ~mask.any(1)  # attention to nothing is undefined
        queries = self.slots.expand(len(mask), -1, -1).to(tokens.values.dtype)
        out: Tensor = self.attention(queries, tokens.values, tokens.values, key_padding_mask=~mask)[0]
        return out


PROJECTORS: dict[str, type[Projector]] = {"mlp": Projector, "queries": QueryProjector}
"""By the setting `prompt.projector`."""
