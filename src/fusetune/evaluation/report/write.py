"""Write the report: a self-contained HTML file, a JSON file with the same content, and tables for the terminal."""

from __future__ import annotations

import math
import os
import shlex
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fusetune.errors import StorageError, reason
from fusetune.evaluation.decisions import FusionChoice, ReadingChoice
from fusetune.evaluation.report import comparison as plots
from fusetune.evaluation.report.panels import draw, waveform
from fusetune.evaluation.report.svg import figure, padded, readable
from fusetune.evaluation.report.verdict import difference, verdict, warnings_of
from fusetune.evaluation.results import RunResults, Slice, SystemResult, TaskResult, to_json

TEMPLATES = Path(__file__).parent / "templates"
MAX_METRICS = 5


def write_report(results: RunResults, folder: Path) -> dict[str, Path]:
    """Write `report.html` and `report.json` into a folder, which is created if needed.

    Each file is written under a temporary name and then renamed, so that a reader never sees an incomplete file.

    Returns:
        The paths under "html" and "json".

    Raises:
        StorageError: a file could not be written.
    """
    files = {"html": (folder / "report.html", render(results)), "json": (folder / "report.json", to_json(results))}
    for path, text in files.values():
        replace_file(path, text)
    return {name: path for name, (path, _) in files.items()}


def render(results: RunResults) -> str:
    """Return the HTML report, without scripts and without requests to other files or hosts."""
    verdicts = [verdict(task) for task in results.tasks]
    return render_page("report.html.j2", results=results, verdicts=verdicts, warnings=warnings_of(results))


def render_page(template: str, **values: Any) -> str:
    """Return a page as HTML, by a template beside the report's, whose macros and styles it may use."""
    return readable(_environment().get_template(template).render(**values))


def terminal_table(results: RunResults, *, path: Path | None = None) -> Group:
    """Return a table per task (system, main metric with interval, two more metrics) with its verdict, for the terminal.

    Args:
        results: the results of the run.
        path: the HTML report, named in the last line.
    """
    parts: list[Any] = []
    for task in results.tasks:
        more = [name for name in shown_metrics(task) if name != task.metric][:2]
        table = Table(title=Text(f"{task.target}: {task.rows:,} {task.split} rows"), title_justify="left")
        table.add_column("system")
        table.add_column(Text(f"{task.metric} [95% interval]"), justify="right")
        for name in more:
            table.add_column(Text(name), justify="right")
        for system in in_order(task):
            cells = [system.name, plots.with_interval(task.main(system))]
            cells += [figure(system.metrics[name].value) if name in system.metrics else "" for name in more]
            style = "bold" if system.kind == "after" else ""
            table.add_row(*(Text(readable(cell), style=style) for cell in cells))
        summary = verdict(task)
        parts += [
            table,
            Text(summary.headline),
            Text(f"  {summary.use} {summary.next_step}".rstrip()),
            *(Text(f"  {note}") for note in summary.notes),
            Text(""),
        ]
    if results.pretraining is not None:
        parts += [Text(results.pretraining.said), Text("")]
    if results.reading is not None:
        parts += [_choice_table(results.reading, "texts", "texts apart or together"), Text("")]
    if results.choice is not None:
        parts += [_choice_table(results.choice, "fusion", "fusions on frozen features"), Text("")]
    if path is not None:
        parts.append(Text(f"report: {path}"))
    return Group(*parts)


def _choice_table(choice: FusionChoice | ReadingChoice, what: str, title: str) -> Group:
    table = Table(title=Text(title), title_justify="left")
    table.add_column(what)
    table.add_column(Text(choice.metric), justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for row in choice.rows():
        table.add_row(*(Text(cell, style="bold" if row[0] == choice.chosen else "") for cell in row))
    return Group(table, Text(choice.said))


def in_order(task: TaskResult) -> list[SystemResult]:
    """Return the systems in the report's order: baseline, before, alone, without, single, after, attack."""
    return [system for kind, _, _ in plots.GROUPS for system in task.all(kind)]


def shown_metrics(task: TaskResult) -> list[str]:
    """Return the metrics shown in tables: the main one, then others of the tuned model, at most five."""
    tuned = task.first("after") or (task.systems[-1] if task.systems else None)
    rest = [name for name in (tuned.metrics if tuned else {}) if name != task.metric]
    return [task.metric, *rest][:MAX_METRICS]


def slice_range(task: TaskResult) -> tuple[float, float]:
    """Return the common scale of a task's slices, (low, high)."""
    ends = [end for part in task.slices for end in (part.metric.value, part.metric.low, part.metric.high)]
    after = task.first("after")
    return padded([*ends, task.main(after).value if after else math.nan], 0.05)


def slices_by_column(task: TaskResult) -> dict[str, list[Slice]]:
    """Group the slices by column, in their order."""
    by_column: dict[str, list[Slice]] = {}
    for part in task.slices:
        by_column.setdefault(part.column, []).append(part)
    return by_column


def duration(seconds: float) -> str:
    """Format seconds: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if not math.isfinite(seconds):
        return figure(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        figure=figure, interval=plots.with_interval, signed=difference, duration=duration, shell=shlex.quote
    )
    environment.globals.update(
        plots=plots,
        draw=draw,
        waveform=waveform,
        in_order=in_order,
        shown_metrics=shown_metrics,
        slice_range=slice_range,
        slices_by_column=slices_by_column,
    )
    return environment


def replace_file(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it; its folder is made if needed.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(draft, 0o666 & ~umask)  # mkstemp creates private files; a report gets the usual permissions
            os.replace(draft, path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {reason(error)}") from error
