"""BLEU, Papineni et al. 2002, as sacreBLEU computes it.

    BLEU = 100 · BP · exp(¼ Σ_{n=1..4} ln p_n)        BP = exp(1 − r / c) if c < r, else 1

p_n is the share of the answers' n-grams that a reference has, each counted at most as often as in the reference that
has it most often; c is the answers' number of tokens, r the sum of each row's reference length closest to the answer's,
the shorter of two equally close ones. All are of the whole corpus. An order without a match has
p_n = 1 / (2^k · number of n-grams), where k counts such orders ("exp" smoothing, Lin and Och 2004).

Reference: Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation"; Post 2018
(arXiv 1804.08771) for the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fusetune.tasks.text.metrics.measure import Measure
from fusetune.tasks.text.metrics.tokens import mteval_tokens, ngrams, shared

ORDERS = 4


def _row(answer: str, references: Sequence[str]) -> list[float]:
    """Return the matches and the number of n-grams of each order, the answer's length and the closest reference's."""
    given, right = mteval_tokens(answer), [mteval_tokens(text) for text in references]
    matches, totals = [], []
    for order in range(1, ORDERS + 1):
        most = ngrams(right[0], order)
        for tokens in right[1:]:
            most |= ngrams(tokens, order)
        matches.append(float(shared(ngrams(given, order), most)))
        totals.append(float(max(len(given) - order + 1, 0)))
    closest = min((abs(len(tokens) - len(given)), len(tokens)) for tokens in right)[1]
    return [*matches, *totals, float(len(given)), float(closest)]


def _metrics(sums: np.ndarray, rows: float) -> dict[str, float]:
    matches, totals, (length, closest) = sums[:ORDERS], sums[ORDERS : 2 * ORDERS], sums[2 * ORDERS :]
    if not totals.all() or not matches.any():
        return {"bleu": 0.0}
    logs, halved = 0.0, 1.0
    for match, total in zip(matches, totals, strict=True):
        if not match:
            halved *= 2
        logs += math.log(match / total if match else 1 / (halved * total))
    brevity = min(0.0, 1 - closest / length)
    return {"bleu": 100 * math.exp(brevity + logs / ORDERS)}


BLEU = Measure(2 * ORDERS + 2, _row, _metrics)
