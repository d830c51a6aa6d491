"""Fusion by the mean of the columns, without parameters."""

from __future__ import annotations

from torch import Tensor

from fusetune.fusion._columns import column_vectors, present_columns, single_tokens
from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens


class MeanFusion(Fusion):
    """Average the vectors of the present columns; nothing is learned.

    pooled = the mean of v_c over the present columns c, with v_c the mean of column c's real tokens.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector.

    Inputs: (batch, tokens, dim) a column, averaged over its real tokens.

    Requires: nothing.

    Relations: a baseline for the other fusions, all of which can learn interactions of columns (`interacts`); the mean
    cannot.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> a, b = (Tokens(torch.full((1, 1, 2), value), torch.ones(1, 1).bool()) for value in (1.0, 3.0))
        >>> present, absent = torch.tensor([True]), torch.tensor([False])
        >>> fusion = MeanFusion(["a", "b"], 2)
        >>> fusion({"a": a, "b": b}, {"a": present, "b": present}).pooled
        tensor([[2., 2.]])
        >>> fusion({"a": a, "b": b}, {"a": present, "b": absent}).pooled
        tensor([[1., 1.]])

    Reference: none; the mean of embeddings.
    """

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`. Each column has a single fused token."""
        counted = present_columns(self.columns, columns, present, drop=0, training=False)
        null = columns[self.columns[0]].values.new_zeros(len(self.columns), self.dim)
        vectors = column_vectors(self.columns, columns, counted, null)  # (batch, columns, dim)
        return Fused(single_tokens(self.columns, vectors, counted), Tokens(vectors, counted).mean())
