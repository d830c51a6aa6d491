"""chrF, Popović 2015: F-score of character n-grams, as sacreBLEU computes it.

    chrF = 100 · 5 P R / (4 P + R)

P is the mean over the orders 1 to 6 of the share of the answers' character n-grams that the references have, R of the
share of the references' that the answers have; white space is left out. β = 2 makes recall weigh twice as much. Orders
that the answers or the references lack are left out of the means. Of several references of a row, the one counts for
which the row's own chrF is best.

Reference: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation" (aclanthology W15-3049).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fusetune.tasks.text.metrics.measure import Measure
from fusetune.tasks.text.metrics.tokens import shared

ORDERS = 6
BETA = 2


def _characters(text: str) -> list[Counter[str]]:
    """Return the counts of the text's character n-grams, by order."""
    text = "".join(text.split())
    return [
        Counter([text[start : start + order] for start in range(len(text) - order + 1)])
        for order in range(1, ORDERS + 1)
    ]


def _row(answer: str, references: Sequence[str]) -> list[float]:
    """Return the n-grams of the answer, of the best reference, and the shared ones, of each order."""
    given = _characters(answer)
    sizes = [float(counts.total()) for counts in given]
    best, best_score = [0.0] * 3 * ORDERS, -1.0
    for reference in references:
        right = _characters(reference)
        totals = [float(counts.total()) for counts in right]
        matches = [float(shared(own, other)) for own, other in zip(given, right, strict=True)]
        # an answer's n-grams of an order that its reference lacks count neither way, as in sacreBLEU
        counts = [*(size if total else 0.0 for size, total in zip(sizes, totals, strict=True)), *totals, *matches]
        if len(references) == 1:
            return counts
        if (score := _score(np.array(counts))) > best_score:
            best, best_score = counts, score
    return best


def _score(sums: np.ndarray) -> float:
    given, right, matches = sums[:ORDERS], sums[ORDERS : 2 * ORDERS], sums[2 * ORDERS :]
    both = (given > 0) & (right > 0)
    if not both.any():
        return 0.0
    precision, recall = float((matches[both] / given[both]).mean()), float((matches[both] / right[both]).mean())
    bottom = BETA**2 * precision + recall
    return 100 * (1 + BETA**2) * precision * recall / bottom if bottom else 0.0


CHRF = Measure(3 * ORDERS, _row, lambda sums, rows: {"chrf": _score(sums)})
