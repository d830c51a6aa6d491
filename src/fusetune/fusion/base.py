"""The contract of a fusion: the columns' tokens into one representation a row."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fusetune.types import Tokens


@dataclass
class Fused:
    """What a fusion gives.

    Attributes:
        tokens: (batch, tokens, dim) with its mask.
        pooled: (batch, dim).
    """

    tokens: Tokens
    pooled: Tensor


class Fusion(nn.Module, abc.ABC):
    """Maps each column's tokens to fused tokens and a pooled vector.

    What the contract suite holds every fusion to: each parameter receives a gradient; a row with any subset of
    its columns (at least one) gives finite output; the value of an absent column never changes the output.
    """

    def __init__(self, columns: Sequence[str], dim: int) -> None:
        """
        Args:
            columns: the columns, in a fixed order.
            dim: features of every token that comes in and of the pooled vector that goes out.
        """
        super().__init__()
        self.columns, self.dim = tuple(columns), dim

    @abc.abstractmethod
    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """
        Args:
            columns: per column, (batch, tokens, dim); a row that lacks the column has no real token there.
            present: per column, (batch,) bool.
        """
