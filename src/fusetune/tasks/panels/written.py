"""Panels about answers that are written texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from fusetune.tasks.main_metric import Metric
from fusetune.tasks.panels.kinds import (
    Cell,
    ChangedRow,
    ChangedRows,
    Evidence,
    Head,
    HistogramPanel,
    Panel,
    Section,
    TablePanel,
    WorstRows,
    WrongRow,
    ranked,
)
from fusetune.tasks.panels.texts import cut
from fusetune.tasks.text.metrics.form import repeated
from fusetune.tasks.text.metrics.table import row_scores
from fusetune.tasks.text.metrics.tokens import num_words

MAX_TEXT, MAX_REFERENCES = 600, 3
"""Characters of a text, and right answers of a row, that are shown."""
LOOPS = 0.2
"""A text of which a larger share of the runs of four words come again repeats itself."""
MAX_FREQUENT, MIN_FREQUENT = 12, 3
"""The most answers in the table of frequent ones, and the fewest rows with the first of them."""
SHOWN_TOGETHER = 3
"""So many rows that tuning made better come first, then so many that it made worse, then so many at random; and on."""
MAX_BINS = 20
TAIL = 99.0
"""The percentile of all lengths at which the histograms end; longer texts are in the last bar."""

Truth = str | Sequence[str]


def first_of(truth: Truth) -> str:
    """Return the first of a row's right answers; "" for none."""
    return truth if isinstance(truth, str) else next(iter(truth), "")


def most_frequent(truths: Sequence[Truth] | np.ndarray, num: int) -> np.ndarray:
    """Return the most frequent first right answer, `num` times, (num,) of dtype object; of several, the earliest.

    Args:
        truths: (rows,); "" is the answer if there are none.
        num: the number of rows to answer.
    """
    counts = Counter(map(first_of, truths))
    answers = np.empty(num, dtype=object)
    answers[:] = counts.most_common(1)[0][0] if counts else ""
    return answers


def sizes_panel(truths: Mapping[str, np.ndarray]) -> TablePanel:
    """Return a table of the lengths of the right answers by split.

    Args:
        truths: by split, (rows,) of texts or lists of texts.
    """
    heads = [Head("split"), Head("rows", "count"), Head("right answers a row", "number")]
    heads += [Head("median words", "number"), Head("longest, words", "count"), Head("different", "share")]
    rows: list[list[Cell]] = []
    for split, truth in truths.items():
        texts = [first_of(value) for value in truth]
        words = [num_words(text) for text in texts]
        several = [1 if isinstance(value, str) else len(value) for value in truth]
        middle = [float(np.mean(several)), float(np.median(words)), max(words)] if texts else [None] * 3
        rows.append([split, len(texts), *middle, len(set(texts)) / len(texts) if texts else None])
    return TablePanel(heads, rows)


def written_sections(evidence: Evidence) -> list[Section]:
    """Return what can be said of the answers' form: shares that are empty or repeat, lengths, frequent answers.

    Args:
        evidence: answers, (rows,) of texts; truth, (rows,) of texts or lists of texts; `before` and `cut` if known.
    """
    texts = {"true": [first_of(value) for value in evidence.truth]}
    if evidence.before is not None:
        texts["before"] = list(evidence.before)
    texts["tuned"] = list(evidence.answers)
    return [_form(texts, evidence.cut), _lengths(texts), *_frequent(texts)]


def _form(texts: Mapping[str, Sequence[str]], cut_off: np.ndarray | None) -> Section:
    heads = [Head("answers"), *(Head(name, "share") for name in ("empty", "repeat themselves", "different"))]
    heads += [Head("median words", "number"), Head("longest, words", "count")]
    rows: list[list[Cell]] = []
    figures: dict[str, float] = {}
    for name, own in texts.items():
        empty = float(np.mean([not text.strip() for text in own]))
        loops = float(np.mean([repeated(text) > LOOPS for text in own]))
        words = [num_words(text) for text in own]
        different = len(set(own)) / len(own)
        rows.append([name, empty, loops, different, float(np.median(words)), max(words)])
        figures |= {f"{name}_empty": empty, f"{name}_repeat": loops, f"{name}_different": different}
    notes = [f"A text repeats itself if more than {LOOPS:.0%} of its runs of four words come again."]
    if cut_off is not None:
        figures["tuned_cut"] = float(np.mean(cut_off))
        notes.append(f"{figures['tuned_cut']:.0%} of the tuned model's answers ended at the limit on their length.")
    return Section("form", "The answers' form", [TablePanel(heads, rows)], notes, figures)


