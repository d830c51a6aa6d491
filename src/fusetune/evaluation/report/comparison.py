"""The report's main charts as inline SVG: comparison of systems, learning curves, marks in table cells."""

from __future__ import annotations

import math
from itertools import pairwise

from markupsafe import Markup

from fusetune.evaluation.decisions import PretrainingUsed
from fusetune.evaluation.report.svg import Panel, Scale, Svg, figure, figures, padded, short
from fusetune.evaluation.results import (
    CurvePoint,
    Interval,
    LearningCurve,
    SystemKind,
    SystemResult,
    TaskResult,
)

GROUPS: tuple[tuple[SystemKind, str, str], ...] = (
    ("baseline", "Baseline", "ring"),
    ("before", "Before tuning", "diamond"),
    ("alone", "One modality alone", "square"),
    ("without", "Tuned, one hidden", "triangle"),
    ("single", "Tuned for this alone", "star"),
    ("after", "After tuning", "disc"),
    ("attack", "Under attack", "wedge"),
)


def comparison(task: TaskResult) -> Markup:
    """Draw every system's main metric as a dot with its interval, and the tuned model's interval as a band."""
    return _Comparison(task, width=980, step=31, left=300, right=980 - 190).draw()


def narrow_comparison(task: TaskResult) -> Markup:
    """Draw the same chart for narrow screens, with the names above the dots."""
    return _Comparison(task, width=370, step=46, left=8, right=362).draw()


class _Comparison:
    """The chart of all systems, with names beside the dots if there is room, else above them."""

    def __init__(self, task: TaskResult, *, width: int, step: int, left: int, right: int) -> None:
        self.task, self.step, self.left, self.right = task, step, left, right
        self.rows = [(kind, group, shape, system) for kind, group, shape in GROUPS for system in task.all(kind)]
        self.beside = width > 500
        self.top = 20
        self.bottom = self.top + step * len(self.rows)
        description = "; ".join(f"{system.name}: {with_interval(task.main(system))}" for *_, system in self.rows)
        title = f"{task.metric} of each system on {task.rows} {task.split} rows"
        self.svg = Svg(width, self.bottom + 46, title, description)
        mains = [task.main(system) for *_, system in self.rows]
        ends = [end for main in mains for end in (main.value, main.low, main.high)]
        self.scale = Scale(*padded(ends, 0.08), left, right, num_ticks=6 if self.beside else 4)

    def draw(self) -> Markup:
        """Return the chart as markup."""
        self._frame()
        last_group = ""
        for index, (kind, group, shape, system) in enumerate(self.rows):
            y = self.top + self.step * index + self.step / 2 - 4
            self._names(index, y, kind, group if group != last_group else "", system)
            last_group = group
            self._dot(y if self.beside else y + 13, kind, shape, system)
        return self.svg.draw()

    def _frame(self) -> None:
        svg, scale, task = self.svg, self.scale, self.task
        for tick in scale.ticks:
            svg.line(scale(tick), self.top - 8, scale(tick), self.bottom, "s-grid")
            svg.text(scale(tick), self.bottom + 17, scale.label(tick), "f-muted", anchor="middle", size=12)
        order = "higher is better" if task.greater_is_better else "lower is better"
        label = f"{task.metric} ({order}), 95% interval"
        svg.text((self.left + self.right) / 2, self.bottom + 38, label, "f-muted", anchor="middle", size=12)
        after = task.first("after")
        if after and task.main(after).known:
            band = task.main(after)
            width, tall = scale(band.high) - scale(band.low), self.bottom - self.top + 8
            svg.rect(scale(band.low), self.top - 8, width, tall, "f-tuned", opacity=0.1)

    def _names(self, index: int, y: float, kind: SystemKind, group: str, system: SystemResult) -> None:
        svg, bold, value = self.svg, " bold" if kind == "after" else "", with_interval(self.task.main(system))
        if group and index:
            svg.line(0, y - self.step / 2, self.svg.width, y - self.step / 2, "s-grid")
        if self.beside:
            svg.text(0, y + 4, group, "f-muted", size=12)
            svg.text(self.left - 14, y + 4, short(system.name, 24), f"f-ink{bold}", anchor="end", size=13)
            svg.text(self.right + 16, y + 4, value, f"f-ink num{bold}", size=13)
        else:
            svg.text(self.left, y - 2, short(system.name, 26), f"f-ink{bold}", size=13)
            svg.text(self.right, y - 2, value, f"f-ink num{bold}", anchor="end", size=13)

    def _dot(self, y: float, kind: SystemKind, shape: str, system: SystemResult) -> None:
        value, scale, color = self.task.main(system), self.scale, "tuned" if kind == "after" else kind
        if value.known:
            self.svg.line(scale(value.low), y, scale(value.high), y, f"s-{color}", width=3)
        if math.isfinite(value.value):
            size = 6.5 if kind == "after" else 5
            self.svg.mark(scale(value.value), y, size, f"f-{color} s-{color}", shape, system.description)


