"""The contract of a fusion, which maps the tokens of a row's columns to one vector."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from fusetune.types import Tokens

FusedTokens = Mapping[str, Tokens]
"""By column, its tokens after the fusion: (batch, tokens, dim) with a mask."""


class Fused:
    """The output of a fusion.

    Args:
        tokens: by column, (batch, tokens, dim) with its mask; or a function that computes them when they are first
            read. Most heads read `pooled` only, so pass a function if the tokens take time to compute.
        pooled: (batch, dim), one vector a row.

    Attributes:
        pooled: (batch, dim), one vector a row.
    """

    def __init__(self, tokens: FusedTokens | Callable[[], FusedTokens], pooled: Tensor) -> None:
        self._tokens, self.pooled = tokens, pooled

    @property
    def tokens(self) -> FusedTokens:
        """By column, its tokens after the fusion: (batch, tokens, dim) with a mask."""
        if callable(self._tokens):
            self._tokens = self._tokens()
        return self._tokens


class Fusion(nn.Module, abc.ABC):
    """Map the tokens of a row's columns to one pooled vector, and to fused tokens if a head reads them.

    Rules, one test each in `fusetune.testing.fusion.FusionContract`:

    - The constructor takes the columns' names and `dim`. Keyword-only arguments are the fusion's settings and have
      defaults; no setting is mandatory for all fusions.
    - Every parameter receives a gradient, with one column as with many.
    - Any non-empty subset of the columns gives a finite `pooled` of shape (batch, dim), in training and evaluation.
    - Each row is fused independently: neither other rows nor the amount of padding change its vector.
    - The values of an absent column and of masked tokens, NaN included, have no effect. A column counts in a row if
      `present` is True and at least one token is real.
    - float64 and bf16 autocast work. Arguments are not changed in place. Evaluation draws no random numbers.
    - Fused tokens have one entry a column, with as many tokens as the column (in the same order) or a single one. They
      are real exactly where the column's own tokens are real and the column is present.
    - `modality_dropout`, if the constructor has it: a column that is dropped in training is treated as absent, and at
      least one column a row remains.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of each token and of the pooled vector.

    Attributes:
        columns: names of the columns, in the order of the constructor.
        dim: features of each token and of the pooled vector.
    """

    interacts: ClassVar[bool] = False
    """Whether the fusion can learn interactions of columns, such as the sign of a product of two columns' features. The
    contract suite trains a fusion that sets it to True on such data."""

    def __init__(self, columns: Sequence[str], dim: int) -> None:
        super().__init__()
        self.columns, self.dim = tuple(columns), dim

    @abc.abstractmethod
    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """Fuse a batch of rows.

        Args:
            columns: by column, (batch, tokens, dim) with its mask; a row that lacks the column has no real token. The
                number of tokens differs between columns and may be 0.
            present: by column, (batch,) bool. Each row has at least one present column with a real token.
        """
