"""The kinds of panels that a report can draw, as plain data.

A task returns these to describe its answers; the report draws the kinds and knows no tasks.

    Section                 a heading, panels side by side, notes, figures for machines
    ├── TablePanel          column heads and rows, with optional bars
    ├── HeatmapPanel        counts of pairs, such as a confusion matrix
    ├── CurvePanel          lines over two axes, such as ROC curves
    ├── HistogramPanel      counts between edges
    ├── ScatterPanel        points
    ├── SpreadPanel         a median and two percentiles at each position
    ├── ReliabilityPanel    how often predictions of each confidence came true
    └── SpansPanel          texts with their true and their predicted spans
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float; null in JSON is NaN."""

Cell = str | int | float | None
"""A cell of a table; NaN and None are drawn as a dash."""


@dataclass
class Head:
    """A column's heading and the format of its cells: a share is a percentage, a bar is drawn from 0 to 1."""

    name: str
    format: Literal["text", "count", "number", "share", "bar"] = "text"


@dataclass
class TablePanel:
    """A table.

    Attributes:
        heads: one per column.
        rows: lists with one cell per head.
        caption: shown above the table.
        folded: if given, the table is collapsed, and this is the line that opens it.
    """

    heads: list[Head]
    rows: list[list[Cell]]
    caption: str = ""
    folded: str = ""
    kind: Literal["table"] = "table"