def _lengths(texts: Mapping[str, Sequence[str]]) -> Section:
    lengths = {name: np.array([num_words(text) for text in own]) for name, own in texts.items()}
    top = math.ceil(np.percentile(np.concatenate(list(lengths.values())), TAIL)) + 1
    width = -(-top // MAX_BINS)
    edges = np.arange(0, top + width, width)
    panels: list[Panel] = [
        HistogramPanel(
            f"{name} answers",
            "words",
            edges.tolist(),
            np.histogram(np.minimum(own, edges[-1] - 1), edges)[0].tolist(),
        )
        for name, own in lengths.items()
    ]
    return Section("lengths", "Lengths", panels)


def _frequent(texts: Mapping[str, Sequence[str]]) -> list[Section]:
    """Return the most frequent answers; nothing if hardly any comes again."""
    counts = {name: Counter(own) for name, own in texts.items()}
    named = [counts["tuned"], counts["true"]]
    if max(count for own in named for _, count in own.most_common(1)) < MIN_FREQUENT:
        return []
    turns = zip(*(own.most_common(MAX_FREQUENT) + [("", 0)] * MAX_FREQUENT for own in named), strict=False)
    chosen = dict.fromkeys(text for turn in turns for text, count in turn if count >= MIN_FREQUENT)
    order = sorted(list(chosen)[:MAX_FREQUENT], key=lambda text: -counts["tuned"][text])
    rows: list[list[Cell]] = [[cut(text, 100) or "(empty)", *(own[text] for own in counts.values())] for text in order]
    heads = [Head("answer"), *(Head(name, "count") for name in counts)]
    return [Section("frequent", "Frequent answers", [TablePanel(heads, rows, "rows with each answer")])]


def worst_written(answers: np.ndarray, truth: np.ndarray, measured: np.ndarray, metric: Metric, num: int) -> WorstRows:
    """Return the rows with the worst answers, in turn from empty, repeating, too short, too long and other ones.

    Args:
        answers: (rows,) of texts.
        truth: (rows,) of texts or lists of texts.
        measured: (rows, k) as `row_counts` returns them.
        metric: one of `metrics_of`.
        num: the most rows.
    """
    scores = row_scores(measured, metric.name)
    loss = -scores if metric.greater_is_better else scores
    kinds = np.array([_kind(answer, first_of(right)) for answer, right in zip(answers, truth, strict=True)])
    wrong = np.array(
        [
            answer != right if isinstance(right, str) else answer not in right
            for answer, right in zip(answers, truth, strict=True)
        ]
    )
    rows = [
        WrongRow(at, _references(truth[at]), _shown(answers[at]) or "(empty)", math.nan, float(loss[at]))
        for at in ranked(loss, kinds, num, among=wrong)
    ]
    name = "chrf" if metric.name == "bleu" else metric.name
    return WorstRows(f"answers with the worst {name}: empty, repeating, short, long and other ones in turn", rows)


def _kind(answer: str, right: str) -> Literal["empty", "repeats", "short", "long", "other"]:
    if not answer.strip():
        return "empty"
    if repeated(answer) > LOOPS:
        return "repeats"
    if 2 * len(answer) < len(right):
        return "short"
    return "long" if len(answer) > 2 * len(right) else "other"


def changed_rows(
    before: tuple[np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray],
    truth: np.ndarray,
    metric: Metric,
    num: int,
) -> ChangedRows:
    """Return the rows that tuning changed most, a third for the better, a third for the worse, and others at random.

    They take turns, `SHOWN_TOGETHER` of each. Rows whose metric changed equally are ordered by their change in chrF.

    Args:
        before, after: answers, (rows,) of texts, and (rows, k) as `row_counts` returns them.
        truth: (rows,) of texts or lists of texts.
        metric: one of `metrics_of`.
        num: the most rows.
    """
    scores = [row_scores(measured, metric.name) for _, measured in (before, after)]
    sign = 1 if metric.greater_is_better else -1
    gains = sign * np.nan_to_num(scores[1] - scores[0])
    close = [row_scores(measured, "chrf") for _, measured in (before, after)]
    order = np.lexsort((close[0] - close[1], -gains))  # the largest gain first
    part = max(num // 3, 1)
    better = [int(at) for at in order[:part] if gains[at] > 0]
    worse = [int(at) for at in order[::-1][:part] if gains[at] < 0]
    rest = [int(at) for at in np.random.default_rng(0).permutation(len(gains)) if at not in {*better, *worse}]
    outcomes: list[tuple[Literal["better", "worse", "at random"], list[int]]] = [
        ("better", better),
        ("worse", worse),
        ("at random", rest[: max(num - len(better) - len(worse), 0)]),
    ]
    rows = [
        ChangedRow(
            at,
            outcome,
            _references(truth[at]),
            _shown(before[0][at]),
            _shown(after[0][at]),
            float(scores[0][at]),
            float(scores[1][at]),
        )
        for start in range(0, num, SHOWN_TOGETHER)
        for outcome, places in outcomes
        for at in places[start : start + SHOWN_TOGETHER]
    ]
    name = "chrf" if metric.name == "bleu" else metric.name
    return ChangedRows(name, rows, int((gains > 0).sum()), int((gains < 0).sum()), int((gains == 0).sum()))


def _references(truth: Truth) -> str:
    """Return a row's right answers, one a line, of which the first few."""
    texts = [truth] if isinstance(truth, str) else list(truth)
    more = [f"and {len(texts) - MAX_REFERENCES} more"] if len(texts) > MAX_REFERENCES else []
    return "\n".join([*map(_shown, texts[:MAX_REFERENCES]), *more])


def _shown(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1].rstrip() + "…"
