"""What can be said of answers without their meaning: repetition and length.

    repetition     mean over answers of 1 − different 4-grams of words / 4-grams of words
    length_ratio   Σ characters of the answers / Σ characters of the references

Answers with fewer than four words have no repetition; a character of a script without spaces is a word. Of several
references, the one with the closest length counts.

Reference: Welleck et al. 2020 (arXiv 1908.04319), seq-rep-4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusetune.tasks.text.metrics.measure import Measure, ratio
from fusetune.tasks.text.metrics.tokens import ngrams, words

ORDER = 4


def repeated(text: str) -> float:
    """Return the share of a text's 4-grams of words that repeat an earlier one, in [0, 1); nan without any.

    Example:
        >>> repeated("no no no no no")
        0.5
    """
    own = words(text)
    total = len(own) - ORDER + 1
    return 1 - len(ngrams(own, ORDER)) / total if total > 0 else float("nan")


def _row(answer: str, references: Sequence[str]) -> list[float]:
    """Return the share of repeated 4-grams, whether there are any, and the answer's and the reference's length."""
    share, given = repeated(answer), len(answer.strip())
    right = min((len(text.strip()) for text in references), key=lambda length: (abs(length - given), length))
    defined = share == share
    return [share if defined else 0.0, float(defined), float(given), float(right)]


def _metrics(sums: np.ndarray, rows: float) -> dict[str, float]:
    return {"repetition": ratio(sums[0], sums[1]), "length_ratio": ratio(sums[2], sums[3])}


FORM = Measure(4, _row, _metrics)
