"""BM25: documents ranked by the words that they share with a query."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

_ALONE = "\u3040-\u30ff\u3400-\u9fff"  # kana and Chinese characters, written without spaces between words
_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")


def words(text: str) -> Iterator[str]:
    """Yield a text's words in lower case; a Chinese or Japanese character is a word."""
    return (match[0] for match in _WORD.finditer(text.lower()))


class Bm25:
    """Scores of documents for queries.

    score(q, d) = Σ over the words w of q of idf(w) · f / (f + k1 (1 − b + b |d| / mean |d|)), where f is how often d
    has w, and idf(w) = ln(1 + (N − n + ½) / (n + ½)) with n of the N documents having w. A word that a query has twice
    counts twice. The constant factor k1 + 1 is left out, as in Lucene.

    Args:
        documents: their texts.
        k1: how slowly repetitions of a word saturate, 0 or more.
        b: how much longer documents are discounted, in [0, 1].

    Reference: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
    """

    def __init__(self, documents: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> None:
        self._vocabulary: dict[str, int] = {}
        counts = self._counts(documents, learn=True)  # (documents, words)
        lengths = np.asarray(counts.sum(1)).reshape(-1)
        num, having = counts.shape[0], np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log1p((num - having + 0.5) / (having + 0.5))
        norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-12))
        rows = np.repeat(np.arange(num), np.diff(counts.indptr))
        counts.data = idf[counts.indices] * counts.data / (counts.data + norm[rows])
        self._weights = sparse.csc_array(counts.T)  # (words, documents)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Return every document's score for each query, (queries, documents) float64; 0 without a common word."""
        return np.asarray((self._counts(queries, learn=False) @ self._weights).toarray())

    def _counts(self, texts: Sequence[str], *, learn: bool) -> sparse.csr_array:
        """Return how often each text has each word, (texts, words); unknown words are learned or left out."""
        columns: list[int] = []
        ends = [0]
        for text in texts:
            for word in words(text):
                if learn:
                    columns.append(self._vocabulary.setdefault(word, len(self._vocabulary)))
                elif (known := self._vocabulary.get(word)) is not None:
                    columns.append(known)
            ends.append(len(columns))
        shape = (len(texts), len(self._vocabulary))
        table = sparse.csr_array(
            (np.ones(len(columns)), np.array(columns, dtype=np.int64), np.array(ends)), shape=shape
        )
        table.sum_duplicates()
        return table
