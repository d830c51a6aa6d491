"""How results show themselves in a notebook: plain HTML tables, without scripts or styles of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from fusetune.errors import shown
from fusetune.evaluation.report.comparison import GROUPS, with_interval
from fusetune.evaluation.report.svg import figure
from fusetune.evaluation.report.verdict import verdict, warnings_of
from fusetune.evaluation.results import Interval, RunResults, TaskResult

MAX_CELL = 80
"""The most characters of a cell that are shown."""


def run_html(results: RunResults, folder: Path | None) -> str:
    """Return a run's verdict, its systems with the main metric and its interval, and its warnings, by target."""
    parts = [Markup()]
    for task in results.tasks:
        summary = verdict(task)
        systems = [system for kind, *_ in GROUPS for system in task.all(kind)]
        rows = [(system.name, with_interval(task.main(system))) for system in systems]
        parts.append(Markup("<p><b>{}</b> {} {}</p>").format(summary.headline, summary.use, summary.next_step))
        parts.append(html_table(("system", f"{task.metric} on {task.rows:,} {task.split} rows"), rows))
    parts += [Markup("<p>Note: {}</p>").format(warning) for warning in warnings_of(results)]
    if folder is not None:
        parts.append(Markup("<p>Report: <code>{}</code></p>").format(folder / "report.html"))
    return str(Markup().join(parts))


def tasks_html(tasks: Iterable[TaskResult], notes: Sequence[str]) -> str:
    """Return the metrics of evaluated targets, their slices, and notes."""
    parts = [Markup()]
    for task in tasks:
        parts.append(Markup("<p><b>{}</b> ({}, {:,} labelled rows)</p>").format(task.target, task.name, task.rows))
        metrics = task.systems[0].metrics
        parts.append(html_table(("metric", "value", "95 % interval"), [_line(*item) for item in metrics.items()]))
        if task.slices:
            heads = ("slice", f"rows, {task.metric}", "95 % interval")
            rows = [_line(f"{part.column} = {part.value}", part.metric, part.rows) for part in task.slices]
            parts.append(html_table(heads, rows))
    parts += [Markup("<p>{}</p>").format(note) for note in notes]
    return str(Markup().join(parts))


def html_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """Return a table; cells are escaped, and cut at `MAX_CELL` characters."""
    head = Markup().join(Markup("<th>{}</th>").format(name) for name in heads)
    body = Markup().join(
        Markup("<tr>{}</tr>").format(Markup().join(Markup("<td>{}</td>").format(_cell(cell)) for cell in row))
        for row in rows
    )
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def _line(name: str, value: Interval, rows: int | None = None) -> tuple[str, str, str]:
    span = f"{figure(value.low)} to {figure(value.high)}" if value.known else ""
    return name, figure(value.value) if rows is None else f"{rows:,}, {figure(value.value)}", span


def _cell(cell: Any) -> Markup:
    if cell is None:
        return Markup()
    text = figure(cell) if isinstance(cell, float) else cell if isinstance(cell, str) else shown(cell, MAX_CELL)
    return escape(text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…")
