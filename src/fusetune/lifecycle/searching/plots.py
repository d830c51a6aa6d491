"""Draw a search of settings: its history, the importance of each setting, and parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fusetune.evaluation.report.svg import Panel, Scale, Svg, figure, padded, short
from fusetune.lifecycle.searching.trials import TrialRecord


def history_plot(trials: Sequence[TrialRecord], metric: str, current: float | None) -> Markup | None:
    """Return the value of each trial by its number, with the best so far; None without a finished trial.

    Args:
        trials: in order.
        metric: the name of the value.
        current: the value with the settings as they are, drawn as a dashed line.
    """
    done = [(trial.number, trial.value) for trial in trials if trial.value is not None]
    if not done:
        return None
    cut = [(trial.number, max(trial.curve.values())) for trial in trials if trial.state == "pruned" and trial.curve]
    values = [value for _, value in [*done, *cut]] + ([current] if current is not None else [])
    ends = (-0.5, max(trial.number for trial in trials) + 0.5)
    panel = Panel("History", ends, padded(values), x_label="trial", y_label=f"{metric}, validation", width=560)
    best, line = -math.inf, []
    for number, value in done:
        line += [(number, best), (number, max(best, value))] if math.isfinite(best) else [(number, value)]
        best = max(best, value)
    panel.curve([x for x, _ in line], [y for _, y in line], "s-tuned")
    if current is not None:
        panel.horizontal_line(current, "s-baseline")
    for number, value in cut:
        panel.svg.mark(
            panel.x(number), panel.y(value), 3, "s-muted", "ring", hint=f"trial {number}, pruned at {value:.4f}"
        )
    for number, value in done:
        panel.svg.circle(panel.x(number), panel.y(value), 4, "f-tuned", hint=f"trial {number}: {value:.4f}")
    entries = [("best so far", "s-tuned", "")]
    panel.legend([*entries, *([("as they are", "s-baseline", "4 4")] if current is not None else [])])
    return panel.draw()


def importance_plot(importance: Mapping[str, float]) -> Markup | None:
    """Return a bar for each setting's share of the variance of the value; None if it is not known."""
    if not importance:
        return None
    ordered = sorted(importance.items(), key=lambda item: -item[1])
    svg = Svg(
        560, 40 + 24 * len(ordered), "Importance", "Share of the variance of the value that each setting explains"
    )
    svg.text(0, 17, "Importance", "f-ink bold", size=13)
    scale = Scale(0, max(ordered[0][1], 1e-9), 0, 300)
    for index, (key, share) in enumerate(ordered):
        top = 32 + 24 * index
        svg.text(190, top + 12, short(key, 30), "f-ink", anchor="end", size=12)
        svg.rect(198, top, scale(share), 16, "f-tuned", hint=f"{key}: {share:.3f}")
        svg.text(204 + scale(share), top + 12, f"{share:.0%}", "f-muted", size=11)
    return svg.draw()


def parallel_plot(trials: Sequence[TrialRecord], labels: Mapping[str, list[str]], metric: str) -> Markup | None:
    """Return parallel coordinates: an axis a setting, a line a finished trial, the best tenth on top.

    Args:
        trials: in order.
        labels: by setting that has choices, these in order.
        metric: the name of the value, on the last axis.
    """
    done = [trial for trial in trials if trial.value is not None]
    if len(done) < 2:
        return None
    axes = [_Axis(key, [trial.params[key] for trial in done], labels.get(key)) for key in done[0].params]
    axes.append(_Axis(metric, [trial.value for trial in done], None))
    gap = 130
    svg = Svg(gap * (len(axes) - 1) + 150, 330, "Parallel coordinates", "A line a finished trial, an axis a setting")
    svg.text(0, 17, "Parallel coordinates", "f-ink bold", size=13)
    order = sorted(done, key=lambda trial: (trial.value or 0.0, -trial.number))
    top = set(trial.number for trial in order[-max(1, math.ceil(len(order) / 10)) :])
    for trial in order:
        points = [(60 + gap * place, axis.pixel(axis.of(trial, metric))) for place, axis in enumerate(axes)]
        named = ", ".join(f"{axis.name} {axis.text(axis.of(trial, metric))}" for axis in axes)
        css, width = ("s-tuned", 2.5) if trial.number in top else ("s-muted", 0.7)
        svg.path(points, css, width=width, hint=f"trial {trial.number}: {named}")
    for place, axis in enumerate(axes):
        across = 60 + gap * place
        svg.line(across, 60, across, 290, "s-muted")
        svg.text(across, 46 if place % 2 else 34, short(axis.name, 24), "f-ink", anchor="middle", size=11)
        for value, text in axis.ticks():
            svg.line(across - 3, axis.pixel(value), across + 3, axis.pixel(value), "s-muted")
            svg.text(across + 6, axis.pixel(value) + 4, short(text, 18), "f-muted", size=10)
    return svg.draw()


class _Axis:
    """An axis: numbers, on a logarithmic scale where they span more than a factor of 20, or choices."""

    def __init__(self, name: str, values: Sequence[Any], labels: list[str] | None) -> None:
        self.name, self.labels = name, labels
        self.log = False
        if labels is None:
            low, high = float(min(values)), float(max(values))
            self.log = low > 0 and high / low > 20
            self.scale = Scale(self._place(low), self._place(high), 290, 60)
            self.ends = [low, high]
        else:
            self.scale = Scale(-0.5, len(labels) - 0.5, 290, 60)

    def _place(self, value: Any) -> float:
        if self.labels is not None:
            return float(self.labels.index(value))
        return math.log10(value) if self.log else float(value)

    def of(self, trial: TrialRecord, metric: str) -> Any:
        return trial.params.get(self.name, trial.value)

    def pixel(self, value: Any) -> float:
        return self.scale(self._place(value))

    def text(self, value: Any) -> str:
        return figure(value) if isinstance(value, float) else str(value)

    def ticks(self) -> list[tuple[Any, str]]:
        if self.labels is not None:
            return [(label, label) for label in self.labels]
        middle = math.sqrt(self.ends[0] * self.ends[1]) if self.log else sum(self.ends) / 2
        short_form = self.log or all(value == int(value) for value in self.ends)
        return [
            (value, f"{value:.2g}" if short_form else figure(value)) for value in (self.ends[0], middle, self.ends[1])
        ]
