"""The results of a run as plain data. The HTML report, the JSON file and the terminal table are made from them.

    RunResults
    ├── tables, columns, backbones, rejected, missing, curve, phases    data, encoders and training
    └── tasks: TaskResult
        ├── systems: SystemResult       baseline, before, each modality alone, after: metrics with intervals
        ├── slices                      the main metric on parts of the rows
        ├── sections                    the task's own panels, of generic kinds
        └── errors: Mistake             the rows with the worst errors, with their cells

Every figure is a float. nan means undefined and is null in JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fusetune.errors import FolderError, reason
from fusetune.evaluation.decisions import FusionChoice, PretrainingUsed, ReadingChoice, StackUsed
from fusetune.evaluation.formats import upgraded
from fusetune.evaluation.shown import ChangedAnswer, RankedQuery
from fusetune.evaluation.shown import Shown as Shown
from fusetune.security.untrusted import TEXT_BYTES, parse_json, read_bytes
from fusetune.tasks.panels.kinds import Number, Panel, Section

FORMAT = 2
"""The version of report.json's layout. It is raised when a field changes its meaning."""

SystemKind = Literal["baseline", "before", "alone", "without", "single", "after", "attack"]
"""The kinds of systems that a report compares.

"baseline": a constant guess, or a rule. "before": a linear probe on the frozen backbones, or their cosines.
"alone": a model of one modality. "without": the tuned model with one modality hidden. "single": a model tuned for this
target only. "after": the tuned model. "attack": the tuned or untuned model on adversarially changed rows."""


@dataclass
class Interval:
    """A figure with its confidence interval; `low` and `high` are nan if there are too few rows for an interval."""

    value: Number
    low: Number = math.nan
    high: Number = math.nan

    @property
    def known(self) -> bool:
        """Whether the figure and both ends are defined."""
        return all(math.isfinite(part) for part in (self.value, self.low, self.high))


@dataclass
class SystemResult:
    """One of the compared systems on the evaluated rows.

    Attributes:
        name: the name shown in the report: "tuned", "frozen probe", "text alone".
        kind: the kind of system.
        description: what the system is, one sentence.
        metrics: the metrics with their intervals, by name.
        difference: per metric, the tuned model minus this system on the same rows (paired bootstrap). For "attack",
            the tuned model under attack minus this system. Empty for the tuned model.
        columns: the columns that the system reads; for "without", the hidden ones; for "attack", the changed ones.
    """

    name: str
    kind: SystemKind
    description: str
    metrics: dict[str, Interval]
    difference: dict[str, Interval] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)


@dataclass
class Slice:
    """The tuned model's main metric on the rows where `column` has `value`."""

    column: str
    value: str
    rows: int
    metric: Interval


@dataclass
class Mistake:
    """One of the worst errors.

    `probability` is that of the prediction, nan for numbers. The errors are ranked by `loss`.
    """

    row: int
    truth: str
    prediction: str
    probability: Number
    loss: Number
    cells: list[Shown] = field(default_factory=list)


@dataclass
class AttackUsed:
    """How the systems of kind "attack" were attacked.

    Attributes:
        name: "FGM" or "PGD".
        epsilon: the largest relative change, see `fusetune.models.perturb`.
        steps, step_size: the number of gradient ascent steps, and their size.
        columns: the changed columns.
        units: per column, the size that epsilon is relative to, in the scale of the encoder's inputs.
    """

    name: str
    epsilon: Number
    steps: int
    step_size: Number
    columns: list[str]
    units: dict[str, Number]


@dataclass
class TaskResult:
    """The results for one target on the evaluated rows."""

    name: str
    """The task's name in the registry."""
    target: str
    metric: str
    """The main metric's name."""
    greater_is_better: bool
    rows: int
    systems: list[SystemResult]
    labels: list[str] = field(default_factory=list)
    split: str = "test"
    slices: list[Slice] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    """The task's own panels about the tuned model's answers."""
    importance: list[Panel] = field(default_factory=list)
    """How much the tuned model relies on each column."""
    balance: list[Panel] = field(default_factory=list)
    """The distribution of the target by split."""
    attack: AttackUsed | None = None
    stack: StackUsed | None = None
    errors: list[Mistake] = field(default_factory=list)
    errors_are: str = ""
    """A description of the rows in `errors`, such as "rows with the largest error"."""
    queries: list[RankedQuery] = field(default_factory=list)
    """Queries with their top answers, of a task that ranks answers."""
    changed: list[ChangedAnswer] = field(default_factory=list)
    """Rows with their answers before and after tuning, of a task that shows them."""
    changed_are: str = ""
    """What the scores of `changed` are, and how many rows tuning made better and worse."""
    shared: int = 0
    """The number of rows with the same inputs as a train row."""
    encoders_unchanged: bool = False
    """Whether encoders were tuned but the best step lies before that stage."""
    warnings: list[str] = field(default_factory=list)
    """What to know about the tuned model's answers before it is used."""
    meanings: dict[str, str] = field(default_factory=dict)
    """Per metric, an explanation in plain words, for metrics whose names do not explain themselves."""

    def first(self, kind: SystemKind) -> SystemResult | None:
        """Return the first system of this kind, or None."""
        return next((system for system in self.systems if system.kind == kind), None)

    def all(self, kind: SystemKind) -> list[SystemResult]:
        """Return every system of this kind, best main metric first, undefined ones last."""
        sign = -1 if self.greater_is_better else 1

        def key(system: SystemResult) -> tuple[bool, float]:
            value = self.main(system).value
            return math.isnan(value), sign * value

        return sorted((system for system in self.systems if system.kind == kind), key=key)

    def main(self, system: SystemResult) -> Interval:
        """Return the system's main metric; nan if it has none."""
        return system.metrics.get(self.metric, Interval(math.nan))


