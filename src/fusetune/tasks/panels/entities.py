"""Panels about entities: figures and errors by type, and texts with their true and predicted spans."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusetune.tasks.panels.kinds import Evidence, Head, MarkedSpan, Section, TablePanel
from fusetune.tasks.panels.texts import Compared, cut, text_of, texts_section

MISSED, INVENTED, TYPE, BOUNDARY = "missed", "invented", "wrong type", "wrong boundary"
ERRORS = (MISSED, INVENTED, TYPE, BOUNDARY)
MEANINGS = (
    "Missed: a true entity that no predicted one overlaps. Invented: a predicted entity that overlaps no true one. "
    "Wrong boundary: the type is right. Wrong type: the span is right, or overlaps."
)
NUM_EXAMPLES = 3
"""Examples of each kind of error."""
MAX_TYPES = 40
"""With more types, the table is folded, and the most frequent ones stand above it."""


def compare(
    true: Sequence[tuple[int, int, str]], predicted: Sequence[tuple[int, int, str]]
) -> tuple[list[MarkedSpan], list[MarkedSpan]]:
    """Return the true and the predicted spans with their outcomes.

    Each span is compared with at most one of the other side: an equal one, else one with the same characters, else the
    one of the same label, else of any, that shares most characters with it.
    """
    sides = [MarkedSpan(*span, outcome=MISSED) for span in true], [MarkedSpan(*s, outcome=INVENTED) for s in predicted]
    pairs = []
    for number, one in enumerate(sides[0]):
        for other_number, other in enumerate(sides[1]):
            shared = min(one.end, other.end) - max(one.start, other.start)
            if shared > 0:
                same_span, same_label = (one.start, one.end) == (other.start, other.end), one.label == other.label
                rank = (not (same_span and same_label), not same_span, not same_label, -shared, number, other_number)
                pairs.append((rank, "right" if same_span and same_label else BOUNDARY if same_label else TYPE))
    used: tuple[set[int], set[int]] = set(), set()
    for rank, outcome in sorted(pairs):
        number, other_number = rank[-2], rank[-1]
        if number not in used[0] and other_number not in used[1]:
            used[0].add(number)
            used[1].add(other_number)
            sides[0][number].outcome = sides[1][other_number].outcome = outcome
    return sides


def entity_sections(evidence: Evidence, classes: Sequence[str]) -> list[Section]:
    """Return figures by type, errors by type with examples, and texts with true and predicted spans.

    Args:
        evidence: answers, lists of dicts, and truth, lists of (start, end, label).
        classes: the labels; true entities may have others, which no train row has.
    """
    compared = [
        compare([tuple(span) for span in true], [(e["start"], e["end"], e["label"]) for e in entities])
        for true, entities in zip(evidence.truth, evidence.answers, strict=True)
    ]
    unknown = {label for true in evidence.truth for *_, label in true} - set(classes)
    counts: dict[str, Counter[str]] = {label: Counter() for label in (*classes, *sorted(unknown))}
    for true, predicted in compared:
        for span in true:
            counts[span.label].update(["true", span.outcome])
        for span in predicted:
            counts[span.label].update(["predicted", *([INVENTED] if span.outcome == INVENTED else [])])
    order = sorted(counts, key=lambda label: -counts[label]["true"])
    sections = [_types(counts, order, evidence.intervals), _errors(counts, order)]
    if evidence.texts is not None:
        outcomes = [{span.outcome for side in sides for span in side} for sides in compared]
        texts = texts_section(outcomes, lambda at: Compared(*compared[at]), evidence, ERRORS, "entities")
        sections += [_example_section(compared, evidence), texts]
    return sections


def _types(
    counts: Mapping[str, Counter[str]], order: Sequence[str], intervals: Mapping[str, tuple[float, float, float]]
) -> Section:
    notes = ["An entity is right if its characters and its type are."]
    return Section("types", "By type", [*figures_by_label(counts, order, intervals, "type")], notes)


def figures_by_label(
    counts: Mapping[str, Counter[str]],
    order: Sequence[str],
    intervals: Mapping[str, tuple[float, float, float]],
    what: str,
) -> list[TablePanel]:
    """Return a table of each label's counts, precision, recall and F1; with many labels also one of the first.

    Args:
        counts: by label how many are "true", "predicted" and "right".
        order: the labels.
        intervals: as `Evidence.intervals`; a label's F1 is called f1_LABEL.
        what: a label is: "type".
    """
    heads = [Head(what), *(Head(name, "count") for name in ("true", "predicted", "right"))]
    heads += [Head("precision", "number"), Head("recall", "number"), Head("f1", "number"), Head("95% interval")]
    rows: list[list[Any]] = []
    for label in order:
        own = counts[label]
        value, low, high = intervals.get(f"f1_{label}", (math.nan,) * 3)
        ends = f"{low:.3f} to {high:.3f}" if math.isfinite(low) and math.isfinite(high) else None
        shares = [own["right"] / own[side] if own[side] else math.nan for side in ("predicted", "true")]
        rows.append([label, own["true"], own["predicted"], own["right"], *shares, value, ends])
    if len(rows) <= MAX_TYPES:
        return [TablePanel(heads, rows)]
    most = TablePanel(heads, rows[:MAX_TYPES], f"The {MAX_TYPES} most frequent {what}s of {len(rows)}.")
    return [most, TablePanel(heads, rows, folded=f"All {len(rows)} {what}s")]


def _errors(counts: Mapping[str, Counter[str]], order: Sequence[str]) -> Section:
    rows: list[list[Any]] = [[label, *(counts[label][kind] for kind in ("right", *ERRORS))] for label in order]
    shown = [row for row in rows if any(row[1:])][:MAX_TYPES]
    total = [sum(row[place] for row in rows) for place in range(1, 6)]
    heads = [Head("type"), *(Head(name, "count") for name in ("right", *ERRORS))]
    figures = {kind.replace(" ", "_"): float(number) for kind, number in zip(ERRORS, total[1:], strict=True)}
    return Section("errors", "Errors by type", [TablePanel(heads, [*shown, ["all", *total]])], [MEANINGS], figures)


def _example_section(compared: Sequence[tuple[list[MarkedSpan], list[MarkedSpan]]], evidence: Evidence) -> Section:
    """Return some errors of each kind, and the types that are confused most often."""
    rows: list[list[Any]] = []
    for kind in ERRORS:
        texts = _spread(_examples(compared, kind, evidence), evidence.seed)
        rows.append([kind, "; ".join(texts) or None])
    confused = Counter(
        (one.label, two.label) for true, predicted in compared for one, two in _pairs(true, predicted, TYPE)
    )
    panels = [TablePanel([Head("error"), Head("examples")], rows, "Examples at random")]
    if confused:
        heads = [Head("true type"), Head("predicted type"), Head("entities", "count")]
        pairs: list[list[Any]] = [[*labels, number] for labels, number in confused.most_common(8)]
        panels.append(TablePanel(heads, pairs, "Most frequent confusions"))
    return Section("examples", "Examples of errors", [*panels])


def _pairs(
    true: Sequence[MarkedSpan], predicted: Sequence[MarkedSpan], kind: str
) -> Iterator[tuple[MarkedSpan, MarkedSpan]]:
    """Yield the true and predicted spans with this outcome that overlap."""
    for one in (span for span in true if span.outcome == kind):
        for two in (span for span in predicted if span.outcome == kind):
            if min(one.end, two.end) > max(one.start, two.start):
                yield one, two


def _examples(
    compared: Sequence[tuple[list[MarkedSpan], list[MarkedSpan]]], kind: str, evidence: Evidence
) -> Iterator[tuple[int, str]]:
    """Yield rows and descriptions of the errors of a kind."""
    for at, (true, predicted) in enumerate(compared):
        if evidence.texts is None or not any(span.outcome == kind for span in (*true, *predicted)):
            continue
        text = text_of(evidence, at)
        if kind in (MISSED, INVENTED):
            for span in true if kind == MISSED else predicted:
                if span.outcome == kind:
                    yield at, f"“{cut(text[span.start : span.end])}” ({span.label})"
            continue
        for one, two in _pairs(true, predicted, kind):
            guessed, right = (cut(text[span.start : span.end]) for span in (two, one))
            if kind == TYPE:
                yield at, f"“{guessed}” ({two.label}, not {one.label})"
            else:
                yield at, f"“{guessed}” for “{right}” ({one.label})"


def _spread(examples: Iterator[tuple[int, str]], seed: int) -> list[str]:
    """Return some examples at random, of different rows where there are enough."""
    by_row: dict[int, list[str]] = defaultdict(list)
    for at, text in examples:
        by_row[at].append(text)
    rows = [list(by_row)[index] for index in np.random.default_rng(seed).permutation(len(by_row))]
    first = [by_row[at][0] for at in rows]
    rest = [text for at in rows for text in by_row[at][1:]]
    return [*first, *rest][:NUM_EXAMPLES]


def types_panel(truths: Mapping[str, np.ndarray], classes: Sequence[str]) -> TablePanel:
    """Return a table of each type's entities by split, and of the rows without any.

    Args:
        truths: by split, (rows,) lists of (start, end, label).
        classes: the labels; true entities may have others, which no train row has.
    """
    labels = {split: [[label for *_, label in spans] for spans in truth] for split, truth in truths.items()}
    return labels_panel(labels, classes, "type", "entities")


def labels_panel(
    labels: Mapping[str, Sequence[Sequence[str]]], classes: Sequence[str], what: str, items: str
) -> TablePanel:
    """Return a table of how often each label occurs in each split, and of the rows without any.

    Args:
        labels: by split the rows' labels.
        classes: the labels of train rows.
        what: a label is: "type".
        items: that have labels: "entities".
    """
    counts = {split: Counter(label for own in rows for label in own) for split, rows in labels.items()}
    every = dict.fromkeys([*classes, *sorted(label for own in counts.values() for label in own)])
    order = sorted(every, key=lambda label: -sum(own[label] for own in counts.values()))
    rows: list[list[Any]] = [[label, *(own[label] for own in counts.values())] for label in order]
    rows.append([f"(rows without {items})", *(sum(not own for own in some) for some in labels.values())])
    heads = [Head(what), *(Head(f"{split} {items}", "count") for split in labels)]
    folded = f"All {len(order)} {what}s by split" if len(order) > MAX_TYPES else ""
    return TablePanel(heads, rows, f"{items.capitalize()} of each {what} by split.", folded)
