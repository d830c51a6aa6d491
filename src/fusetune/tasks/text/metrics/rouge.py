"""ROUGE-1, ROUGE-2 and ROUGE-Lsum, Lin 2004, as Google's rouge-score computes them without stemming.

Each is an F1 in [0, 1], 2 · shared / (answer's number + reference's number), averaged over rows: of words, of pairs of
words, and of words in common subsequences. Of several references of a row, the best counts, for each metric by itself.

ROUGE-Lsum divides texts into sentences at line breaks. A reference's sentence shares the words that are in a longest
common subsequence with any of the answer's sentences; each word counts at most as often as both texts have it. For
texts without line breaks it is ROUGE-L.

Reference: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries" (aclanthology W04-1013), section 3.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fusetune.tasks.text.metrics.measure import Measure, ratio
from fusetune.tasks.text.metrics.subsequences import common_indices, common_length
from fusetune.tasks.text.metrics.tokens import ngrams, rouge_tokens, shared

MAX_WORDS, MAX_SENTENCES = 10_000, 64
"""ROUGE-Lsum reads so many words of a text; more sentences are joined to so many. Bounds the time of a row."""


def _row(answer: str, references: Sequence[str]) -> list[float]:
    """Return the F1 of the three metrics, and whether a reference has a word."""
    given = _sentences(answer)
    best, has = [0.0, 0.0, 0.0], False
    for reference in references:
        right = _sentences(reference)
        has = has or any(right)
        scores = [*(_ngram_f1(given, right, order) for order in (1, 2)), _summary_f1(given, right)]
        best = [max(pair) for pair in zip(best, scores, strict=True)]
    return [*best, float(has)]


def _sentences(text: str) -> list[list[str]]:
    """Return the words of each line that has any."""
    return [words for line in text.split("\n") if (words := rouge_tokens(line))]


def _ngram_f1(given: list[list[str]], right: list[list[str]], order: int) -> float:
    own, other = (ngrams([word for sentence in text for word in sentence], order) for text in (given, right))
    return _f1(shared(own, other), own.total(), other.total())


def _f1(hits: int, num_given: int, num_right: int) -> float:
    return 2 * hits / (num_given + num_right) if hits else 0.0


def _summary_f1(given: list[list[str]], right: list[list[str]]) -> float:
    given, right = _bounded(given), _bounded(right)
    totals = sum(map(len, given)), sum(map(len, right))
    if len(given) == 1 and len(right) == 1:
        return _f1(common_length(given[0], right[0]), *totals)
    left = [Counter(word for sentence in text for word in sentence) for text in (given, right)]
    hits = 0
    for sentence in right:
        indices = {index for other in given for index in common_indices(sentence, other)}
        for index in sorted(indices):
            word = sentence[index]
            if left[0][word] > 0 and left[1][word] > 0:
                hits += 1
                left[0][word] -= 1
                left[1][word] -= 1
    return _f1(hits, *totals)


def _bounded(sentences: list[list[str]]) -> list[list[str]]:
    """Return at most `MAX_SENTENCES` sentences, of at most `MAX_WORDS` words in all."""
    bounded, left = [], MAX_WORDS
    joined = -(-len(sentences) // MAX_SENTENCES)
    for start in range(0, len(sentences), max(joined, 1)):
        words = [word for sentence in sentences[start : start + joined] for word in sentence][:left]
        left -= len(words)
        if words:
            bounded.append(words)
    return bounded


def _metrics(sums: np.ndarray, rows: float) -> dict[str, float]:
    """Return the means; nan if no reference has a word, as in a script that the tokens leave out."""
    names = ("rouge1", "rouge2", "rouge_lsum")
    return {name: ratio(sums[at], rows if sums[3] else 0) for at, name in enumerate(names)}


ROUGE = Measure(4, _row, _metrics)
