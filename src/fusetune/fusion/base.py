"""The contract of a fusion: the tokens of a row's columns into one vector."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from fusetune.types import Tokens

FusedTokens = Mapping[str, Tokens]
"""Per column, its tokens after the fusion: (batch, tokens, dim), with a mask."""


class Fused:
    """The output of a fusion.

    Attributes:
        pooled: (batch, dim), one vector a row.
    """

    def __init__(self, tokens: FusedTokens | Callable[[], FusedTokens], pooled: Tensor) -> None:
        """
        Args:
            tokens: per column, (batch, tokens, dim) with its mask; or a function that computes them, which is called
                when they are first read. Most heads read `pooled` alone, so pass a function where tokens cost time.
            pooled: (batch, dim).
        """
        self._tokens, self.pooled = tokens, pooled

    @property
    def tokens(self) -> FusedTokens:
        """Per column, its tokens after the fusion: (batch, tokens, dim), with a mask."""
        if callable(self._tokens):
            self._tokens = self._tokens()
        return self._tokens


class Fusion(nn.Module, abc.ABC):
    """Maps the tokens of a row's columns to one pooled vector, and to fused tokens where a head asks for them.

    Rules, one test each in `fusetune.testing.fusion.FusionContract`:

    - The constructor takes the columns' names and `dim`. Keyword-only arguments are the fusion's settings and need
      defaults; there is none that every fusion must have.
    - Every parameter receives a gradient, with one column as with many.
    - Any non-empty subset of the columns gives a finite `pooled` of shape (batch, dim), in training and evaluation.
    - A row is fused by itself: neither the other rows nor the amount of padding change its vector.
    - What stands in place of an absent column or of a masked token, NaN included, changes nothing. `present` decides
      together with the mask: a column counts in a row where `present` holds and a token is real.
    - float64 and bf16 autocast work. Arguments are not changed in place. Evaluation draws no random numbers.
    - Fused tokens: one entry a column, with as many tokens as came in (at their places) or with a single one. They are
      real exactly where the column's own tokens are real and the column is present.
    - `modality_dropout`, where the constructor has it: a column that is dropped in training is treated as an absent
      one, and at least one column a row stays.

    Attributes:
        columns: names of the columns, in the order of the constructor.
        dim: features of each token and of the pooled vector.
    """

    interacts: ClassVar[bool] = False
    """Whether the fusion claims to learn what no column tells by itself, such as the sign of a product of two columns'
    features. The contract suite holds a fusion that sets it to True to that."""

    def __init__(self, columns: Sequence[str], dim: int) -> None:
        """
        Args:
            columns: names of the columns, in a fixed order.
            dim: features of each token and of the pooled vector.
        """
        super().__init__()
        self.columns, self.dim = tuple(columns), dim

    @abc.abstractmethod
    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """Fuse a batch of rows.

        Args:
            columns: per column, (batch, tokens, dim) with its mask; a row that lacks the column has no real token.
                The number of tokens differs from column to column and may be 0.
            present: per column, (batch,) bool. Each row has at least one present column with a real token.
        """