def with_interval(value: Interval) -> str:
    """Format a figure with its interval: `0.880 [0.860, 0.900]`."""
    return "{} [{}, {}]".format(*figures([value.value, value.low, value.high])) if value.known else figure(value.value)


def strip(value: Interval, low: float, high: float, overall: float = math.nan) -> Markup:
    """Draw a dot with its interval for a table cell, on a shared scale, with a tick at `overall`."""
    svg = Svg(150, 16, with_interval(value))
    scale = Scale(low, high, 6, 144)
    svg.line(6, 8, 144, 8, "s-grid")
    if math.isfinite(overall):
        svg.line(scale(overall), 1, scale(overall), 15, "s-muted")
    if value.known:
        svg.line(scale(value.low), 8, scale(value.high), 8, "s-tuned", width=2.5)
    if math.isfinite(value.value):
        svg.circle(scale(value.value), 8, 4, "f-tuned")
    return svg.draw()


def bar(share: float) -> Markup:
    """Draw a bar for a table cell, 0 to 1; empty if `share` is undefined."""
    if not math.isfinite(share):
        return Markup("")
    svg = Svg(100, 10, figure(share))
    svg.rect(0, 0, 100, 10, "f-grid", round_=2)
    svg.rect(0, 0, 100 * min(max(share, 0), 1), 10, "f-tuned", opacity=0.8, round_=2)
    return svg.draw()


def pretraining(used: PretrainingUsed) -> list[Markup]:
    """Draw the losses of the self-supervised tuning over steps."""
    points = [
        CurvePoint(step.step, step.epoch, step.train_loss, step.val_loss, stage=step.stage) for step in used.steps
    ]
    return learning(LearningCurve(points, used.after.step, best_stage=used.after.stage))


def learning(curve: LearningCurve) -> list[Markup]:
    """Draw losses, validation metrics and learning rate over steps; the best step and stage ends are marked."""
    points = curve.points
    steps: list[float] = [point.step for point in points]
    panels = []
    losses = [
        ("training loss", [point.train_loss for point in points], "s-muted", ""),
        ("validation loss", [point.val_loss for point in points], "s-before", "6 3"),
    ]
    metric = [(f"validation {curve.metric}", [point.val_metric for point in points], "s-tuned", "")]
    drawn = [("Loss", "loss", losses), (f"Validation {curve.metric}", curve.metric, metric)]
    for name in points[0].task_metrics if points else ():
        scores = [("validation", [point.task_metrics.get(name, math.nan) for point in points], "s-tuned", "")]
        drawn.append((f"Validation metric of {short(name, 24)}", name, scores))
    rates = [("learning rate", [point.lr for point in points], "s-alone", "")]
    if any(point.lr > 0 for point in points):
        drawn.append(("Learning rate (the largest)", "", rates))
    for title, unit, series in drawn:
        defined = [line for line in series if any(math.isfinite(value) for value in line[1])]
        if not defined:
            continue
        ends = [value for _, values, _, _ in defined for value in values]
        panel = Panel(title, (min(steps), max(steps)), padded(ends), x_label="step", y_label=unit)
        for last, first in pairwise(points):
            if first.stage and first.stage != last.stage:
                panel.vertical_line(last.step, first.stage, "s-grid", "")
        if curve.best_step is not None:
            panel.vertical_line(curve.best_step, f"best: step {curve.best_step}")
        for name, values, css, dash in defined:
            panel.curve(steps, values, css, dash=dash, hint=name)
            if sum(math.isfinite(value) for value in values) <= 30:
                for x, y in zip(steps, values, strict=True):
                    if math.isfinite(y):
                        panel.svg.circle(panel.x(x), panel.y(y), 3, css.replace("s-", "f-"), hint=f"{x:g}: {figure(y)}")
        if len(defined) > 1:
            panel.legend([(name, css, dash) for name, _, css, dash in defined])
        panels.append(panel.draw())
    return panels
