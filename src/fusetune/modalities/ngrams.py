"""Sparse tf-idf features of a text column, bounded in number: n-grams of the backbone's tokens, and of characters.

Tokens are words, or the pieces of rare words, in every language that the tokenizer supports. The special tokens at the
ends of a text give its first and last token bigrams of their own. Character n-grams inside words tell misspelt and
inflected words alike where their tokens differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MAX_NGRAMS = 2**14
"""Maximum size of the vocabulary, the n-grams with the highest document frequency."""
CHARACTERS = (3, 4, 5)
"""Lengths of character n-grams, as in scikit-learn's `analyzer="char_wb"`."""
MAX_CHARACTERS = 2**15
"""Maximum number of character n-grams, those with the highest document frequency."""
MAX_CHARACTER_TABLE = 20_000
"""Number of rows above which no character n-grams are fitted."""
MIN_ROWS = 2
"""Minimum document frequency."""
MAX_TABLE = 100_000
"""Number of rows above which no token n-grams are fitted, as an encoder has enough examples there."""
SECOND = 2**31
"""The bigram (a, b) has the key (a + 1) · 2^31 + b + 1, the unigram a the key a + 1."""
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Base of the polynomial hash of character n-grams, modulo 2^64."""

NGRAM_KEYS = {"tokens": "ngrams", "characters": "character_ngrams"}
"""The vocabularies of a text column, and the names that saved models have for them, in their order there."""

KeysOf = Callable[[np.ndarray], np.ndarray]


class Ngrams:
    """A fitted vocabulary of n-grams with their document frequencies.

    The weights are those of scikit-learn's `TfidfVectorizer(sublinear_tf=True)`, (1 + ln tf) · (1 + ln((1 + rows) /
    (1 + count))), with each text's vector scaled to unit length.
    """

    def __init__(self, keys: np.ndarray, counts: np.ndarray, rows: int, keys_of: KeysOf) -> None:
        """
        Args:
            keys: (ngrams,) int64, ascending.
            counts: (ngrams,) int64, document frequencies.
            rows: number of train rows.
            keys_of: returns the keys of all n-grams of a text's token ids, as often as they occur.

        Raises:
            ValueError: the keys are not ascending, or the counts do not match.
        """
        if keys.shape != counts.shape or keys.ndim != 1 or (np.diff(keys) <= 0).any() or (counts > rows).any():
            raise ValueError("n-grams that are no vocabulary")
        self.keys, self.counts, self.rows, self.keys_of = keys, counts, rows, keys_of
        self.idf = np.log((1 + rows) / (1 + np.maximum(counts, 0))) + 1

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def fit(cls, texts: Sequence[np.ndarray], keys_of: KeysOf, *, most: int) -> Ngrams | None:
        """Fit on train rows' token ids; return None if no n-gram is in `MIN_ROWS` rows.

        Args:
            texts: (tokens,) each.
            keys_of: see above.
            most: maximum size of the vocabulary.
        """
        ngrams = [np.unique(keys_of(text)) for text in texts]
        if not ngrams:
            return None
        keys, counts = np.unique(np.concatenate(ngrams), return_counts=True)
        often = np.flatnonzero(counts >= MIN_ROWS)
        often = np.sort(often[np.argsort(-counts[often], kind="stable")[:most]])
        return cls(keys[often], counts[often].astype(np.int64), len(texts), keys_of) if len(often) else None

    def vector(self, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a text's n-grams, as ascending int64 indices into the vocabulary, and their float32 weights."""
        keys, counts = np.unique(self.keys_of(text), return_counts=True)
        indices = np.searchsorted(self.keys, keys)
        known = indices < len(self.keys)
        known[known] = self.keys[indices[known]] == keys[known]
        indices = indices[known]
        values = (1 + np.log(counts[known])) * self.idf[indices]
        return indices.astype(np.int64), (values / max(float(np.sqrt((values**2).sum())), 1e-12)).astype(np.float32)

    def matrix(self, texts: Sequence[np.ndarray]) -> csr_matrix:
        """Return the tf-idf matrix of some texts, (texts, ngrams) float32."""
        from scipy.sparse import csr_matrix

        vectors = [self.vector(text) for text in texts]
        ends = np.cumsum([0, *(len(indices) for indices, _ in vectors)])
        indices = np.concatenate([indices for indices, _ in vectors]) if vectors else np.zeros(0, np.int64)
        values = np.concatenate([values for _, values in vectors]) if vectors else np.zeros(0, np.float32)
        return csr_matrix((values, indices, ends), shape=(len(vectors), len(self)))

    def state(self) -> dict[str, Any]:
        """Return everything `from_state` needs, as JSON."""
        return {"keys": self.keys.tolist(), "counts": self.counts.tolist(), "rows": self.rows}

    @classmethod
    def from_state(cls, state: dict[str, Any], keys_of: KeysOf) -> Ngrams:
        """Return the vocabulary that `state()` described."""
        keys, counts = (np.asarray(state[name], dtype=np.int64) for name in ("keys", "counts"))
        return cls(keys, counts, int(state["rows"]), keys_of)


def ngrams_of(text: np.ndarray) -> np.ndarray:
    """Return the keys of all uni- and bigrams of a text's token ids, int64."""
    single = np.asarray(text, dtype=np.int64) + 1
    return np.concatenate([single, single[:-1] * SECOND + single[1:]])


def character_ngrams_of(text: np.ndarray, decode: Callable[[np.ndarray], str]) -> np.ndarray:
    """Return hashed keys of all character n-grams inside the words of a text's token ids, int64.

    Words are lower-cased, and have a space at either end.

    Args:
        text: (tokens,).
        decode: returns the string of token ids.
    """
    words = [f" {word} " for word in decode(text).lower().split()]
    codes = np.frombuffer("".join(words).encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    word_of = np.repeat(np.arange(len(words)), [len(word) for word in words])
    keys = []
    for length in CHARACTERS:
        num = max(len(codes) - length + 1, 0)
        inside = word_of[:num] == word_of[length - 1 :][:num]
        hashed = np.full(num, length, dtype=np.uint64)
        for offset in range(length):
            hashed = hashed * HASH_BASE + codes[offset : offset + num] + np.uint64(1)
        keys.append(hashed[inside])
    return np.concatenate(keys).view(np.int64)


def keys_by_part(decode: Callable[[np.ndarray], str]) -> dict[str, KeysOf]:
    """Return `keys_of` for each vocabulary of a text column: its "tokens" and its "characters".

    Args:
        decode: returns the string of token ids.
    """
    return {"tokens": ngrams_of, "characters": partial(character_ngrams_of, decode=decode)}


def fit_ngrams(texts: Sequence[np.ndarray], decode: Callable[[np.ndarray], str]) -> dict[str, Ngrams]:
    """Fit the vocabularies of a text column on train rows' token ids; those without n-grams are left out."""
    limits = {"tokens": (MAX_TABLE, MAX_NGRAMS), "characters": (MAX_CHARACTER_TABLE, MAX_CHARACTERS)}
    vocabularies = {
        part: Ngrams.fit(texts, keys_of, most=limits[part][1])
        for part, keys_of in keys_by_part(decode).items()
        if len(texts) <= limits[part][0]
    }
    return {part: vocabulary for part, vocabulary in vocabularies.items() if vocabulary is not None}
