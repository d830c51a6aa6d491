"""Describe a run for the report: columns, encoders, learning curve, warnings."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusetune.backbones.hub.licence import stated_licence
from fusetune.backbones.load import Backbone
from fusetune.data.detect.leakage import suspected_leak
from fusetune.data.distinct import cell_key, is_missing
from fusetune.data.examples import Examples
from fusetune.data.quarantine import Rejected
from fusetune.data.schema import Schema
from fusetune.errors import shown
from fusetune.evaluation.measure.unknown import unknown_labels
from fusetune.evaluation.results import BackboneUsed, ColumnUsed, CurvePoint, LearningCurve, RejectedRow
from fusetune.modalities.base import Modality
from fusetune.models.family import Family
from fusetune.tasks.base import Task
from fusetune.training.history import TrainingHistory
from fusetune.training.recipe import BackboneRule
from fusetune.training.score_error import SHARE_OF_ERROR

SHOWN_REJECTED = 50
CUT_BY = {"text": " (text.max_tokens)", "prompt": " within their longest cell (prompt.max_tokens)"}
"""The setting by which long cells are cut, by the kind of their column."""
LEAK_ROWS = 5000
"""The number of train rows on which columns are checked for leaks."""


def command() -> str:
    """Return the command line, or "fusetune.fit(...)" for a call from Python."""
    if Path(sys.argv[0]).stem in ("fusetune", "__main__"):
        return shlex.join(["fusetune", *sys.argv[1:]])
    return "fusetune.fit(...)"


def device(model: Family, precision: str = "no") -> str:
    """Return the model's device, "cpu" or the GPU's name, and the precision if it is not float32."""
    where = next(model.parameters()).device
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else str(where)
    return name if precision == "no" else f"{name}, {precision}"


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to `a.b: text`."""
    out: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = str(value)
    return out


def columns_used(
    schema: Schema, examples: Mapping[str, Examples], reserved: Mapping[str, int] | None = None
) -> list[ColumnUsed]:
    """Return the schema's columns, with the number of missing cells of each input column by split.

    Args:
        schema: of the train table.
        examples: by split.
        reserved: by split, the row id from which on rows are documents that are searched, and no rows of its table.
    """
    used, ends = [], reserved or {}
    for name, spec in schema.columns.items():
        missing = {}
        for split, part in examples.items():
            if name in part.columns:
                absent = part.columns[name].codes < 0
                missing[split] = int((absent & (part.rows < ends[split])).sum() if split in ends else absent.sum())
        used.append(ColumnUsed(name, spec.kind or "", spec.role, spec.reason, missing))
    return used


def encoders_used(
    model: Family, modalities: Mapping[str, Modality], history: TrainingHistory, rules: Mapping[str, BackboneRule]
) -> list[BackboneUsed]:
    """Return each backbone's source, size and tuning."""
    used = []
    for key, encoder in model.encoders.items():
        if not isinstance(encoder, Backbone):
            continue
        columns = [name for name, route in model.routes.items() if route == key]
        changed = history.changed.get(key, history.trained[key])
        if not encoder.pretrained:
            how = "trained from scratch"
        elif key not in history.moved:
            how = "frozen"
        elif history.encoders_unchanged:
            how = "as pretrained: the best step lies before it was tuned"
        else:
            how = "tuned" if encoder.adapter is None else f"{encoder.adapter.name} on {len(encoder.adapted)} modules"
            rule, count = rules[key].freeze, history.num_frozen.get(key, 0)
            rule = rule if rule != "auto" else f"bottom:{count}" if count else "none"
            how += "" if rule == "none" else f", freeze={rule}"
        how = f"pretrained on the train rows, then {how}" if encoder.pretrained_on_rows else how
        used.append(
            BackboneUsed(
                kind=encoder.kind,
                columns=columns,
                source=encoder.source,
                dim=encoder.dim,
                parameters=sum(p.numel() for p in encoder.parameters()),
                trained=changed,
                pretrained=encoder.pretrained,
                how=how,
                licence=stated_licence(encoder.source) if encoder.pretrained else "",
            )
        )
    return used


def curve(history: TrainingHistory, tasks: Mapping[str, Task]) -> LearningCurve:
    """Return the learning curve: every validation of the run."""
    points = [
        CurvePoint(
            step=check.step,
            epoch=check.epoch,
            train_loss=float("nan") if check.train_loss is None else check.train_loss,
            val_loss=check.val_loss,
            val_metric=check.score,
            lr=check.lr,
            stage=check.stage,
            task_metrics={
                name: check.metrics[name][task.main.name]
                for name, task in tasks.items()
                if task.main.name in check.metrics.get(name, {})
            }
            if len(tasks) > 1
            else {},
            task_losses=check.task_losses,
        )
        for check in history.checks
    ]
    names = [task.main.name if task.main.greater_is_better else f"-{task.main.name}" for task in tasks.values()]
    names = list(dict.fromkeys(names))
    metric = names[0] if len(tasks) == 1 else f"mean of {', '.join(names)}" if len(names) > 1 else f"mean {names[0]}"
    margin = SHARE_OF_ERROR * history.error
    return LearningCurve(points, history.best.step, metric, history.best.stage, history.error, margin)


