"""Word and character error rate: edits that turn the answers into the references, over the references' length.

    WER = Σ edits of words / Σ words of the references        CER the same of characters

Edits are insertions, deletions and substitutions; the rates can be above 1. Words are separated by white space, case
and punctuation count. Of several references of a row, the one with the lowest rate counts.

Reference: Levenshtein 1966; Morris, Maier and Green 2004, "From WER and RIL to MER and WIL".
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from fusetune.tasks.text.metrics.measure import Measure, ratio
from fusetune.tasks.text.metrics.subsequences import edit_distance


def _row(answer: str, references: Sequence[str]) -> list[float]:
    """Return the edits and the reference's length, of words and of characters."""
    words = _fewest(answer.split(), [text.split() for text in references])
    return [*words, *_fewest(answer.strip(), [text.strip() for text in references])]


def _fewest(given: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> tuple[float, float]:
    """Return the edits and the length of the reference with the lowest rate."""
    pairs = [(edit_distance(given, right), len(right)) for right in references]
    edits, length = min(pairs, key=lambda pair: pair[0] / max(pair[1], 1))
    return float(edits), float(length)


def _metrics(sums: np.ndarray, rows: float) -> dict[str, float]:
    return {"wer": ratio(sums[0], sums[1]), "cer": ratio(sums[2], sums[3])}


EDITS = Measure(4, _row, _metrics)
