"""All metrics of written texts: counts a row, and metrics of any selection of rows from the counts' sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusetune.tasks.text.metrics.answers import ANSWERS
from fusetune.tasks.text.metrics.bleu import BLEU
from fusetune.tasks.text.metrics.chrf import CHRF
from fusetune.tasks.text.metrics.code import CODE
from fusetune.tasks.text.metrics.edits import EDITS
from fusetune.tasks.text.metrics.form import FORM
from fusetune.tasks.text.metrics.measure import Measure
from fusetune.tasks.text.metrics.rouge import ROUGE

MEASURES: tuple[Measure, ...] = (CHRF, BLEU, ROUGE, ANSWERS, EDITS, FORM, CODE)
WIDTH = 1 + sum(measure.width for measure in MEASURES)
"""The number of counts of a row; the first is 1, so that the sum is the number of rows."""
NAMES = tuple(name for measure in MEASURES for name in measure.metrics(np.ones(measure.width), 1.0))
"""The metrics' names, in the order of `metrics_of`."""


def row_counts(answers: Sequence[str], truths: Sequence[str | Sequence[str]]) -> np.ndarray:
    """Return each row's counts, (rows, `WIDTH`) float64, whose sums over rows give the metrics.

    Args:
        answers: (rows,) the written texts.
        truths: (rows,) the right text of each row, or a list of right ones; an empty list is an empty text.

    Example:
        >>> metrics_of(row_counts(["a cat sat"], [["a cat sat down", "the cat sat"]]))["token_f1"]
        1.0
    """
    known: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    rows = []
    for answer, truth in zip(answers, truths, strict=True):
        references = (truth,) if isinstance(truth, str) else tuple(truth) or ("",)
        counts = known.get((answer, references))
        if counts is None:
            counts = [1.0, *(count for measure in MEASURES for count in measure.row(answer, references))]
            known[answer, references] = counts
        rows.append(counts)
    return np.array(rows, dtype=np.float64).reshape(len(rows), WIDTH)


def metrics_of(counts: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return the metrics of some rows by name, nan where undefined.

    `bleu` and `chrf` are in [0, 100], as sacreBLEU prints them; `wer`, `cer` and `length_ratio` are 0 or more; the
    others are in [0, 1]. `rouge1`, `rouge2` and `rouge_lsum` are nan where no reference has a Latin letter or digit,
    `vqa_accuracy` where no row has several people's answers, `parses` where most references are no code.

    Args:
        counts: (rows, `WIDTH`) as `row_counts` returns them, of any selection of rows.
        weights: (rows,) 0 or more; None: all 1. A row of weight 2 counts as two rows.
    """
    sums = counts.sum(0) if weights is None else np.asarray(weights, dtype=np.float64) @ counts
    if not sums[0] > 0:
        return dict.fromkeys(NAMES, float("nan"))
    metrics: dict[str, float] = {}
    start = 1
    for measure in MEASURES:
        metrics |= measure.metrics(sums[start : start + measure.width], float(sums[0]))
        start += measure.width
    return metrics


def row_scores(counts: np.ndarray, name: str) -> np.ndarray:
    """Return one metric of each row by itself, (rows,), nan where undefined.

    `bleu` is replaced by `chrf`: a sentence without four words in a row that are right has a BLEU near 0.

    Args:
        counts: (rows, `WIDTH`) as `row_counts` returns them.
        name: of the metric.
    """
    name = "chrf" if name == "bleu" else name
    return np.array([metrics_of(row[None])[name] for row in counts], dtype=np.float64)