@dataclass
class TableUsed:
    """The table of a split. rows_in = rows_used + rows_rejected; unlabelled rows count as used."""

    split: str
    file: str
    rows_in: int
    rows_used: int
    rows_rejected: int
    rows_unlabelled: int = 0


@dataclass
class ColumnUsed:
    """A column of the schema, the reason for its kind, and the number of missing cells per split."""

    column: str
    kind: str
    role: str
    reason: str
    missing: dict[str, int] = field(default_factory=dict)


@dataclass
class BackboneUsed:
    """An encoder.

    `licence` is the licence stated by its source. `trained` is the number of its `parameters` that training changed.
    `how` describes the tuning: "frozen", "LoRA".
    """

    kind: str
    columns: list[str]
    source: str
    dim: int
    parameters: int
    trained: int
    pretrained: bool
    how: str = ""
    licence: str = ""


@dataclass
class RejectedRow:
    """A rejected row, and the cell that caused it."""

    row: int
    column: str
    value: str
    reason: str
    file: str = ""


@dataclass
class CurvePoint:
    """The figures measured at one step; nan for a figure that was not measured.

    With several tasks, `task_metrics` has each task's main metric on validation rows, and `task_losses` each task's
    mean train loss divided by that of the constant guess.
    """

    step: int
    epoch: Number = math.nan
    train_loss: Number = math.nan
    val_loss: Number = math.nan
    val_metric: Number = math.nan
    lr: Number = math.nan
    stage: str = ""
    task_metrics: dict[str, Number] = field(default_factory=dict)
    task_losses: dict[str, Number] = field(default_factory=dict)


@dataclass
class LearningCurve:
    """The training history. `metric` names `val_metric`. The model has the weights of `best_step`, in `best_stage`.

    `error` is the standard error of `val_metric`; between scores less than `margin` apart, the loss may decide.
    """

    points: list[CurvePoint] = field(default_factory=list)
    best_step: int | None = None
    metric: str = ""
    best_stage: str = ""
    error: Number = math.nan
    margin: Number = math.nan


@dataclass
class Phase:
    """A part of the run: its duration and, if measured, the process's peak memory until its end."""

    name: str
    seconds: Number
    peak_mb: Number = math.nan


@dataclass
class RunResults:
    """The content of a report.

    Attributes:
        title: the report's title.
        version, time: of fusetune; when the run ended, ISO 8601.
        command: the command line, or the Python call.
        settings, versions: the configuration that was used, as flat `key: value` text, and those of the libraries.
        parameters, trained: of the whole model, and those whose values training changed.
        updating, waited: seconds of updates, without evaluations, and the share of them that was waiting for batches.
        rejected: the first of them; `num_rejected` counts all, `rejected_by` by reason.
        warnings: what the user should know, in sentences.
        choice, reading: how the fusion was chosen, and whether two texts are read together, where that was not named.
        pretraining: the self-supervised tuning before that to the task, if there was one.
        folder: where the model is saved.
    """

    title: str
    version: str
    time: str
    command: str
    seed: int
    device: str
    threads: int
    tasks: list[TaskResult]
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tables: list[TableUsed] = field(default_factory=list)
    columns: list[ColumnUsed] = field(default_factory=list)
    backbones: list[BackboneUsed] = field(default_factory=list)
    parameters: int = 0
    trained: int = 0
    updating: Number = math.nan
    waited: Number = math.nan
    warnings: list[str] = field(default_factory=list)
    num_rejected: int = 0
    rejected_by: dict[str, int] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)
    curve: LearningCurve = field(default_factory=LearningCurve)
    phases: list[Phase] = field(default_factory=list)
    peak_mb: Number = math.nan
    choice: FusionChoice | None = None
    reading: ReadingChoice | None = None
    pretraining: PretrainingUsed | None = None
    folder: str = ""
    format: int = FORMAT


def plain(value: Any) -> Any:
    """Convert dataclasses, numpy values and containers to standard JSON types; nan and infinities become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {part.name: plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else str(value)


def to_json(results: RunResults) -> str:
    """Return the results as standard JSON text, without NaN and Infinity and with lone surrogates escaped."""
    return json.dumps(plain(results), allow_nan=False, indent=1)


@cache
def _adapter() -> TypeAdapter[RunResults]:
    return TypeAdapter(RunResults)


def from_json(text: str | bytes, *, file: str | None = None) -> RunResults:
    """Read results written by `to_json` of this or an earlier version. Unknown fields are ignored.

    Raises:
        FolderError: the text is not a report.
    """
    try:
        return _adapter().validate_python(upgraded(parse_json(text)))
    except (ValueError, TypeError, KeyError, ValidationError) as error:
        raise FolderError(
            "the report cannot be read",
            expected="report.json as fusetune writes it",
            came=str(error).splitlines()[0],
            do="write it again: fusetune evaluate",
            file=file,
        ) from error


def read_results(path: Path) -> RunResults:
    """Read the results in a report.json.

    Raises:
        FolderError: there is no such file, or it is not a report.
    """
    try:
        text = read_bytes(path, TEXT_BYTES)
    except (OSError, ValueError) as error:
        raise FolderError(
            "the report cannot be opened",
            came=reason(error) if isinstance(error, OSError) else str(error),
            file=str(path),
        ) from error
    return from_json(text, file=str(path))
