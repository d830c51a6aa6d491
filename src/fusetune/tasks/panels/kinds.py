"""The kinds of panels that a report can draw, as plain data.

A task describes what is to be seen of its answers by these; the report knows the kinds and no task.

    Section                 a heading, its panels side by side, notes, figures for machines
    ├── TablePanel          heads and rows; a bar beside a share
    ├── HeatmapPanel        counts of (down, across), as a confusion matrix
    ├── CurvePanel          lines over two axes, as ROC
    ├── HistogramPanel      counts between edges
    ├── ScatterPanel        points
    ├── SpreadPanel         a median and two percentiles at each place
    └── ReliabilityPanel    how often claims of each confidence came true
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float where null stands for nan."""

Cell = str | int | float | None
"""A cell of a table; nan and None are drawn as a dash."""


@dataclass
class Head:
    """A column's heading, and how its cells are written: a share is a percentage, a bar is drawn from 0 to 1."""

    name: str
    format: Literal["text", "count", "number", "share", "bar"] = "text"


@dataclass
class TablePanel:
    """A table.

    Attributes:
        heads: one a column.
        rows: a cell a head each.
        caption: above it.
        folded: where given, the table is closed, and this is the line that opens it.
    """

    heads: list[Head]
    rows: list[list[Cell]]
    caption: str = ""
    folded: str = ""
    kind: Literal["table"] = "table"


@dataclass
class HeatmapPanel:
    """Counts of pairs of labels; those on the diagonal are right.

    Attributes:
        labels: of both axes.
        cells: `[place down, place across, rows]`, those above 0 alone.
        down, across: what the axes are.
    """

    labels: list[str]
    cells: list[list[int]]
    down: str = "true"
    across: str = "predicted"
    kind: Literal["heatmap"] = "heatmap"


@dataclass
class Line:
    """A line of a `CurvePanel`; `value` is written beside its label."""

    label: str
    x: list[Number]
    y: list[Number]
    value: Number = math.nan


@dataclass
class CurvePanel:
    """Lines over two axes that run from 0 to 1.

    Attributes:
        values: what the lines' values are, above the legend.
        diagonal: what a straight line from corner to corner stands for; "" draws none.
        level: a dashed line across at this height; nan draws none.
    """

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    values: str = ""
    diagonal: str = ""
    level: Number = math.nan
    kind: Literal["curves"] = "curves"


@dataclass
class HistogramPanel:
    """Counts between edges, one more edge than counts."""

    title: str
    x_label: str
    edges: list[Number]
    counts: list[int]
    y_label: str = "rows"
    kind: Literal["histogram"] = "histogram"


@dataclass
class ScatterPanel:
    """Points on two axes of one scale; `diagonal` says what points on it are."""

    title: str
    x_label: str
    y_label: str
    x: list[Number]
    y: list[Number]
    diagonal: str = ""
    kind: Literal["scatter"] = "scatter"


@dataclass
class SpreadPoint:
    """The 10th, 50th and 90th percentile of some rows' figures, drawn at `x`."""

    x: Number
    low: Number
    middle: Number
    high: Number
    rows: int


@dataclass
class SpreadPanel:
    """Percentiles at several places, and a line at 0."""

    title: str
    x_label: str
    y_label: str
    points: list[SpreadPoint]
    kind: Literal["spread"] = "spread"


@dataclass
class ReliabilityBin:
    """Rows whose confidence lies in [low, high): their mean confidence, and how often they were right."""

    low: Number
    high: Number
    rows: int
    confidence: Number
    accuracy: Number


@dataclass
class ReliabilityPanel:
    """How often claims of each confidence came true; `measures` says what a claim is."""

    measures: str
    bins: list[ReliabilityBin]
    kind: Literal["reliability"] = "reliability"


Panel = Annotated[
    TablePanel | HeatmapPanel | CurvePanel | HistogramPanel | ScatterPanel | SpreadPanel | ReliabilityPanel,
    Field(discriminator="kind"),
]


@dataclass
class Section:
    """Panels that belong together under a heading.

    Attributes:
        key: for machines: "classes", "calibration".
        title: for people.
        panels: side by side.
        notes: sentences below the panels.
        figures: by name, for machines.
    """

    key: str
    title: str
    panels: list[Panel]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What panels are drawn from: a model's answers on the evaluated rows.

    Attributes:
        answers, truth: (rows, ...) as the task gives them; at least one row.
        weights: (rows,) as in the metrics, or None.
        validation: answers and truth of the validation rows, or None.
        seed: of what is drawn at random.
    """

    answers: np.ndarray
    truth: np.ndarray
    weights: np.ndarray | None = None
    validation: tuple[np.ndarray, np.ndarray] | None = None
    seed: int = 0


@dataclass
class WrongRow:
    """A row to be shown among the worst errors.

    Attributes:
        at: its place among the evaluated rows.
        truth, prediction: for people.
        probability: that was given to the prediction; nan where there is none.
        loss: what ranked it.
    """

    at: int
    truth: str
    prediction: str
    probability: float
    loss: float


@dataclass
class WorstRows:
    """The worst errors, and in a few words which rows they are: "rows with the largest error"."""

    what: str
    rows: list[WrongRow]


def ranked(loss: np.ndarray, kinds: np.ndarray, num: int, *, among: np.ndarray | None = None) -> list[int]:
    """Places of the rows to show: the highest losses, spread over kinds of error.

    Every kind gives its worst row before any gives its second, kinds with the higher loss first.

    Args:
        loss: (rows,) what the row cost; rows whose loss is nan are left out.
        kinds: (rows,) the kind of error a row is of, such as its true class.
        num: at most so many.
        among: (rows,) bool, the rows that can be chosen.
    """
    allowed = np.isfinite(loss) if among is None else np.isfinite(loss) & among
    order = [int(row) for row in np.argsort(-loss, kind="stable") if allowed[row]]
    turn: dict[object, int] = {}
    placed = []
    for position, row in enumerate(order):
        kind = kinds[row].item()
        placed.append((turn.get(kind, 0), position, row))
        turn[kind] = turn.get(kind, 0) + 1
    return [row for _, _, row in sorted(placed)[:num]]