def warnings(schema: Schema, examples: Mapping[str, Examples]) -> list[str]:
    """Return the data's warnings: those of the schema, labels that look alike, cells that could not be read."""
    messages = list(schema.warnings)
    for task in examples["train"].tasks.values():
        for alike in _look_alike(getattr(task, "classes", [])):
            messages.append(
                f"{', '.join(map(shown, alike))} are different labels of {task.target!r}; if they mean the same, use"
                " one spelling"
            )
    for name, read in examples["train"].columns.items():
        if count := int(getattr(read.modality, "num_truncated", 0)):
            limit = CUT_BY.get(read.modality.kind, "")
            messages.append(
                f"{count:,} different cells of {name!r} are longer than what is read of them, and were cut{limit}."
            )
    for split, part in examples.items():
        messages += unknown_labels(part, split) if split != "train" else []
        for column in sorted({item.column or "" for item in part.masked}):
            cells = [item for item in part.masked if item.column == column]
            messages.append(
                f"{len(cells)} {split} cells of {column!r} could not be read and were treated as missing; "
                f"the first: row {cells[0].row}, {cells[0].why}"
            )
    return messages


def kept_before_tuning(history: TrainingHistory) -> list[str]:
    """Return a warning if encoders were tuned but the best step lies before that stage."""
    if not history.encoders_unchanged:
        return []
    best = history.best
    return [
        f"No encoder's weights were changed: the best step on validation rows, step {best.step}, lies in the stage"
        f" “{best.stage}”, before the encoders were tuned. The model is the new parts on the encoders as pretrained."
    ]


def near_leaks(train: Examples, schema: Schema) -> list[str]:
    """Return warnings about columns that alone determine a target in nearly all train rows: they may leak it."""
    messages = []
    for target in train.tasks:
        rows = train.labelled(target)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), LEAK_ROWS)).astype(np.int64))]
        if not len(rows):
            continue
        answers = train.table.cells(train.tasks[target].target, rows)
        for name in train.columns:
            kind = schema.columns[name].kind or ""
            share = suspected_leak(train.table.cells(name, rows), answers, kind)
            if share is not None:
                messages.append(
                    f"“{name}” alone determines “{target}” in {share:.1%} of the train rows. If its value is not known"
                    f" before the target's, the figures are too good: leave it out with columns.{name}.role=ignore."
                )
    return messages


def _look_alike(labels: Sequence[str]) -> list[list[str]]:
    """Return groups of labels that differ only in case, outer spaces or number format."""
    groups: dict[str | float, list[str]] = {}
    for label in labels:
        key: str | float = label.strip().casefold()
        if not re.fullmatch(r"[+-]?0\d+", label.strip()):  # 007 is a code
            with contextlib.suppress(ValueError):
                key = float(key)
        groups.setdefault(key, []).append(label)
    return [alike for alike in groups.values() if len(alike) > 1][:5]


def rejected_rows(rejected: Sequence[Rejected]) -> list[RejectedRow]:
    """Return the first `SHOWN_REJECTED` rejected rows."""
    return [
        RejectedRow(item.row, item.column or "", shown(item.value), item.why, item.file or "")
        for item in rejected[:SHOWN_REJECTED]
    ]


def weights_used(model: Family) -> dict[str, str]:
    """Return the fingerprint of each pretrained backbone's weights, by key."""
    return {
        key: str(encoder.fingerprint)
        for key, encoder in model.encoders.items()
        if isinstance(encoder, Backbone) and encoder.pretrained
    }


def fetched(examples: Mapping[str, Examples]) -> list[str]:
    """Return a sentence for each column of each split whose media were fetched from addresses."""
    fetched = [(split, column.fetched()) for split, part in examples.items() for column in part.columns.values()]
    return [f"{split} rows, {note[0]}" for split, note in fetched if note is not None]


def fingerprint(examples: Examples) -> str:
    """Return the SHA-256 of the training data: inputs and targets of the used rows, in order."""
    digest = hashlib.sha256()
    columns = [*examples.columns, *(task.target for task in examples.tasks.values())]
    for name in columns:
        digest.update(name.encode("utf-8", "surrogatepass"))
        for cell in examples.table.lazy(name, examples.used):
            digest.update(repr(None if is_missing(cell) else cell_key(cell)).encode("utf-8", "surrogatepass"))
        if name in examples.columns and (fetched := examples.columns[name].fetched()) is not None:
            digest.update(fetched[1].encode())  # what addresses gave may be something else another time
    return digest.hexdigest()
