"""Tokens and n-grams of the metrics: those of mteval-v13a for BLEU, those of ROUGE-1.5.5 for ROUGE."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

Ngram = TypeVar("Ngram", bound=Hashable)

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SYMBOL = re.compile(r"([!-&(-+:-@\[-`{-~/])")  # ASCII punctuation but for ' , - and .
_AFTER_NO_DIGIT = re.compile(r"([^0-9])([.,])")
_BEFORE_NO_DIGIT = re.compile(r"([.,])([^0-9])")
_DASH = re.compile(r"([0-9])(-)")
_ROUGE_WORD = re.compile(r"[a-z0-9]+")
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")
"""A word, or a character of a script without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


def mteval_tokens(text: str) -> list[str]:
    """Return the tokens of NIST's mteval-v13a, sacreBLEU's default; case is kept.

    ASCII punctuation is separated from words, periods and commas between digits excepted, and four HTML entities are
    decoded. Scripts without spaces, such as Chinese, are not divided.

    Example:
        >>> mteval_tokens("It costs $1,000.50, or so.")
        ['It', 'costs', '$', '1,000.50', ',', 'or', 'so', '.']
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = _SYMBOL.sub(r" \1 ", f" {text} ")
    text = _AFTER_NO_DIGIT.sub(r"\1 \2 ", text)
    text = _BEFORE_NO_DIGIT.sub(r" \1 \2", text)
    return _DASH.sub(r"\1 \2 ", text).split()


def rouge_tokens(text: str) -> list[str]:
    """Return the runs of a to z and 0 to 9 of a text in lower case, as ROUGE-1.5.5 reads it, without stemming.

    All other characters separate tokens. A text in a script without these letters has no tokens.

    Example:
        >>> rouge_tokens("The U.S. café")
        ['the', 'u', 's', 'caf']
    """
    return _ROUGE_WORD.findall(text.lower())


def words(text: str) -> list[str]:
    """Return what stands between white space; each character of a script without spaces between words by itself.

    Example:
        >>> words("a cat: 猫が")
        ['a', 'cat:', '猫', 'が']
    """
    return _WORD.findall(text)


def num_words(text: str) -> int:
    """Return the number of `words`."""
    return len(words(text))


def ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Return how often each sequence of `order` tokens occurs."""
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def shared(first: Counter[Ngram], second: Counter[Ngram]) -> int:
    """Return the number of n-grams that two texts share, each as often as both have it."""
    small, large = (first, second) if len(first) <= len(second) else (second, first)
    return sum(min(count, large[ngram]) for ngram, count in small.items() if ngram in large)
