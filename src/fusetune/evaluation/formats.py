"""Upgrade earlier layouts of report.json to the current one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fusetune.tasks.metrics import MEANINGS
from fusetune.tasks.panels import calibration, classes, numbers
from fusetune.tasks.panels.kinds import Cell, Line, ReliabilityBin, Section, SpreadPoint

Json = dict[str, Any]


def upgraded(content: Any) -> Any:
    """Upgrade the content of a report.json to the current layout.

    Format 1 named the parts of a task's result (`per_class`, `confusion`, `roc`, `pr`, `fit`, `calibration`) and its
    `kind`; since format 2 they are sections of panels.

    Raises:
        KeyError, TypeError, ValueError: the content is not a report.
    """
    if not isinstance(content, dict) or content.get("format", 1) != 1:
        return content
    return {**content, "format": 2, "tasks": [_task(task) for task in content["tasks"]]}


def _task(task: Json) -> Json:
    labels, kind = task.get("labels") or [], task.get("kind")
    sections: list[Section] = []
    if rows := task.get("per_class"):
        sections.append(classes.class_section([_class_row(row) for row in rows]))
    if task.get("confusion") and task["confusion"]["cells"]:
        sections.append(classes.confusion_section(task["confusion"]["cells"], labels))
    roc, pr = ([(_line(curve), _number(curve.get("rate"))) for curve in task.get(name) or []] for name in ("roc", "pr"))
    sections += classes.curve_section(roc, pr, len(labels))
    if measured := task.get("calibration"):
        names = ("ece", "adaptive_ece", "brier", "temperature", "ece_scaled")
        figures = {name: _number(measured.get(name)) for name in names}
        bins = [ReliabilityBin(**_numbers(part)) for part in measured["bins"]]
        sections.append(calibration.section_of(measured["measures"], bins, figures))
    if (fit := task.get("fit")) and fit["truth"]:
        points = [
            SpreadPoint(part["predicted"], part["low"], part["middle"], part["high"], part["rows"])
            for part in map(_numbers, fit["spread"])
        ]
        edges = [_number(edge) for edge in fit["edges"]]
        truth, predicted = ([_number(value) for value in fit[name]] for name in ("truth", "predicted"))
        sections.append(
            numbers.section_of(truth, predicted, (edges, fit["counts"]), points, task["target"], task["rows"])
        )
    errors_are = {
        "regression": "rows with the largest error, from above and below",
        "retrieval": "queries whose right answer ranked lowest",
    }.get(str(kind), "wrongly predicted rows with the highest loss, spread over the classes")
    return {**task, "sections": sections, "errors_are": errors_are, "meanings": MEANINGS}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _numbers(part: Mapping[str, Any]) -> Json:
    return {name: value if name == "rows" else _number(value) for name, value in part.items()}


def _class_row(row: Mapping[str, Any]) -> list[Cell]:
    figures = [_number(row[name]) for name in ("precision", "recall", "f1")]
    return [row["label"], row["support"], *figures, figures[2], _number(row.get("average_precision"))]


def _line(curve: Mapping[str, Any]) -> Line:
    return Line(
        curve["label"], [_number(x) for x in curve["x"]], [_number(y) for y in curve["y"]], _number(curve["area"])
    )
