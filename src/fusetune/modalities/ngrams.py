"""Sparse tf-idf features of a text column: uni- and bigrams of the backbone's tokens, bounded in number.

Tokens are words, or the pieces of rare words, in every language that the tokenizer supports. The special tokens at the
ends of a text give its first and last token bigrams of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

MAX_NGRAMS = 2**14
"""Maximum size of the vocabulary, the n-grams with the highest document frequency."""
MIN_ROWS = 2
"""Minimum document frequency."""
MAX_TABLE = 100_000
"""Number of rows above which no vocabulary is fitted, as an encoder has enough examples there."""
SECOND = 2**31
"""The bigram (a, b) has the key (a + 1) · 2^31 + b + 1, the unigram a the key a + 1."""


class Ngrams:
    """A fitted vocabulary of n-grams with their document frequencies.

    The weights are those of scikit-learn's `TfidfVectorizer(sublinear_tf=True)`, (1 + ln tf) · (1 + ln((1 + rows) /
    (1 + count))), with each text's vector scaled to unit length.
    """

    def __init__(self, keys: np.ndarray, counts: np.ndarray, rows: int) -> None:
        """
        Args:
            keys: (ngrams,) int64, ascending; see `SECOND`.
            counts: (ngrams,) int64, document frequencies.
            rows: number of train rows.

        Raises:
            ValueError: the keys are not ascending, or the counts do not match.
        """
        if keys.shape != counts.shape or keys.ndim != 1 or (np.diff(keys) <= 0).any() or (counts > rows).any():
            raise ValueError("n-grams that are no vocabulary")
        self.keys, self.counts, self.rows = keys, counts, rows
        self.idf = np.log((1 + rows) / (1 + np.maximum(counts, 0))) + 1

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def fit(cls, texts: Sequence[np.ndarray]) -> Ngrams | None:
        """Fit on train rows' token ids; return None for too many rows, or if no n-gram is in two rows."""
        if len(texts) > MAX_TABLE:
            return None
        ngrams = [np.unique(ngrams_of(text)) for text in texts]
        if not ngrams:
            return None
        keys, counts = np.unique(np.concatenate(ngrams), return_counts=True)
        often = np.flatnonzero(counts >= MIN_ROWS)
        often = np.sort(often[np.argsort(-counts[often], kind="stable")[:MAX_NGRAMS]])
        return cls(keys[often], counts[often].astype(np.int64), len(texts)) if len(often) else None

    def vector(self, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a text's n-grams, as ascending int64 indices into the vocabulary, and their float32 weights."""
        keys, counts = np.unique(ngrams_of(text), return_counts=True)
        indices = np.searchsorted(self.keys, keys)
        known = indices < len(self.keys)
        known[known] = self.keys[indices[known]] == keys[known]
        indices = indices[known]
        values = (1 + np.log(counts[known])) * self.idf[indices]
        return indices.astype(np.int64), (values / max(float(np.sqrt((values**2).sum())), 1e-12)).astype(np.float32)

    def matrix(self, texts: Sequence[np.ndarray]) -> csr_matrix:
        """Return the tf-idf matrix of some texts, (texts, ngrams) float32."""
        vectors = [self.vector(text) for text in texts]
        ends = np.cumsum([0, *(len(indices) for indices, _ in vectors)])
        indices = np.concatenate([indices for indices, _ in vectors]) if vectors else np.zeros(0, np.int64)
        values = np.concatenate([values for _, values in vectors]) if vectors else np.zeros(0, np.float32)
        return csr_matrix((values, indices, ends), shape=(len(vectors), len(self)))

    def state(self) -> dict[str, Any]:
        """Return everything `from_state` needs, as JSON."""
        return {"keys": self.keys.tolist(), "counts": self.counts.tolist(), "rows": self.rows}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Ngrams:
        """Return the vocabulary that `state()` described."""
        keys, counts = (np.asarray(state[name], dtype=np.int64) for name in ("keys", "counts"))
        return cls(keys, counts, int(state["rows"]))


def ngrams_of(text: np.ndarray) -> np.ndarray:
    """Return the keys of all uni- and bigrams of a text's token ids, int64."""
    single = np.asarray(text, dtype=np.int64) + 1
    return np.concatenate([single, single[:-1] * SECOND + single[1:]])
