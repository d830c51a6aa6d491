"""Metrics of short answers: exact match and token F1 as in SQuAD, and the accuracy of VQA.

Texts are compared in lower case, without ASCII punctuation and the articles a, an, the. Of several references, the best
counts. The accuracy of VQA is min(1, references that equal the answer / 3), for rows with three or more references that
are short: the answers of several people to one question. (The official script averages it over all subsets that lack
one person, and also makes digits of number words.)

Reference: Rajpurkar et al. 2016 (arXiv 1606.05250); Antol et al. 2015 (arXiv 1505.00468), section 3.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from fusetune.tasks.answers.squad import normalise, scores
from fusetune.tasks.text.metrics.measure import Measure, ratio

AGREED = 3
"""As many people's answers as make an answer right."""
SHORT = 3
"""The most words, at the median of a row's references, of what is taken for several people's answers."""


def has_votes(references: Sequence[str]) -> bool:
    """Return whether references are several people's answers to a question: three or more, and short."""
    return len(references) >= AGREED and statistics.median(len(text.split()) for text in references) <= SHORT


def _row(answer: str, references: Sequence[str]) -> list[float]:
    """Return exact match, F1, the accuracy of VQA, and whether that is defined."""
    voted, accuracy = has_votes(references), 0.0
    if voted:
        given = normalise(answer)
        accuracy = min(1.0, sum(normalise(text) == given for text in references) / AGREED)
    return [*scores(answer, references), accuracy, float(voted)]


def _metrics(sums: np.ndarray, rows: float) -> dict[str, float]:
    return {
        "exact_match": ratio(sums[0], rows),
        "token_f1": ratio(sums[1], rows),
        "vqa_accuracy": ratio(sums[2], sums[3]),
    }


ANSWERS = Measure(4, _row, _metrics)
