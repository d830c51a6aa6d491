"""What a run found, as plain data: the one thing that the report, the JSON file and the terminal table are made from.

    RunResults
    ├── tables, columns, backbones, rejected, missing, curve, phases    how it came about
    └── tasks: TaskResult
        ├── systems: SystemResult       baseline, before, each modality alone, after: metrics with intervals
        ├── slices                      where it is good and bad
        ├── sections                    what the task has to show: panels of generic kinds
        └── errors: Mistake             the worst rows, with their cells

Every figure is a float that may be nan, which stands for "undefined here" and is null in JSON.
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
from fusetune.evaluation.decisions import FusionChoice, StackUsed
from fusetune.evaluation.formats import upgraded
from fusetune.security.untrusted import TEXT_BYTES, parse_json, read_bytes
from fusetune.tasks.panels.kinds import Number, Panel, Section

FORMAT = 2
"""The version of report.json's layout; grows when a field changes its meaning."""

SystemKind = Literal["baseline", "before", "alone", "without", "single", "after", "attack"]
"""What is compared: a constant guess; the frozen backbones with a linear probe; a model that sees one modality only;
the tuned model with one modality hidden; a model tuned for this target only; the tuned model; the latter and the one
before tuning under attack."""


@dataclass
class Interval:
    """A figure with its confidence interval; `low` and `high` are nan where there are too few rows for one."""

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
        name: as shown: "tuned", "frozen probe", "text alone".
        kind: its place in the comparison.
        description: what it is, in a sentence.
        metrics: by name.
        difference: by metric, the tuned model minus this system on the same rows (paired bootstrap); for "attack",
            the tuned model under attack minus this one. Empty for the tuned model itself.
        columns: the columns it sees; for "without", those that are hidden from it; for "attack", those changed.
    """

    name: str
    kind: SystemKind
    description: str
    metrics: dict[str, Interval]
    difference: dict[str, Interval] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)


@dataclass
class Slice:
    """The rows where `column` has `value`, and the main metric of the tuned model on them."""

    column: str
    value: str
    rows: int
    metric: Interval


@dataclass
class Shown:
    """A cell as the report shows it.

    Attributes:
        column: the column's name.
        kind: how `value` is to be shown.
        text: what there is to read: the cell's text (cut), the number, "missing", an image's size, a sound's length.
        images: JPEG data URIs, small.
        sound: a WAV data URI of its first seconds, or "".
        peaks: the loudest sample, 0 to 1, in equal stretches of the sound.
    """

    column: str
    kind: Literal["text", "image", "audio", "number", "category", "missing"]
    text: str = ""
    images: list[str] = field(default_factory=list)
    sound: str = ""
    peaks: list[Number] = field(default_factory=list)


@dataclass
class Mistake:
    """One of the worst errors. `probability` is the prediction's own, nan for numbers; `loss` is what ranked it."""

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
        epsilon: the largest change, relative: see `fusetune.models.perturb`.
        steps, step_size: of the ascent.
        columns: what was changed.
        units: by column, what epsilon is relative to, in the numbers that enter the encoder.
    """

    name: str
    epsilon: Number
    steps: int
    step_size: Number
    columns: list[str]
    units: dict[str, Number]


@dataclass
class TaskResult:
    """One target on the evaluated rows."""

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
    """What the task has to show of the tuned model's answers."""
    importance: list[Panel] = field(default_factory=list)
    """What each column counts for the tuned model."""
    balance: list[Panel] = field(default_factory=list)
    """The target itself by split."""
    attack: AttackUsed | None = None
    stack: StackUsed | None = None
    errors: list[Mistake] = field(default_factory=list)
    errors_are: str = ""
    """Which rows `errors` are: "rows with the largest error"."""
    shared: int = 0
    """How many of the rows have the same inputs as a train row."""
    encoders_unchanged: bool = False
    """Whether encoders were tuned, and yet the kept step lies before that."""
    meanings: dict[str, str] = field(default_factory=dict)
    """By metric, what it is in plain words, where its name does not say."""

    def first(self, kind: SystemKind) -> SystemResult | None:
        """The first system of this kind, or None."""
        return next((system for system in self.systems if system.kind == kind), None)

    def all(self, kind: SystemKind) -> list[SystemResult]:
        """Every system of this kind, best main metric first; those without one last."""
        sign = -1 if self.greater_is_better else 1

        def key(system: SystemResult) -> tuple[bool, float]:
            value = self.main(system).value
            return math.isnan(value), sign * value

        return sorted((system for system in self.systems if system.kind == kind), key=key)

    def main(self, system: SystemResult) -> Interval:
        """The system's main metric; nan where it has none."""
        return system.metrics.get(self.metric, Interval(math.nan))


