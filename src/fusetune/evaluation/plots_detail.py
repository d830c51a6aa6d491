"""The report's pictures of one model's scores as inline SVG: confusion, ROC and PR, reliability, regression, sound."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from fusetune.evaluation.details import Calibration, Confusion, Curve, NumberFit
from fusetune.evaluation.svg import Panel, Svg, figure, padded, short

MAX_MAP = 200
MAX_NAMED = 30
MAX_NUMBERED = 12
SERIES = 7


def confused_pairs(confusion: Confusion, labels: Sequence[str], num: int = 15) -> list[tuple[str, str, int, float]]:
    """The most frequent mix-ups: true label, predicted label, rows, share of the true label's rows."""
    support: Counter[int] = Counter()
    for true, _, rows in confusion.cells:
        support[true] += rows
    wrong = sorted((cell for cell in confusion.cells if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell[:2]))
    return [(labels[true], labels[guess], rows, rows / support[true]) for true, guess, rows in wrong[:num]]


def confusion_map(confusion: Confusion, labels: Sequence[str]) -> Markup:
    """Truth down, prediction across; shade is the share of the true label's rows, on the diagonal in another colour.

    Up to 30 labels are named, up to 12 have numbers in their cells; of more than 200, the most frequent are drawn.
    """
    support: Counter[int] = Counter()
    for true, _, rows in confusion.cells:
        support[true] += rows
    shown = list(range(len(labels)))
    if len(labels) > MAX_MAP:
        shown = sorted(index for index, _ in support.most_common(MAX_MAP))
    place = {index: at for at, index in enumerate(shown)}
    num = max(len(shown), 1)
    side = min(max(480 / num, 2.6), 58)
    named = num <= MAX_NAMED
    longest = max((len(short(labels[index], 18)) for index in shown), default=0) if named else 0
    left, top = 34 + 6.6 * longest, 34 + (6.6 * longest if num > 6 else 16 * named)
    svg = Svg(left + side * num + 12, top + side * num + 10, "Confusion: truth down, prediction across")
    svg.text(left + side * num / 2, 14, "predicted", "f-muted", anchor="middle", size=12)
    svg.text(12, top + side * num / 2, "true", "f-muted", anchor="middle", turn=-90, size=12)
    svg.rect(left, top, side * num, side * num, "f-grid", opacity=0.35)
    for index in shown if named else []:
        x, y, name = left + side * (place[index] + 0.5), top + side * (place[index] + 0.5), short(labels[index], 18)
        svg.text(left - 6, y + 4, name, "f-ink", anchor="end", size=11)
        if num > 6:
            svg.text(x + 4, top - 6, name, "f-ink", turn=-90, size=11)
        else:
            svg.text(x, top - 7, short(name, 9), "f-ink", anchor="middle", size=11)
    for true, guess, rows in confusion.cells:
        if true not in place or guess not in place:
            continue
        share = rows / support[true]
        x, y = left + side * place[guess], top + side * place[true]
        hint = f"true {short(labels[true], 60)}, predicted {short(labels[guess], 60)}: {rows} rows ({share:.0%})"
        gap, faint = (0.5, 0.12) if side > 8 else (0, 0.45 if true != guess else 0.2)  # a dot of 3 pixels must be seen
        css = "f-before" if true == guess else "f-tuned"
        svg.rect(x + gap, y + gap, side - 2 * gap, side - 2 * gap, css, opacity=faint + (1 - faint) * share, hint=hint)
        if num <= MAX_NUMBERED:
            svg.text(
                x + side / 2,
                y + side / 2 + 4,
                str(rows),
                "f-paper" if share > 0.5 else "f-ink",
                anchor="middle",
                size=12,
            )
    return svg.draw()


def curve_panel(curves: Sequence[Curve], *, roc: bool) -> Markup:
    """ROC or precision-recall curves of some classes, with their areas, and what a random order would give."""
    title = "ROC" if roc else "Precision and recall"
    x_label, y_label = ("false positive rate", "true positive rate") if roc else ("recall", "precision")
    panel = Panel(title, (0, 1), (0, 1), x_label=x_label, y_label=y_label, width=500, height=330, right=190)
    if roc:
        panel.curve([0, 1], [0, 1], "s-muted", width=1, dash="4 4", hint="a random order")
    elif len(curves) == 1:
        panel.level(curves[0].rate)
    entries = []
    for index, one in enumerate(curves):
        css, dash = f"s-c{index % SERIES}", "6 3" if index >= SERIES else ""
        panel.curve(one.x, one.y, css, dash=dash, hint=one.label)
        entries.append((f"{short(one.label, 14)} {figure(one.area)}", css, dash))
    panel.svg.text(panel.x.end + 12, 17, "area (AUC)" if roc else "area (AP)", "f-muted", size=11)
    panel.legend(entries, outside=True)
    return panel.draw()


