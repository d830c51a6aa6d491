"""SQuAD's metrics of answers as text, the threshold of "no answer", and the search for the best spans."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fusetune.errors import ConfigError

ARTICLES = {
    "en": ("a", "an", "the"),
    "de": ("ein", "eine", "einen", "einem", "eines", "einer", "der", "die", "das", "den", "dem", "des"),
    "es": ("un", "una", "unos", "unas", "el", "la", "los", "las"),
    "none": (),
}
"""The articles that are left out when answers are compared, by language; as in the scripts of SQuAD and MLQA."""

MEANINGS = {
    "f1": "F1 of the words that an answer shares with the right one, averaged over rows",
    "exact_match": "share of rows whose answer is the right one, but for case, punctuation and articles",
    "f1_answerable": "f1 of the rows that have an answer",
    "exact_match_answerable": "exact match of the rows that have an answer",
    "f1_unanswerable": "share of the rows without an answer that are given none",
}
"""What the metrics are, in plain words."""


def check_language(language: str) -> str:
    """Return a language of `ARTICLES`.

    Raises:
        ConfigError: it is none of them.
    """
    if language not in ARTICLES:
        raise ConfigError("language names the articles to leave out", expected=", ".join(ARTICLES), came=language)
    return language


def normalise(text: str, language: str = "en") -> str:
    """Return a text in lower case without punctuation and articles, words separated by single spaces.

    Punctuation is ASCII's for "en", as in SQuAD's script, and Unicode's for other languages, as in MLQA's.

    Example:
        >>> normalise("The  Cat's hat!")
        'cats hat'
    """
    text = text.lower()
    if language == "en":
        text = "".join(character for character in text if character not in string.punctuation)
    else:
        text = "".join(
            character
            for character in text
            if character not in string.punctuation and not unicodedata.category(character).startswith("P")
        )
    if articles := ARTICLES[language]:
        text = re.sub(rf"\b({'|'.join(articles)})\b", " ", text)
    return " ".join(text.split())


def scores(answer: str, right: Sequence[str], language: str = "en") -> tuple[float, float]:
    """Return the exact match (0 or 1) and the F1 of words, in [0, 1], of an answer: the best over the right answers.

    Args:
        answer: "" for no answer.
        right: the right answers; none of them if there is no answer.
        language: see `normalise`.

    Reference: Rajpurkar et al. 2018 (arXiv 1806.03822), the official script.
    """
    given = normalise(answer, language)
    known = [text for text in (normalise(text, language) for text in right) if text] or [""]
    return max(float(given == text) for text in known), max(_f1(given.split(), text.split()) for text in known)


def _f1(given: list[str], right: list[str]) -> float:
    if not given or not right:
        return float(given == right)
    shared = (Counter(given) & Counter(right)).total()
    return 2 * shared / (len(given) + len(right))


def best_threshold(margins: np.ndarray, answered: np.ndarray, silent: np.ndarray) -> float:
    """Return the threshold with the best sum of scores: a row whose margin is above it has no answer.

    Of several equally good ones, the nearest to 0.

    Args:
        margins: (rows,) how much better no answer is than the best span; at least one row.
        answered: (rows,) the score with the best span.
        silent: (rows,) the score without an answer.
    """
    order = np.argsort(margins, kind="stable")
    margins, gains = margins[order], (answered - silent)[order]
    totals = np.concatenate([[0.0], np.cumsum(gains)])
    places = np.concatenate([[margins[0] - 1], (margins[1:] + margins[:-1]) / 2, [margins[-1] + 1]])
    apart = np.concatenate([[True], margins[1:] > margins[:-1], [True]])
    best = apart & (totals >= totals[apart].max() - 1e-9)
    chosen = places[best]
    return float(chosen[np.abs(chosen).argmin()])


def best_spans(logs: np.ndarray, spans: np.ndarray, *, longest: int, num: int) -> list[tuple[float, int, int]]:
    """Return the best spans of tokens as (score, first character, the one after the last), best first.

    Args:
        logs: (tokens, 2) log-probabilities that an answer starts, and that it ends, with a token.
        spans: (tokens, 2) each token's first character and the one after its last.
        longest: the most characters of a span.
        num: the most spans.
    """
    if not len(logs):
        return []
    totals = logs[:, None, 0] + logs[None, :, 1]
    lengths = spans[None, :, 1] - spans[:, None, 0]
    allowed = (lengths <= longest) & (lengths > 0)
    allowed &= np.arange(len(logs))[:, None] <= np.arange(len(logs))[None, :]
    if not allowed.any():  # each token by itself is longer
        np.fill_diagonal(allowed, True)
    flat = np.where(allowed, totals, -np.inf).ravel()
    top = np.argpartition(-flat, min(num, len(flat)) - 1)[:num]
    found = [(float(flat[place]), *divmod(int(place), len(logs))) for place in top if np.isfinite(flat[place])]
    return [
        (score, int(spans[start, 0]), int(spans[end, 1]))
        for score, start, end in sorted(found, key=lambda span: (-span[0], span[1:]))
    ]
