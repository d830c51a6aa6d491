"""The mean of the columns: the plainest fusion, which learns nothing."""

from __future__ import annotations

from torch import Tensor

from fusetune.fusion._columns import column_vectors, kept_columns, one_token_each
from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens


class MeanFusion(Fusion):
    """Average the present columns. Nothing in it is learned.

    pooled = the mean of v_c over the present columns, v_c the mean of column c's real tokens.

    Inputs: (batch, tokens, dim) a column, averaged over its real tokens.

    Requires: nothing.

    Relations: it cannot tell what only several columns together tell (`interacts` is False); every other fusion can. A
    baseline for them.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> one, two = (Tokens(torch.full((1, 1, 2), value), torch.ones(1, 1).bool()) for value in (1.0, 3.0))
        >>> here, gone = torch.tensor([True]), torch.tensor([False])
        >>> fusion = MeanFusion(["a", "b"], 2)
        >>> fusion({"a": one, "b": two}, {"a": here, "b": here}).pooled
        tensor([[2., 2.]])
        >>> fusion({"a": one, "b": two}, {"a": here, "b": gone}).pooled
        tensor([[1., 1.]])

    Reference: none; the average of embeddings.
    """

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`. Fused tokens are one vector a column."""
        kept = kept_columns(self.columns, columns, present, drop=0, training=False)
        nothing = columns[self.columns[0]].values.new_zeros(len(self.columns), self.dim)
        vectors = column_vectors(self.columns, columns, kept, nothing)  # (batch, columns, dim)
        return Fused(one_token_each(self.columns, vectors, kept), Tokens(vectors, kept).mean())
