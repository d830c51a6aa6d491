"""Ranks of right answers, and the figures of retrieval that follow from them, a figure per query.

Legend: queries = searched at once, answers = of the catalogue, hits = the right answers of all queries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

TIE = 1e-6
"""Similarities that differ by no more than this are equal."""
AT_K = {
    "ndcg": "discounted gain of the first {k}, as a share of the best order's",
    "map": "mean over the right answers of the precision at their ranks, 0 beyond the first {k}",
    "mrr": "mean reciprocal rank of the first right answer, 0 beyond the first {k}",
    "precision": "share of right answers among the first {k}",
    "mean_recall": "share of a query's right answers that are among the first {k}",
    "recall": "share of queries with a right answer among the first {k}",
}
"""Meanings of the figures that have a cutoff k, by name."""
RECALL = "recall"
"""recall@k of the report is the share of queries with a right answer among the first k, which needs the first rank
only; see `metrics.retrieval`."""


@dataclass(frozen=True)
class Hits:
    """The ranked right answers of some queries, ordered by query, then by rank.

    Attributes:
        query: (hits,) int64, the index of each hit's query.
        rank: (hits,) float64 from 1. A wrong answer of equal similarity adds one half.
        gain: (hits,) float64, the grade of relevance, above 0. Right answers of equal similarity share their mean.
        num_queries: the number of queries; each has one hit or more.
    """

    query: np.ndarray
    rank: np.ndarray
    gain: np.ndarray
    num_queries: int

    @property
    def first(self) -> np.ndarray:
        """The rank of each query's first right answer, (queries,)."""
        return np.asarray(self.rank[self._starts])

    @property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(self.query, np.arange(self.num_queries))

    def figures(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return figures of each query, (queries,) in [0, 1].

        - precision@k: right answers among the first k, divided by k.
        - mean_recall@k: the same divided by the query's right answers: the recall of the field.
        - mrr@k: 1 / rank of the first right answer, 0 if that is above k.
        - map@k: Σ over right answers with rank ≤ k of (right answers up to it) / rank, divided by the right answers.
        - ndcg@k: Σ over right answers with rank ≤ k of gain / log2(1 + rank), divided by that of the best order
          (Järvelin and Kekäläinen 2002). The gain is the grade itself, as in trec_eval.

        Args:
            names: such as "ndcg@10".
        """
        starts = self._starts
        counts = np.diff(starts, append=len(self.query))
        position = np.arange(len(self.query)) - np.repeat(starts, counts) + 1
        best = self.gain[np.lexsort((-self.gain, self.query))] / np.log2(1 + position)
        result = {}
        for name in names:
            kind, k = parse(name)
            inside = self.rank <= k
            if kind == "mrr":
                result[name] = np.where(self.first <= k, 1 / self.first, 0.0)
            elif kind == "ndcg":
                gained = self._total(inside * self.gain / np.log2(1 + self.rank))
                result[name] = gained / self._total((position <= k) * best)
            elif kind == "map":
                result[name] = self._total(inside * position / self.rank) / counts
            else:
                result[name] = self._total(inside) / (k if kind == "precision" else counts)
        return result

    def _total(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over each query's hits, (queries,)."""
        return np.bincount(self.query, values, self.num_queries)


def parse(name: str) -> tuple[str, int]:
    """Return a figure's kind and cutoff: ("ndcg", 10) of "ndcg@10".

    Raises:
        ValueError: it is no figure with a cutoff of 1 or more.
    """
    match = re.fullmatch(r"(\w+)@([1-9]\d{0,8})", name)
    if match is None or match[1] not in AT_K:
        raise ValueError(f"{name} is no figure such as ndcg@10")
    return match[1], int(match[2])


def is_at_k(name: str) -> bool:
    """Return whether a name is that of a figure with a cutoff, such as "recall@20" or "ndcg@10"."""
    try:
        parse(name)
    except ValueError:
        return False
    return True


def meaning(name: str) -> str:
    """Return a figure in plain words."""
    kind, k = parse(name)
    return AT_K[kind].format(k=k)


def rank_hits(similarity: np.ndarray, gains: sparse.csr_array) -> Hits:
    """Rank the right answers of some queries among all answers.

    A right answer's rank is 1 + the wrong answers that are more similar + half of those of equal similarity + the right
    answers before it.

    Args:
        similarity: (queries, answers).
        gains: (queries, answers), above 0 where an answer is right; one or more in every row.
    """
    counts = np.diff(gains.indptr)
    query = np.repeat(np.arange(len(counts)), counts)
    scores = similarity[query, gains.indices]
    order = np.lexsort((-scores, query))
    scores, gain = scores[order], gains.data[order].astype(np.float64)
    rank = np.arange(len(query)) - np.repeat(gains.indptr[:-1], counts) + 1.0
    single = np.flatnonzero(counts == 1)
    if len(single):
        rows, own = similarity[single], scores[gains.indptr[single], None]
        above = (rows > own + TIE).sum(1)
        rank[gains.indptr[single]] += above + (((rows >= own - TIE).sum(1) - above) - 1) / 2  # without itself
    for number in np.flatnonzero(counts > 1):
        part = slice(gains.indptr[number], gains.indptr[number + 1])
        wrong = np.sort(np.delete(similarity[number], gains.indices[part]))
        below = np.searchsorted(wrong, scores[part] - TIE, "left")
        not_above = np.searchsorted(wrong, scores[part] + TIE, "right")
        rank[part] += len(wrong) - not_above + (not_above - below) / 2
    apart = np.r_[True, (np.diff(query) > 0) | (np.diff(scores) < -TIE)][: len(query)]
    tied = np.cumsum(apart) - 1
    gain = (np.bincount(tied, gain) / np.maximum(np.bincount(tied), 1))[tied]
    return Hits(query, rank, gain, len(counts))
