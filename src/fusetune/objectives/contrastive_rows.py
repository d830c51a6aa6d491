"""The rows that a contrastive objective compares with one another, and which of them belong together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusetune.objectives.contrastive_forms import alignment, no_common_id, uniformity
from fusetune.objectives.contrastive_parts import mixed_codes, unit


class RelatedPairs:
    """Pairs of cells that are right answers to each other in some train row, though perhaps in none of a batch.

    Where queries have several documents and documents several queries, rows (a, 1) and (b, 2) of a batch share no cell,
    but 2 may be a right answer to a, too.

    Args:
        first, second: (rows,) the codes of the train rows' two cells; -1 for a missing one.
        every: keep every pair of a first cell that has several second ones. Otherwise only those are kept whose second
            cell has several first ones as well, as cells of a batch's rows are compared with each other only.
    """

    def __init__(self, first: Tensor, second: Tensor, *, every: bool = False) -> None:
        given = torch.stack([first, second], 1)[(first >= 0) & (second >= 0)]
        pairs = torch.unique(given, dim=0)
        kept = _several(pairs[:, 0]) if every else _several(pairs[:, 0]) & _several(pairs[:, 1])
        self.keys = mixed_codes(list(pairs[kept].T)).sort().values

    def __len__(self) -> int:
        return len(self.keys)

    def contain(self, first: Tensor, second: Tensor) -> Tensor:
        """Return which pairs are among these, (rows, other rows) bool.

        Args:
            first: (rows,) codes of first cells.
            second: (other rows,) codes of second cells.
        """
        if not len(self.keys):
            return torch.zeros(len(first), len(second), dtype=torch.bool, device=first.device)
        self.keys = self.keys.to(first.device)
        asked = mixed_codes([first.unsqueeze(1), second.unsqueeze(0)])
        at = torch.searchsorted(self.keys, asked).clamp(max=len(self.keys) - 1)
        return torch.eq(self.keys.take(at), asked)


def _several(codes: Tensor) -> Tensor:
    """Return which codes occur more than once, (rows,) bool."""
    _, inverse, counts = torch.unique(codes, return_inverse=True, return_counts=True)
    result: Tensor = counts[inverse] > 1
    return result


@dataclass
class PairRows:
    """The rows of all processes that have both columns of a pair.

    Legend: rows = of all processes, anchors = the rows of this process.

    Attributes:
        x, y: (rows, dim) unit vectors of the two columns.
        ids: (rows, 3): the two cells' codes and the group. Rows that share one are not negatives of each other.
        weights: (rows,) each row's weight; 0 for a row without negatives.
        own: (anchors,) indices of the rows whose losses this process computes.
        counts: (anchors,) their weights times the number of processes.
        named: (named negatives, dim) unit vectors, of all rows, beside those of y.
        named_ids: (named negatives,) the codes of their cells, comparable with those of y; -1 for a missing one.
        related: the pairs of cells that are no negatives of each other, besides those of the rows; or None.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    weights: Tensor
    own: Tensor
    counts: Tensor
    named: Tensor
    named_ids: Tensor
    related: RelatedPairs | None = None

    def mean(self, terms: Tensor) -> Tensor:
        """Return this process's part of the mean over all rows, a scalar, from (anchors,) terms."""
        return (terms * self.counts).sum() / self.weights.sum()

    def truncated(self, dim: int) -> PairRows:
        """Return the rows with the first `dim` numbers of each vector, scaled to unit length again."""
        x, y, named = (unit(vectors[:, :dim]) for vectors in (self.x, self.y, self.named))
        return replace(self, x=x, y=y, named=named)

    def told_apart(self) -> Tensor:
        """Return which rows are negatives of each other, (anchors, rows) bool."""
        return unrelated(self.ids[self.own], self.ids, self.related)

    def told_from_named(self) -> Tensor:
        """Return which named negatives are negatives of which anchor's x, (anchors, named negatives) bool.

        One that equals a right answer of the anchor is not.
        """
        result = (self.named_ids >= 0) & (self.named_ids != self.ids[self.own, 1].unsqueeze(1))
        if self.related is not None and len(self.related) and len(self.named_ids):
            result &= ~self.related.contain(self.ids[self.own, 0], self.named_ids)
        return result

    def geometry(self) -> dict[str, Tensor]:
        """Return alignment, uniformity and the modality gap, from this process's rows against all."""
        gap = (self.x.mean(0) - self.y.mean(0)).norm()
        negatives = self.told_apart()
        if not negatives.any():  # this process has no row of the pair
            return {"gap": gap}
        pushes = [uniformity(values[self.own] @ values.T, negatives) for values in (self.x, self.y)]
        pull = self.mean(alignment(self.x, self.y)[self.own])
        return {"alignment": pull, "uniformity": sum(pushes) / 2, "gap": gap}


def unrelated(ids: Tensor, others: Tensor, related: RelatedPairs | None = None) -> Tensor:
    """Return which pairs of rows have no id in common, and no cell that is a right answer to one of the other's.

    Args:
        ids: (rows, kinds) int64, a row's id of each kind, such as its cell's code and its group. With `related` the
            first two kinds are the codes of its two cells.
        others: (other rows, kinds) int64.
        related: further pairs of cells that belong together.

    Returns:
        (rows, other rows) bool.
    """
    result = no_common_id(ids, others)
    if related is not None and len(related):
        result &= ~related.contain(ids[:, 0], others[:, 1])
        result &= ~related.contain(others[:, 0], ids[:, 1]).T
    return result
