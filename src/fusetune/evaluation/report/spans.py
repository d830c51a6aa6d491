"""Draw texts with their true and predicted spans side by side."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fusetune.tasks.panels.kinds import MarkedLine, MarkedSpan, SpansPanel

MAX_SPANS = 200
"""The most spans that are drawn of a text."""
OUTCOMES = {"right": "right", "missed": "missed", "invented": "invented", "wrong type": "type"}
"""The style of each outcome; others are drawn as a wrong boundary."""


def spans(panel: SpansPanel) -> Markup:
    """Return the texts, each with its true spans and, beside them or below, its predicted ones."""
    caption = Markup('<p class="caption">{}</p>').format(panel.caption) if panel.caption else Markup("")
    texts = Markup("\n").join(
        Markup('<article class="text">{}{}{}</article>').format(
            Markup('<p class="row">row {}</p>').format(text.row) if text.row >= 0 else "",
            _side("true", text.text, text.true, text.true_lines),
            _side("predicted", text.text, text.predicted, text.predicted_lines),
        )
        for text in panel.texts
    )
    drawn = Markup('<div>{}<div class="texts">\n{}\n</div></div>').format(caption, texts)
    if panel.folded:
        return Markup("<details><summary>{}</summary>{}</details>").format(panel.folded, drawn)
    return drawn


def _side(name: str, text: str, marks: Sequence[MarkedSpan], lines: Sequence[MarkedLine]) -> Markup:
    listed = Markup().join(
        Markup('<li class="{}" dir="auto">{}{}</li>').format(
            OUTCOMES.get(line.outcome, "boundary"),
            line.text,
            "" if line.outcome == "right" else Markup('<span class="label">{}</span>').format(line.outcome),
        )
        for line in lines
    )
    below = Markup("<ul>{}</ul>").format(listed) if lines else ""
    return Markup('<div class="side"><span class="name">{}</span><p class="marked" dir="auto">{}</p>{}</div>').format(
        name, marked(text, marks), below
    )


def marked(text: str, marks: Sequence[MarkedSpan]) -> Markup:
    """Return a text with marks around its spans, escaped.

    Spans within others are marks within marks. A span that crosses the end of another one is drawn in two parts, of
    which the last one has the label.
    """
    pending = sorted(
        (MarkedSpan(max(m.start, 0), min(m.end, len(text)), m.label, m.outcome) for m in marks[:MAX_SPANS]),
        key=lambda mark: (mark.start, -mark.end),
    )
    return _range(text, 0, len(text), [mark for mark in pending if mark.start < mark.end])


def _range(text: str, start: int, end: int, marks: list[MarkedSpan]) -> Markup:
    """Return the characters from `start` to `end` with these marks, which lie within them and are sorted."""
    parts: list[Markup | str] = []
    while marks:
        mark = marks.pop(0)
        inner = [other for other in marks if other.start < mark.end]
        marks = [other for other in marks if other.start >= mark.end]
        crossing = [other for other in inner if other.end > mark.end]
        inner = [
            MarkedSpan(other.start, mark.end, "", other.outcome) if other.end > mark.end else other for other in inner
        ]
        marks += [MarkedSpan(mark.end, other.end, other.label, other.outcome) for other in crossing]
        marks.sort(key=lambda other: (other.start, -other.end))
        parts += [text[start : mark.start], _mark(mark, _range(text, mark.start, mark.end, inner))]
        start = mark.end
    return Markup().join([*parts, text[start:end]])


def _mark(mark: MarkedSpan, inner: Markup) -> Markup:
    outcome = "" if mark.outcome == "right" or not mark.label else f", {mark.outcome}"
    label = Markup('<span class="label">{}{}</span>').format(mark.label, outcome) if mark.label else Markup("")
    return Markup('<mark class="{}">{}{}</mark>').format(OUTCOMES.get(mark.outcome, "boundary"), inner, label)