@dataclass
class TableUsed:
    """One split's table. rows_in = rows_used + rows_rejected; unlabelled rows count as used."""

    split: str
    file: str
    rows_in: int
    rows_used: int
    rows_rejected: int
    rows_unlabelled: int = 0


@dataclass
class ColumnUsed:
    """A column as the schema has it, why, and how many of its cells are missing in each split."""

    column: str
    kind: str
    role: str
    reason: str
    missing: dict[str, int] = field(default_factory=dict)


@dataclass
class BackboneUsed:
    """An encoder.

    `licence` is what its source states; `trained` is how many of its `parameters` training has changed; `how` says it
    in words ("frozen", "LoRA").
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
    """A row that was left out, and the cell that was the reason."""

    row: int
    column: str
    value: str
    reason: str
    file: str = ""


@dataclass
class CurvePoint:
    """What was measured at one step. nan where a figure was not measured at this step.

    Where there are several tasks, `task_metrics` has each one's main metric on validation rows, `task_losses` its mean
    train loss divided by that of the constant guess.
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
    """The course of training. `metric` names `val_metric`; the weights of `best_step`, in `best_stage`, were kept."""

    points: list[CurvePoint] = field(default_factory=list)
    best_step: int | None = None
    metric: str = ""
    best_stage: str = ""


@dataclass
class Phase:
    """A part of the run: how long it took and, where measured, the most memory the process held until its end."""

    name: str
    seconds: Number
    peak_mb: Number = math.nan


@dataclass
class RunResults:
    """Everything a report says.

    Attributes:
        title: what the report is headed with.
        version: fusetune's.
        time: when the run ended, ISO 8601.
        command: the command line, or the Python call.
        settings: the configuration that was used, as flat `key: value` text.
        versions: of the libraries.
        parameters, trained: of the whole model.
        waited: the share of the updates' time that went by in waiting for batches, where it was measured.
        rejected: the first of them; `num_rejected` counts all, `rejected_by` by reason.
        warnings: what the user should know, in sentences.
        choice: how the fusion was chosen, where it was not named.
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
    """How many of the parameters have other values than at the start."""
    waited: Number = math.nan
    warnings: list[str] = field(default_factory=list)
    num_rejected: int = 0
    rejected_by: dict[str, int] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)
    curve: LearningCurve = field(default_factory=LearningCurve)
    phases: list[Phase] = field(default_factory=list)
    peak_mb: Number = math.nan
    choice: FusionChoice | None = None
    folder: str = ""
    format: int = FORMAT


def plain(value: Any) -> Any:
    """Dataclasses, numpy values and containers as what standard JSON can hold: nan and infinities become None."""
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
    """The results as standard JSON text: no NaN, no Infinity; lone surrogates are escaped."""
    return json.dumps(plain(results), allow_nan=False, indent=1)


@cache
def _adapter() -> TypeAdapter[RunResults]:
    return TypeAdapter(RunResults)


def from_json(text: str | bytes, *, file: str | None = None) -> RunResults:
    """The results that `to_json` wrote, of this version or an earlier one; fields of a later version are ignored.

    Raises:
        FolderError: it is no such text.
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
    """The results in a report.json.

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
