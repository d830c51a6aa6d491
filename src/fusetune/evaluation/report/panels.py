"""Draw panels: every kind in `fusetune.tasks.panels.kinds`, as a table or an inline SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup, escape

from fusetune.evaluation.report.comparison import bar
from fusetune.evaluation.report.spans import spans
from fusetune.evaluation.report.svg import Panel, Svg, figure, padded, short
from fusetune.tasks.panels.kinds import (
    Cell,
    CurvePanel,
    Head,
    HeatmapPanel,
    HistogramPanel,
    ReliabilityPanel,
    ScatterPanel,
    SpansPanel,
    SpreadPanel,
    TablePanel,
)

MAX_MAP = 200
MAX_NAMED = 30
MAX_NUMBERED = 12
SERIES = 7
DASH = "\N{EN DASH}"
HEAD_CLASSES = {"text": Markup(""), "bar": Markup(' class="bar"')}


def draw(panel: Any) -> Markup:
    """Return a panel of any kind as markup."""
    return DRAWN[type(panel)](panel)


def table(panel: TablePanel) -> Markup:
    """Return a table, collapsed if it is folded."""
    heads = Markup().join(
        Markup("<th{}>{}</th>").format(HEAD_CLASSES.get(head.format, Markup(' class="num"')), head.name)
        for head in panel.heads
    )
    rows = Markup("\n").join(
        Markup("<tr>{}</tr>").format(Markup().join(map(_cell, panel.heads, row))) for row in panel.rows
    )
    caption = Markup('<p class="caption">{}</p>').format(panel.caption) if panel.caption else Markup("")
    head = Markup("<thead><tr>{}</tr></thead>").format(heads) if any(h.name for h in panel.heads) else Markup("")
    drawn = Markup('<div>{}<div class="scroll"><table>{}<tbody>\n{}\n</tbody></table></div></div>').format(
        caption, head, rows
    )
    if panel.folded:
        return Markup("<details><summary>{}</summary>{}</details>").format(panel.folded, drawn)
    return drawn


def _cell(head: Head, cell: Cell) -> Markup:
    if head.format == "text":
        return Markup("<td>{}</td>").format(DASH if cell is None else cell)
    value = float(cell) if isinstance(cell, int | float) else math.nan
    if head.format == "bar":
        return Markup('<td class="bar">{}</td>').format(bar(value))
    if not math.isfinite(value):
        text = DASH
    else:
        text = {"count": f"{value:,.0f}", "share": f"{value:.0%}"}.get(head.format) or figure(value)
    return Markup('<td class="num">{}</td>').format(escape(text))


def heatmap(panel: HeatmapPanel) -> Markup:
    """Return counts of pairs, shaded by their share of the row's total, with the diagonal in another colour.

    Up to 30 labels are named, and up to 12 have numbers in their cells. Of more than 200, the most frequent are drawn.
    """
    labels, support = panel.labels, Counter[int]()
    for down, _, rows in panel.cells:
        support[down] += rows
    shown = list(range(len(labels)))
    if len(labels) > MAX_MAP:
        shown = sorted(index for index, _ in support.most_common(MAX_MAP))
    position = {index: at for at, index in enumerate(shown)}
    num = max(len(shown), 1)
    side = min(max(480 / num, 2.6), 58)
    named = num <= MAX_NAMED
    longest = max((len(short(labels[index], 18)) for index in shown), default=0) if named else 0
    left, top = 34 + 6.6 * longest, 34 + (6.6 * longest if num > 6 else 16 * named)
    title = f"Confusion: {panel.down} down, {panel.across} across"
    svg = Svg(left + side * num + 12, top + side * num + 10, title)
    svg.text(left + side * num / 2, 14, panel.across, "f-muted", anchor="middle", size=12)
    svg.text(12, top + side * num / 2, panel.down, "f-muted", anchor="middle", turn=-90, size=12)
    svg.rect(left, top, side * num, side * num, "f-grid", opacity=0.35)
    for index in shown if named else []:
        x, y, name = (
            left + side * (position[index] + 0.5),
            top + side * (position[index] + 0.5),
            short(labels[index], 18),
        )
        svg.text(left - 6, y + 4, name, "f-ink", anchor="end", size=11)
        if num > 6:
            svg.text(x + 4, top - 6, name, "f-ink", turn=-90, size=11)
        else:
            svg.text(x, top - 7, short(name, 9), "f-ink", anchor="middle", size=11)
    for down, across, rows in panel.cells:
        if down not in position or across not in position:
            continue
        share = rows / support[down]
        x, y = left + side * position[across], top + side * position[down]
        names = f"{panel.down} {short(labels[down], 60)}, {panel.across} {short(labels[across], 60)}"
        gap, faint = (
            (0.5, 0.12) if side > 8 else (0, 0.45 if down != across else 0.2)
        )  # cells of 3 pixels must stay visible
        css, opacity = "f-before" if down == across else "f-tuned", faint + (1 - faint) * share
        hint = f"{names}: {rows} rows ({share:.0%})"
        svg.rect(x + gap, y + gap, side - 2 * gap, side - 2 * gap, css, opacity=opacity, hint=hint)
        if num <= MAX_NUMBERED:
            ink = "f-paper" if share > 0.5 else "f-ink"
            svg.text(x + side / 2, y + side / 2 + 4, str(rows), ink, anchor="middle", size=12)
    return svg.draw()


def curves(panel: CurvePanel) -> Markup:
    """Return lines on axes from 0 to 1, with their values in a legend below the frame."""
    rows = math.ceil(len(panel.lines) / 2)
    space = 20 + 17 * rows
    drawn = Panel(
        panel.title, (0, 1), (0, 1), x_label=panel.x_label, y_label=panel.y_label, height=300 + space, below=space
    )
    if panel.diagonal:
        drawn.curve([0, 1], [0, 1], "s-muted", width=1, dash="4 4", hint=panel.diagonal)
    if math.isfinite(panel.level):
        drawn.horizontal_line(panel.level)
    entries = []
    for index, line in enumerate(panel.lines):
        css, dash = f"s-c{index % SERIES}", "6 3" if index >= SERIES else ""
        drawn.curve(line.x, line.y, css, dash=dash, hint=line.label)
        entries.append((f"{short(line.label, 20)} {figure(line.value)}", css, dash))
    drawn.legend_below(entries, panel.values)
    return drawn.draw()


def reliability(panel: ReliabilityPanel) -> Markup:
    """Return the observed frequency by predicted probability, with the number of predictions as bars below."""
    bins = panel.bins
    drawn = Panel("Reliability", (0, 1), (0, 1), x_label=panel.measures, y_label="observed frequency", height=330)
    drawn.curve([0, 1], [0, 1], "s-muted", width=1, dash="4 4", hint="perfectly calibrated")
    most = max((part.rows for part in bins), default=1)
    for part in bins:
        x, tall, hint = drawn.x(part.low), 46 * part.rows / most, f"{part.rows} predictions"
        width = drawn.x(part.high) - x - 2
        drawn.svg.rect(x + 1, drawn.y.start - tall, width, tall, "f-muted", opacity=0.28, hint=hint)
    drawn.curve([part.confidence for part in bins], [part.accuracy for part in bins], "s-tuned")
    for part in bins:
        hint = f"predicted {figure(part.confidence)}, observed {figure(part.accuracy)}, {part.rows} predictions"
        drawn.svg.circle(drawn.x(part.confidence), drawn.y(part.accuracy), 4, "f-tuned", hint=hint)
    drawn.svg.text(drawn.x.start + 8, drawn.y.end + 14, "underconfident", "f-muted", size=11)
    drawn.svg.text(drawn.x.end - 8, drawn.y.start - 56, "overconfident", "f-muted", anchor="end", size=11)
    return drawn.draw()


def scatter(panel: ScatterPanel) -> Markup:
    """Return points on two axes with the same scale."""
    ends = padded([*panel.x, *panel.y])
    drawn = Panel(
        panel.title, ends, ends, x_label=short(panel.x_label, 40), y_label=short(panel.y_label, 40), height=330
    )
    drawn.curve(ends, ends, "s-muted", width=1, dash="4 4", hint=panel.diagonal)
    opacity = min(0.8, max(0.18, 60 / max(len(panel.x), 1)))
    for x, y in zip(panel.x, panel.y, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            drawn.svg.circle(drawn.x(x), drawn.y(y), 3, "f-tuned", opacity=opacity)
    return drawn.draw()


def histogram(panel: HistogramPanel) -> Markup:
    """Return counts as vertical bars, with a line at 0 if it is in the range."""
    edges = panel.edges
    drawn = Panel(
        panel.title,
        (edges[0], edges[-1]),
        (0, max(*panel.counts, 1)),
        x_label=short(panel.x_label, 48),
        y_label=panel.y_label,
        height=330,
    )
    for low, high, count in zip(edges, edges[1:], panel.counts, strict=False):
        x, y = drawn.x(low), drawn.y(count)
        hint = f"{figure(low)} to {figure(high)}: {count} {panel.y_label}"
        width, tall = drawn.x(high) - x - 1, drawn.y.start - y
        drawn.svg.rect(x + 0.5, y, width, tall, "f-tuned", opacity=0.75, hint=hint)
    if edges[0] < 0 < edges[-1]:
        drawn.vertical_line(0, css="s-ink")
    return drawn.draw()


def spread(panel: SpreadPanel) -> Markup:
    """Return a median and two percentiles at each x."""
    ends = [end for point in panel.points for end in (point.low, point.high)]
    drawn = Panel(
        panel.title,
        padded([point.x for point in panel.points]),
        padded([0.0, *ends]),
        x_label=short(panel.x_label, 48),
        y_label=panel.y_label,
        height=330,
    )
    drawn.horizontal_line(0, "s-ink")
    for point in panel.points:
        x = drawn.x(point.x)
        hint = f"{point.rows} rows: {figure(point.low)}, {figure(point.middle)}, {figure(point.high)}"
        drawn.svg.line(x, drawn.y(point.low), x, drawn.y(point.high), "s-tuned", width=3)
        drawn.svg.circle(x, drawn.y(point.middle), 5, "f-tuned", hint=hint)
    return drawn.draw()


DRAWN: dict[type, Callable[[Any], Markup]] = {
    TablePanel: table,
    HeatmapPanel: heatmap,
    CurvePanel: curves,
    HistogramPanel: histogram,
    ScatterPanel: scatter,
    SpreadPanel: spread,
    ReliabilityPanel: reliability,
    SpansPanel: spans,
}
"""The drawing function of each kind of panel."""


def waveform(peaks: Sequence[float], description: str) -> Markup:
    """Draw a sound's loudness over time as vertical strokes."""
    svg = Svg(2 * max(len(peaks), 1), 40, f"Waveform, {description}")
    for index, peak in enumerate(peaks):
        half = max(0.5, 18 * peak) if math.isfinite(peak) else 0.5
        svg.line(2 * index + 1, round(20 - half, 1), 2 * index + 1, round(20 + half, 1), "s-before", width=1.4)
    return svg.draw()
