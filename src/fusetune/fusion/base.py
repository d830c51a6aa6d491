"""The contract of a fusion: the columns' tokens into one representation a row."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fusetune.types import Tokens


class Fused:
    """What a fusion gives.

    Attributes:
        pooled: (batch, dim).
    """

    def __init__(self, tokens: Tokens | Callable[[], Tokens], pooled: Tensor) -> None:
        """
        Args:
            tokens: (batch, tokens, dim) with its mask; or what computes them, where most tasks read `pooled` alone and
                they cost something.
            pooled: (batch, dim).
        """
        self._tokens, self.pooled = tokens, pooled

    @property
    def tokens(self) -> Tokens:
        """(batch, tokens, dim) with its mask."""
        if not isinstance(self._tokens, Tokens):
            self._tokens = self._tokens()
        return self._tokens


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
