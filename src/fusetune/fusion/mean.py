"""The mean of the columns: the plainest fusion, which learns nothing."""

from __future__ import annotations

from torch import Tensor

from fusetune.fusion._columns import column_vectors, kept_columns, one_token_each
from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens


class MeanFusion(Fusion):
    """pooled = mean over the present columns of v_c, v_c the mean of column c's tokens. Nothing in it is learned."""

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`; the fused tokens are one vector a column, real where the column is present."""
        kept = kept_columns(self.columns, columns, present, drop=0, training=False)
        nothing = columns[self.columns[0]].values.new_zeros(len(self.columns), self.dim)
        vectors = column_vectors(self.columns, columns, kept, nothing)  # (batch, columns, dim)
        return Fused(one_token_each(self.columns, vectors, kept), Tokens(vectors, kept).mean())