@dataclass
class HeatmapPanel:
    """Counts of pairs of labels; the diagonal holds the correct ones.

    Attributes:
        labels: of both axes.
        cells: the non-zero cells, `[index down, index across, rows]`.
        down, across: titles of the axes.
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
        values: title of the lines' values, above the legend.
        diagonal: meaning of the diagonal; "" draws none.
        level: height of a dashed horizontal line; NaN draws none.
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
    """Counts between edges; there is one more edge than counts."""

    title: str
    x_label: str
    edges: list[Number]
    counts: list[int]
    y_label: str = "rows"
    kind: Literal["histogram"] = "histogram"


@dataclass
class ScatterPanel:
    """Points on two axes of the same scale; `diagonal` is the meaning of the diagonal."""

    title: str
    x_label: str
    y_label: str
    x: list[Number]
    y: list[Number]
    diagonal: str = ""
    kind: Literal["scatter"] = "scatter"


@dataclass
class SpreadPoint:
    """The 10th, 50th and 90th percentile of a group of rows, drawn at `x`."""

    x: Number
    low: Number
    middle: Number
    high: Number
    rows: int


@dataclass
class SpreadPanel:
    """Percentiles at several positions, and a line at 0."""

    title: str
    x_label: str
    y_label: str
    points: list[SpreadPoint]
    kind: Literal["spread"] = "spread"


@dataclass
class ReliabilityBin:
    """Rows with a confidence in [low, high): their mean confidence, and the share that came true."""

    low: Number
    high: Number
    rows: int
    confidence: Number
    accuracy: Number


@dataclass
class ReliabilityPanel:
    """How often predictions of each confidence came true; `measures` names what the confidence is of."""

    measures: str
    bins: list[ReliabilityBin]
    kind: Literal["reliability"] = "reliability"


@dataclass
class MarkedSpan:
    """A span of a text: its first character, the one after its last, its label, and its outcome.

    `outcome` is "right", or a kind of error such as "missed".
    """

    start: int
    end: int
    label: str
    outcome: str = "right"


@dataclass
class MarkedLine:
    """A line below a text, such as a relation between two of its spans, and its outcome, as of a `MarkedSpan`."""

    text: str
    outcome: str = "right"


@dataclass
class MarkedText:
    """A text with its true and its predicted spans, which may overlap.

    Attributes:
        row: the row's id, -1 for none.
        true_lines, predicted_lines: shown below the text on its true and on its predicted side.
    """

    text: str
    true: list[MarkedSpan]
    predicted: list[MarkedSpan]
    row: int = -1
    true_lines: list[MarkedLine] = field(default_factory=list)
    predicted_lines: list[MarkedLine] = field(default_factory=list)


@dataclass
class SpansPanel:
    """Texts with their true and their predicted spans side by side.

    Attributes:
        texts: in the order in which they are drawn.
        caption: shown above the texts.
        folded: if given, the texts are collapsed, and this is the line that opens them.
    """

    texts: list[MarkedText]
    caption: str = ""
    folded: str = ""
    kind: Literal["spans"] = "spans"


Panel = Annotated[
    TablePanel
    | HeatmapPanel
    | CurvePanel
    | HistogramPanel
    | ScatterPanel
    | SpreadPanel
    | ReliabilityPanel
    | SpansPanel,
    Field(discriminator="kind"),
]


@dataclass
class Section:
    """Panels that belong together under a heading.

    Attributes:
        key: an identifier for programs, such as "classes".
        title: the heading.
        panels: drawn side by side.
        notes: sentences below the panels.
        figures: numbers for programs, by name.
    """

    key: str
    title: str
    panels: list[Panel]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """The data that panels are drawn from: a model's answers on the evaluated rows.

    Attributes:
        answers, truth: (rows, ...) in the task's form; at least one row.
        weights: (rows,) as in the metrics, or None.
        validation: answers and truth of the validation rows, or None.
        seed: for rows that are chosen at random.
        ids: (rows,) the row ids, or None.
        texts: returns the texts that the task reads in the row at a position; None if they are not at hand.
        intervals: the model's metrics, by name: value, low end and high end; the ends are nan if they are undefined.
        before: (rows, ...) the answers of the pretrained model before tuning, or None.
        cut: (rows,) bool, of written answers those that ended at the limit on their length, or None.
    """

    answers: np.ndarray
    truth: np.ndarray
    weights: np.ndarray | None = None
    validation: tuple[np.ndarray, np.ndarray] | None = None
    seed: int = 0
    ids: np.ndarray | None = None
    texts: Callable[[int], Sequence[str]] | None = None
    intervals: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    before: np.ndarray | None = None
    cut: np.ndarray | None = None


@dataclass
class WrongRow:
    """A row to show among the worst errors.

    Attributes:
        at: index among the evaluated rows.
        truth, prediction: as shown to the reader.
        probability: of the prediction; NaN if there is none.
        loss: the value by which rows are ranked.
    """

    at: int
    truth: str
    prediction: str
    probability: float
    loss: float


@dataclass
class WorstRows:
    """The worst errors, with a description of these rows such as "rows with the largest error"."""

    what: str
    rows: list[WrongRow]


@dataclass
class ChangedRow:
    """A row's answers before and after tuning.

    Attributes:
        at: index among the evaluated rows.
        outcome: "better" or "worse" for a row whose answer tuning changed most, "at random" for others.
        truth, before, after: as shown to the reader.
        before_score, after_score: of the answers.
    """

    at: int
    outcome: Literal["better", "worse", "at random"]
    truth: str
    before: str
    after: str
    before_score: float
    after_score: float


@dataclass
class ChangedRows:
    """Rows before and after tuning.

    Attributes:
        score: the name of the rows' score.
        rows: in the order in which they are shown.
        better, worse, same: the number of evaluated rows whose score rose, fell, or stayed.
    """

    score: str
    rows: list[ChangedRow]
    better: int = 0
    worse: int = 0
    same: int = 0


def ranked(loss: np.ndarray, kinds: np.ndarray, num: int, *, among: np.ndarray | None = None) -> list[int]:
    """Return the indices of the rows with the highest losses, taken in turn from the kinds of error.

    The worst row of every kind comes before the second worst of any; kinds with a higher loss come first.

    Args:
        loss: (rows,) the rows' losses; rows whose loss is not finite are left out.
        kinds: (rows,) each row's kind of error, such as its true class.
        num: maximum number of rows.
        among: (rows,) bool, the rows to choose from; None: all.
    """
    allowed = np.isfinite(loss) if among is None else np.isfinite(loss) & among
    order = [int(row) for row in np.argsort(-loss, kind="stable") if allowed[row]]
    turn: dict[object, int] = {}
    ranking = []
    for position, row in enumerate(order):
        kind = kinds[row].item()
        ranking.append((turn.get(kind, 0), position, row))
        turn[kind] = turn.get(kind, 0) + 1
    return [row for _, _, row in sorted(ranking)[:num]]
