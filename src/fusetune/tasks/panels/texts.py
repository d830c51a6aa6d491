"""Texts with their true and predicted spans, and what else is said of them, side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from fusetune.tasks.panels.kinds import Evidence, MarkedLine, MarkedSpan, MarkedText, Section, SpansPanel

NUM_TEXTS, NUM_MORE = 8, 16
"""Texts with errors that are shown, and texts at random that are folded."""
MAX_TEXT, BEFORE = 600, 150
"""The most characters of a text; a longer one is shown from so many before its first error, or its first span."""
MAX_SPANS, MAX_ROWS_OF_LINES = 60, 20
"""The most spans of a side of a text, and the most lines."""


@dataclass(frozen=True)
class Compared:
    """A text's true and predicted spans with their outcomes, and lines below them.

    Attributes:
        text: that the spans are of; None for the evidence's text of the row.
    """

    true: list[MarkedSpan]
    predicted: list[MarkedSpan]
    true_lines: list[MarkedLine] = field(default_factory=list)
    predicted_lines: list[MarkedLine] = field(default_factory=list)
    text: str | None = None


def texts_section(
    outcomes: Sequence[Collection[str]],
    compared: Callable[[int], Compared],
    evidence: Evidence,
    kinds: Sequence[str],
    items: str,
) -> Section:
    """Return texts with errors, in turn from the kinds of error, and texts at random.

    Args:
        outcomes: of each evaluated row, "right" and kinds of error; rows without any are not shown.
        compared: returns the row at a position, for rows that are shown.
        evidence: with the texts.
        kinds: the outcomes that are errors, in the order in which they take turns.
        items: what the texts have: "entities".
    """
    rng = np.random.default_rng(evidence.seed)
    order = [int(at) for at in rng.permutation(len(outcomes))]
    queues = [[at for at in order if kind in outcomes[at]] for kind in kinds]
    chosen: list[int] = []
    for place in range(max(map(len, queues))):
        chosen += [queue[place] for queue in queues if place < len(queue) and queue[place] not in chosen]
        if len(chosen) >= NUM_TEXTS:
            break
    chosen = list(dict.fromkeys(chosen))[:NUM_TEXTS]
    more = [at for at in order if at not in chosen and outcomes[at]][:NUM_MORE]
    panels = []
    if chosen:
        panels.append(SpansPanel([marked_text(at, compared(at), evidence) for at in chosen], "Texts with errors"))
    if more:
        texts = [marked_text(at, compared(at), evidence) for at in more]
        panels.append(SpansPanel(texts, f"Texts with {items}, at random", f"{len(more)} more texts at random"))
    notes = [] if panels else [f"No text has true or predicted {items}."]
    return Section("texts", "Texts", [*panels], notes)


def marked_text(at: int, compared: Compared, evidence: Evidence) -> MarkedText:
    """Return the text of the row at a position with its spans; of a long one, the part around its first error."""
    text = text_of(evidence, at) if compared.text is None else compared.text
    spans = [*compared.true, *compared.predicted]
    wrong = [span.start for span in spans if span.outcome != "right"] or [span.start for span in spans]
    first = max(min(wrong, default=0) - BEFORE, 0) if len(text) > MAX_TEXT else 0
    last = min(first + MAX_TEXT, len(text))
    before, after = "…" if first else "", "…" if last < len(text) else ""
    sides = [
        [
            MarkedSpan(span.start - first + len(before), span.end - first + len(before), span.label, span.outcome)
            for span in side
            if first <= span.start and span.end <= last
        ][:MAX_SPANS]
        for side in (compared.true, compared.predicted)
    ]
    row = -1 if evidence.ids is None else int(evidence.ids[at])
    lines = (side[:MAX_ROWS_OF_LINES] for side in (compared.true_lines, compared.predicted_lines))
    return MarkedText(before + text[first:last] + after, sides[0], sides[1], row, *lines)


def text_of(evidence: Evidence, at: int) -> str:
    """Return the text of the row at a position; "" for none."""
    texts = evidence.texts(at) if evidence.texts is not None else ()
    return texts[0] if texts else ""


def cut(text: str, limit: int = 40) -> str:
    """Return a text in one line, not longer than a limit."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
