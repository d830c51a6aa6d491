"""Evaluate a tuned model on labelled rows: metrics with intervals, also by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.evaluation.measure.retrieval import judge_search, ranks, searches, sides
from fusetune.evaluation.measure.systems import parts
from fusetune.evaluation.results import SystemResult, TaskResult, plain
from fusetune.inference.predict import row_vectors
from fusetune.inference.scores import predict_scores
from fusetune.models.family import Family
from fusetune.tasks.base import TargetTask
from fusetune.trees.stack import Stack


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        tasks: the results per target, with the tuned model as the only system.
        rows_in: the number of rows in the table.
        rows_rejected: the number of rows that, or whose targets, could not be read.
        cells_masked: the number of unreadable cells that were treated as missing.
        problems: descriptions of the first rejected rows and masked cells.
        notes: what else is to be known about the figures.
    """

    tasks: list[TaskResult]
    rows_in: int
    rows_rejected: int
    cells_masked: int
    problems: list[str]
    notes: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return each metric's value, per target."""
        return {
            task.target: {name: interval.value for name, interval in task.systems[0].metrics.items()}
            for task in self.tasks
        }

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as plain data; nan becomes None."""
        content: dict[str, Any] = plain(self)
        return content

    def __str__(self) -> str:
        lines = [f"{self.rows_in} rows in, {self.rows_rejected} rejected, {self.cells_masked} cells not readable"]
        lines += [f"  {problem}" for problem in self.problems] + self.notes
        for task in self.tasks:
            lines.append(f"{task.target} ({task.name}, {task.rows} labelled rows)")
            for name, interval in task.systems[0].metrics.items():
                span = f"  [{interval.low:.4f}, {interval.high:.4f}]" if interval.known else ""
                lines.append(f"  {name:<20}{interval.value:>9.4f}{span}")
            for part in task.slices:
                span = f"  [{part.metric.low:.4f}, {part.metric.high:.4f}]" if part.metric.known else ""
                label = f"{part.column} = {part.value} ({part.rows} rows)"
                lines.append(f"  {label:<40} {task.metric} {part.metric.value:.4f}{span}")
            lines += [f"  note: {warning}" for warning in task.warnings]
        return "\n".join(lines)


def measure(
    model: Family,
    tasks: Mapping[str, TargetTask],
    examples: Examples,
    *,
    slices: Sequence[str] = (),
    group: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    stack: Stack | None = None,
) -> Evaluation:
    """Measure metrics with bootstrap intervals on the labelled rows, and the main metric by slice.

    Args:
        model: the tuned model.
        tasks: the fitted tasks by name.
        examples: prepared rows with their targets checked.
        slices: the table's columns to slice by.
        group: a column of the table; the bootstrap draws rows with equal cells together.
        seed: the seed of the bootstrap.
        progress: wraps iterators to show progress.
        stack: the boosted trees beside the model, if any.

    Raises:
        TableError: a column of `slices` is not in the table.
    """
    table = examples.table
    table.require(slices)
    results = []
    if not tasks:
        results += measure_search(model, examples, seed=seed)
    predicted = predict_scores(model, tasks, examples, stack=stack, progress=progress) if tasks else {}
    for name, task in tasks.items():
        rows = examples.labelled(name)
        if not len(rows):
            continue
        scores = predicted[name][examples.places(rows)]
        truth = examples.truth(name, rows)
        tuned = Candidate("tuned", "after", "the tuned model", scores)
        values = {column: table.cells(column, rows) for column in slices}
        results.append(
            judge(
                task,
                [tuned],
                EvaluatedRows(
                    truth,
                    table.rows[rows],
                    weights=examples.weights[rows],
                    groups=table.cells(group, rows) if group is not None and group in table else None,
                    slices=values,
                ),
                num_errors=0,
                seed=seed,
            )
        )
    rejected = [*table.rejected, *examples.rejected]
    problems = [f"row {item.row}, column {item.column!r}: {item.why}" for item in [*rejected, *examples.masked]]
    shown = problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])
    return Evaluation(
        results,
        rows_in=len(table) + len(table.rejected),
        rows_rejected=len({item.row for item in rejected}),
        cells_masked=len(examples.masked),
        problems=shown,
        notes=[
            f"{task.target} was tuned by {task.tuned_by.name}, a function that no folder holds; it is measured by "
            f"{task.main.name}. In Python load(FOLDER, metric={task.tuned_by.name}) measures by the function."
            for task in tasks.values()
            if task.tuned_by is not None and task.main.function is None
        ],
    )


def measure_search(model: Family, examples: Examples, *, seed: int = 0) -> list[TaskResult]:
    """Measure retrieval in every direction between the columns, for a model without tasks.

    Args:
        model: the tuned model.
        examples: prepared rows.
        seed: the seed of the bootstrap.
    """
    codes = {name: column.codes[examples.used] for name, column in examples.columns.items()}
    groups = examples.groups[examples.used]
    vectors = {name: values.numpy() for name, values in row_vectors(model, examples, examples.used).items()}
    results = []
    for search in searches(sides(parts(examples)), codes, groups):
        tuned = SystemResult("tuned", "after", "the tuned model", {})
        query_groups = groups[search.rows]
        results.append(
            judge_search(
                search,
                [(tuned, ranks(search, vectors))],
                examples.rows[examples.used[search.rows]],
                groups=query_groups.tolist() if (query_groups >= 0).all() else None,
                seed=seed,
            )
        )
    return results