def reliability_panel(calibration: Calibration) -> Markup:
    """How often claims of each confidence were right; below, how many claims there were."""
    panel = Panel(
        "Reliability",
        (0, 1),
        (0, 1),
        x_label=calibration.measures,
        y_label="observed frequency",
        description=f"expected calibration error {figure(calibration.ece)}",
        height=330,
    )
    panel.curve([0, 1], [0, 1], "s-muted", width=1, dash="4 4", hint="perfectly calibrated")
    most = max((one.rows for one in calibration.bins), default=1)
    for one in calibration.bins:
        x, tall = panel.x(one.low), 46 * one.rows / most
        panel.svg.rect(
            x + 1,
            panel.y.start - tall,
            panel.x(one.high) - x - 2,
            tall,
            "f-muted",
            opacity=0.28,
            hint=f"{one.rows} claims",
        )
    bins = calibration.bins
    panel.curve([one.confidence for one in bins], [one.accuracy for one in bins], "s-tuned")
    for one in bins:
        hint = f"claimed {figure(one.confidence)}, came true {figure(one.accuracy)}, {one.rows} claims"
        panel.svg.circle(panel.x(one.confidence), panel.y(one.accuracy), 4, "f-tuned", hint=hint)
    panel.svg.text(panel.x.start + 8, panel.y.end + 14, "too modest", "f-muted", size=11)
    panel.svg.text(panel.x.end - 8, panel.y.start - 56, "too sure", "f-muted", anchor="end", size=11)
    return panel.draw()


def number_panels(fit: NumberFit, target: str) -> list[Markup]:
    """Predicted against true, the histogram of errors, and their spread by predicted tenths."""
    unit = short(target, 30)
    ends = padded([*fit.truth, *fit.predicted])
    scatter = Panel(
        "Predicted against true", ends, ends, x_label=f"true {unit}", y_label=f"predicted {unit}", height=330
    )
    scatter.curve(ends, ends, "s-muted", width=1, dash="4 4", hint="predicted = true")
    opacity = min(0.8, max(0.18, 60 / max(len(fit.truth), 1)))
    for true, guess in zip(fit.truth, fit.predicted, strict=True):
        if math.isfinite(true) and math.isfinite(guess):
            scatter.svg.circle(scatter.x(true), scatter.y(guess), 3, "f-tuned", opacity=opacity)
    panels = [scatter.draw()]
    if fit.counts:
        error = f"predicted \N{MINUS SIGN} true {unit}"
        bars = Panel(
            "Errors", (fit.edges[0], fit.edges[-1]), (0, max(fit.counts)), x_label=error, y_label="rows", height=330
        )
        for low, high, rows in zip(fit.edges, fit.edges[1:], fit.counts, strict=False):
            y = bars.y(rows)
            hint = f"{figure(low)} to {figure(high)}: {rows} rows"
            bars.svg.rect(
                bars.x(low) + 0.5,
                y,
                bars.x(high) - bars.x(low) - 1,
                bars.y.start - y,
                "f-tuned",
                opacity=0.75,
                hint=hint,
            )
        if fit.edges[0] < 0 < fit.edges[-1]:
            bars.upright(0, css="s-ink")
        panels.append(bars.draw())
    if len(fit.spread) > 1:
        panels.append(_spread(fit, unit))
    return panels


def _spread(fit: NumberFit, unit: str) -> Markup:
    ends = [end for one in fit.spread for end in (one.low, one.high)]
    panel = Panel(
        "Spread of errors, by tenths of the prediction",
        padded([one.predicted for one in fit.spread]),
        padded([0.0, *ends]),
        x_label=f"predicted {unit} (mean of the tenth)",
        y_label="error: 10th, 50th, 90th percentile",
        height=330,
    )
    panel.level(0, "s-ink")
    for one in fit.spread:
        x = panel.x(one.predicted)
        hint = f"{one.rows} rows: {figure(one.low)}, {figure(one.middle)}, {figure(one.high)}"
        panel.svg.line(x, panel.y(one.low), x, panel.y(one.high), "s-tuned", width=3)
        panel.svg.circle(x, panel.y(one.middle), 5, "f-tuned", hint=hint)
    return panel.draw()


def waveform(peaks: Sequence[float], description: str) -> Markup:
    """A sound's loudness over time, as upright strokes about a middle line."""
    svg = Svg(2 * max(len(peaks), 1), 40, f"Waveform, {description}")
    for index, peak in enumerate(peaks):
        half = max(0.5, 18 * peak) if math.isfinite(peak) else 0.5
        svg.line(2 * index + 1, round(20 - half, 1), 2 * index + 1, round(20 + half, 1), "s-before", width=1.4)
    return svg.draw()
