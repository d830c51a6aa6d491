"""The match family: all columns are projected into one space, in which matching cells lie close together."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fusetune.models.family import Family
from fusetune.models.reader import Encoded
from fusetune.types import Outputs


class Match(Family):
    """Projects every column into one space; the mean of a column's projected tokens is its vector."""

    name = "match"

    def after_encoders(self) -> list[nn.Module]:
        """See `Family.after_encoders`."""
        return [self.projections]

    def combine(self, encoded: Encoded, cells: Mapping[str, Tensor], rows: Tensor) -> Outputs:
        """See `Family.combine`. The outputs have each column's tokens, but no pooled vector and no logits."""
        columns = {}
        for column in self.columns:
            read = encoded(column)
            scaled = None if read is None else self.standardise(column, read)
            columns[column] = self.project(column, scaled, cells.get(column), rows)
        return Outputs(logits={}, columns=columns)
